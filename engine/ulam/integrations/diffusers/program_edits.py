"""Programs made of programs: joined, with other registers, or with other coefficients of D, the output or the state."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np

from ...programs.builder import ProgramBuilder
from ...programs.clip import Clip
from ...programs.program import Flags, Program
from ...schedules import Array, Schedule


def padded(program: Program, registers: int) -> Program:
    """The same rows with more registers, and with the sample itself as the next input."""
    missing = registers - program.registers
    rows, at = len(program), program.registers
    A = np.insert(program.A, [at] * missing, 0.0, axis=2)
    return replace(
        program,
        registers=registers,
        A=np.concatenate([A, np.zeros((rows, missing, registers + 3))], axis=1),
        writes=np.concatenate([program.writes, np.zeros((rows, missing), dtype=np.bool_)], axis=1),
        c_in=np.ones(rows),
    )


def concatenated(first: Program, then: Program) -> Program:
    """The rows of both, on as many registers as the one with more has."""
    registers = max(first.registers, then.registers)
    parts = [padded(program, registers) for program in (first, then)]
    arrays: dict[str, Any] = {
        f.name: np.concatenate([getattr(part, f.name) for part in parts])
        for f in fields(Program)
        if isinstance(getattr(first, f.name), np.ndarray)
    }
    return replace(parts[0], **arrays)


def rows_among(program: Program, others: Program, at: Flags) -> Program:
    """`others` with the rows of `program`, in order, in the places `at`, as many.

    Where there is one row less, the last of the places keeps the row that it has: the second call of a step to sigma 0,
    which takes one evaluation.
    """
    if len(program) == at.sum() - 1:
        at = at.copy()
        at[np.flatnonzero(at)[-1]] = False
    assert len(program) == at.sum()
    others = padded(others, program.registers)
    arrays: dict[str, Any] = {}
    for name in (f.name for f in fields(Program) if isinstance(getattr(program, f.name), np.ndarray)):
        arrays[name] = np.array(getattr(others, name))
        arrays[name][at] = getattr(program, name)
    return replace(program, **arrays)


def with_scaled_D(program: Program, factor: float) -> Program:
    """The same rows with `factor` D in the place of D."""
    if factor == 1:
        return program
    A = program.A.copy()
    A[:, :, program.registers] *= factor
    return replace(program, A=A)


def with_negated_output(program: Program) -> Program:
    """The same rows for a network whose output has the other sign."""
    A = program.A.copy()
    A[:, :, program.registers + 1] *= -1
    return replace(program, A=A, km=-program.km)


def estimates(schedule: Schedule, predicts: str, times: Array, levels: tuple[Array, Array], clip: Clip) -> Program:
    """Rows that give D, the estimate of x_0, at `levels` [n]."""
    builder = ProgramBuilder(schedule, predicts, clip=clip)
    builder.rows(times, levels=levels, x={"D": 1.0})
    return builder.program(sampler="x0")


def reading_scaled(program: Program, scale: Array) -> Program:
    """The same rows on the state x / scale [n], leaving what they left."""
    A = program.A.copy()
    A[:, :, 0] *= scale[:, None]
    return replace(program, A=A, kx=program.kx * scale)
