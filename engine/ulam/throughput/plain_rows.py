"""A row of any sampler's program as plain tensor operations: what a scheduler's code for this step comes to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from ..programs.program import Program

Step: TypeAlias = "Callable[[list[torch.Tensor], torch.Tensor], list[torch.Tensor]]"
Number: TypeAlias = "float | torch.Tensor"
SCALARS = ("kx", "km", "lo", "hi", "lv_m", "lv_b")


@dataclass(frozen=True)
class Form:
    """Which operations a row is made of, without its numbers: rows of one form share one function.

    terms: of each register that is written, the terms that are not 0, by their places among registers, D, m and z.
    """

    registers: int
    terms: tuple[tuple[int, ...] | None, ...]
    clips: bool
    threshold: bool
    normalise: bool
    learned: bool

    @property
    def reads(self) -> set[int]:
        """The places of all terms."""
        return {term for line in self.terms if line is not None for term in line}


def form_of(program: Program, row: int) -> Form:
    """The form of a row."""
    terms = tuple(
        tuple(np.flatnonzero(line).tolist()) if written else None
        for line, written in zip(program.A[row], program.writes[row], strict=True)
    )
    flags = (bool(getattr(program, name)[row]) for name in ("threshold", "normalise", "learned"))
    return Form(program.registers, terms, bool(np.isfinite(program.hi[row])), *flags)


def numbers_of(program: Program, row: int) -> list[float]:
    """What :func:`step_of` takes as ``numbers``: the scalars, then the factors of each register that is written."""
    scalars = [float(getattr(program, name)[row]) for name in SCALARS]
    terms = form_of(program, row).terms
    return scalars + [float(program.A[row, j, k]) for j, line in enumerate(terms) if line is not None for k in line]


def step_of(form: Form) -> Callable[..., list[torch.Tensor]]:
    """``step(registers, m, z, numbers) -> registers`` of rows of this form; z is standard normal, or None.

    The numbers are floats, or tensors without dimensions for ``torch.compile``, which would compile each float anew.
    """
    registers, needs_d = form.registers, form.normalise or form.registers in form.reads

    def step(state: list[torch.Tensor], m: torch.Tensor, z: Any, numbers: list[Any]) -> list[torch.Tensor]:
        kx, km, lo, hi, lv_m, lv_b = numbers[: len(SCALARS)]
        factors = iter(numbers[len(SCALARS) :])
        x0: Any = None
        if form.learned:
            v, m = m[:, m.shape[1] // 2 :], m[:, : m.shape[1] // 2]
            z = torch.exp(lv_m * v + lv_b) * z
        if needs_d:
            x0 = kx * state[0] + km * m
        per_chain = (-1, *[1] * (state[0].dim() - 1))
        if form.threshold:
            s = torch.quantile(x0.abs().flatten(1).float(), lo, dim=1).clamp(1.0, hi).view(per_chain).to(x0.dtype)
            x0 = x0.clamp(-s, s) / s
        elif form.normalise:
            norm = z.flatten(1).norm(dim=1) / x0.flatten(1).norm(dim=1)
            x0, z = x0 * (norm**2).view(per_chain), z * norm.view(per_chain)
        elif needs_d and form.clips:
            x0 = x0.clamp(lo, hi)
        given, found = [*state, x0, m, z], []
        for place in range(registers):
            line = form.terms[place]
            if line is None:
                found.append(state[place])
                continue
            total: Any = None
            for k in line:
                term = next(factors) * given[k]
                total = term if total is None else total + term
            found.append(torch.zeros_like(state[place]) if total is None else total)
        return found

    return step


def eager_row(program: Program, row: int) -> Step:
    """A row with its numbers written out, drawing its noise by ``torch.randn_like``: ``step(registers, m)``."""
    form, numbers = form_of(program, row), numbers_of(program, row)
    step, noisy = step_of(form), form.registers + 2 in form.reads

    @torch.no_grad()
    def run(state: list[torch.Tensor], m: torch.Tensor) -> list[torch.Tensor]:
        return step(state, m, torch.randn_like(state[0]) if noisy else None, numbers)

    return run
