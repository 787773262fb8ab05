"""What a sampling run is made of, each by itself: the network, the step, the noise, and the memory that bounds them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch

import ulam_kernels

from .plain_rows import eager_row
from .timing import Timing, interleaved
from .work import Work

STEP, PLAIN_STEP = "the step: ulam, fused", "the step: plain PyTorch"
NOISE, PLAIN_NOISE = "noise: ulam", "noise: torch.randn"
MEMORY = "memory: torch.add(x, m, out=x)"
MOVED = 3  # numbers that MEMORY moves for each element: two reads and a write


def middle(work: Work) -> int:
    """A row from the middle of the program that evaluates the network: with what most rows have."""
    rows = work.program.evaluating
    return rows[len(rows) // 2]


def bytes_of_step(work: Work) -> int:
    """The least that a step moves between memory and processor: registers and outputs read, registers written.

    Guided chains read two outputs; noise is made on the way.
    """
    row, program = middle(work), work.program
    R = program.registers
    written = program.writes[row]
    terms = (program.A[row][written] != 0).any(axis=0)
    uses_x0 = bool(terms[R])
    reads = terms[:R].copy()
    reads[0] |= uses_x0 and program.kx[row] != 0
    outputs = work.calls * bool(terms[R + 1] or (uses_x0 and program.km[row] != 0))
    if program.learned[row]:
        outputs *= 2
    return 4 * work.elements * int(reads.sum() + outputs + written.sum())


def timed_parts(work: Work, seconds: float) -> dict[str, Timing]:
    """Seconds of one step, of its noise, and of moving memory, in turn.

    The fused step writes over the states that it reads, as an engine's does: a third tensor to read them from would be
    half as much again to move. The call that is not timed (:func:`interleaved`) puts the states back.
    """
    row, program, device = middle(work), work.program, torch.device(work.device)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(program.registers, *work.batch, generator=generator).to(device)
    m = torch.randn(work.batch, generator=generator).to(device)
    if program.learned[row]:
        m = torch.cat([m, m], dim=1)
    guided = {} if work.guidance is None else {
        "uncond": m.clone(), "guidance": torch.full((work.slots,), work.guidance, device=device)
    }  # fmt: skip
    plain, table = eager_row(program, row), program.table(device=device)
    ids = torch.arange(work.slots, device=device)
    rows, zeros, noise = torch.full_like(ids, row), torch.zeros_like(ids), torch.empty(work.batch, device=device)
    own, theirs, moved = states.clone(), [*states.unbind()], states[0].clone()
    backend, anew = work.backend, itertools.cycle((True, False))

    def fused() -> None:
        if next(anew):
            own.copy_(states)
        ulam_kernels.step(own, table, rows, model=m, seed=zeros, chain=ids, draw=rows, backend=backend, **guided)
        work.wait()

    def eager() -> None:
        given = m
        if work.guidance is not None:
            given = guided["uncond"] + work.guidance * (m - guided["uncond"])
        plain(theirs, given)
        work.wait()

    def fill() -> None:
        ulam_kernels.fill_normal(noise, seed=zeros, chain=ids, draw=rows, backend=backend)
        work.wait()

    def randn() -> None:
        torch.randn(work.batch, device=device)
        work.wait()

    def add() -> None:
        torch.add(moved, m[:, : moved.shape[1]], out=moved)
        work.wait()

    functions: dict[str, Callable[[], object]] = {
        STEP: fused, PLAIN_STEP: eager, NOISE: fill, PLAIN_NOISE: randn, MEMORY: add
    }  # fmt: skip
    if program.normalise[row] or program.threshold[row]:
        del functions[STEP]  # a part of it is a reduction before it
    with torch.inference_mode():
        return interleaved(functions, seconds)
