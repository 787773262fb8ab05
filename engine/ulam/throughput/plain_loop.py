"""The sampling loop as people write it in PyTorch, for any sampler: the network, then the row's tensor operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..conditioning import arguments_of
from ..evaluation import check_output
from .plain_rows import form_of, numbers_of, step_of
from .work import Work

Draw = Callable[[int], torch.Tensor]  # of a row, its standard normals


class Unlike(Exception):
    """Why a loop cannot do the same work."""


class PlainLoop:
    """A run of the first evaluations of a work, from given first states. Raises Unlike for what it has no words for.

    compiled: the network and the step of each form of rows go through ``torch.compile``.
    """

    def __init__(self, work: Work, evaluations: int, compiled: bool = False) -> None:
        program = work.first(evaluations)
        if program.reads_unguided or program.tells_second:
            what = "reads the unguided output by itself" if program.reads_unguided else "tells a second time"
            raise Unlike(f"its sampler {what}")
        self._work, self._program = work, program
        denoiser = work.denoiser
        self._net: Callable[..., Any] = denoiser.network
        self._guide: Callable[..., Any] = denoiser.guide or denoiser.network
        self._cond = arguments_of(work.cond, torch.device(work.device))
        self._uncond = (
            self._cond if denoiser.guide is not None else arguments_of(work.uncond, torch.device(work.device))
        )
        forms = [form_of(program, row) for row in range(len(program))]
        steps = {form: step_of(form) for form in forms}
        numbers: list[list[Any]] = [numbers_of(program, row) for row in range(len(program))]
        if compiled:
            self._guide = torch.compile(self._guide)
            self._net = self._guide if denoiser.guide is None else torch.compile(self._net)
            steps = {form: torch.compile(step) for form, step in steps.items()}
            numbers = [[torch.tensor(value, device=work.device) for value in row] for row in numbers]
        self._rows = [
            (steps[form], row, form.registers + 2 in form.reads) for form, row in zip(forms, numbers, strict=True)
        ]

    def __call__(self, x: torch.Tensor, draw: Draw | None = None) -> torch.Tensor:
        """From states x ``[slots, *shape]`` at the first noise level; the noise of rows from ``draw``, or torch's."""
        state = [x, *(torch.zeros_like(x) for _ in range(self._program.registers - 1))]
        with torch.inference_mode():
            for place, (step, numbers, noisy) in enumerate(self._rows):
                m = self._prediction(state[0], place) if self._program.evaluates[place] else state[0]
                z = None if not noisy else torch.randn_like(x) if draw is None else draw(place)
                state = step(state, m, z, numbers)
        self._work.wait()
        return state[0]

    def _prediction(self, x: torch.Tensor, row: int) -> torch.Tensor:
        program, work = self._program, self._work
        t = torch.full((len(x),), float(program.time[row]), device=x.device).to(work.denoiser.time_dtype)
        if program.c_in[row] != 1:
            x = float(program.c_in[row]) * x
        m = check_output(self._net(x, t, **self._cond), tuple(x.shape))
        if work.guidance is None:
            return m
        unguided = check_output(self._guide(x, t, **self._uncond), tuple(x.shape))
        return unguided + work.guidance * float(program.guidance[row]) * (m - unguided)
