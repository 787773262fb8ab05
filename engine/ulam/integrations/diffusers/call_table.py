"""The rows of a scheduler on its timesteps, one for each call of `step`, and the tables that the kernels read."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ulam_kernels import Table
from ulam_kernels.dispatch import name_of, select

from ...noise import DRAWS_PER_ROW
from ...programs.program import Program
from ...schedules import Array

if TYPE_CHECKING:
    from ulam_kernels.cpu.bound import BoundStep


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


@dataclass(frozen=True)
class Calls:
    """What a scheduler's calls of `step` compile to, from position `start` of its timesteps on.

    program: a row a call, in the coordinates of the scheduler's samples. draws: [n] bool, the calls in which diffusers
    draws noise (used or not). second: makes the rows that give the second output from the same arguments;
    second_reads_noise: the noise is one of them.
    """

    program: Program
    draws: npt.NDArray[np.bool_]
    second: Callable[[], Program] | None = None
    second_reads_noise: bool = False

    def __post_init__(self) -> None:
        if not self.program.evaluates.all() or len(self.draws) != len(self.program):
            raise ValueError(f"program must have one evaluating row a call of step, got {self.program!r}")


MOST_INDICES = 4096


class Kind(NamedTuple):
    """What a call does: draws noise (under noise-v1 this number), has a reduction, a learned variance, writes x."""

    draws: bool
    draw: int
    reduces: bool
    learns: bool
    writes: bool

    @property
    def simple(self) -> bool:
        """Whether the step alone does it."""
        return self.writes and not (self.reduces or self.learns)


class Plan:
    """The calls of one grid of timesteps, packed per device; shared by threads.

    times: [n] the timesteps, as numbers. compile(start) gives the calls from position `start` on; each such program
    is compiled and appended to the table when it is first wanted: row `offset(start) + position - start` is call
    `position`. A family may compile what is on no grid under a negative `start`. history: whether calls read what
    earlier calls left, so that where a loop began matters.
    """

    def __init__(
        self, times: Array, compile: Callable[[int], Calls], options: tuple[Any, ...] = (), history: bool = True
    ) -> None:
        self.compile, self.options, self.history = compile, options, history
        self.input_scales: list[float] | None = None
        self.times: list[float] = times.tolist()
        self.positions: dict[float, list[int]] = {}
        for position, time in enumerate(self.times):
            self.positions.setdefault(time, []).append(position)
        self.rows: dict[float | None, int] = {}  # of timesteps that were looked up
        self.length, self.first = len(self.times), self.times[0]
        self.registers = 1
        self.second_reads_noise = False
        self.kinds: list[Kind] = []
        self._lock = threading.Lock()
        self._calls: list[Calls] = []
        self._offsets: dict[int, int] = {}
        self._tables: dict[tuple[Any, ...], Table] = {}
        self._indices: dict[tuple[int, int, torch.device], torch.Tensor] = {}
        self._bound: dict[tuple[torch.Size, str | None, int], BoundStep | None] = {}

    def shift(self, position: int) -> int:
        """What leads from positions to the table's rows in a loop that begins at `position`.

        Without history all loops share the rows from position 0 on, unless only later ones exist (levels that
        underflow, for example, in a loop that leaves them out). Raises ValueError where there are none.
        """
        if self.history or position < 0:
            return self.offset(position) - position
        for start, offset in tuple(self._offsets.items()):
            if 0 <= start <= position:
                return offset - start
        try:
            return self.offset(0)
        except ValueError:
            if position == 0:
                raise
            return self.offset(position) - position

    def offset(self, start: int) -> int:
        """The table's row of position `start`, in the program that starts there."""
        with self._lock:
            if start not in self._offsets:
                calls = self.compile(start)
                program = calls.program
                self._offsets[start] = len(self.kinds)
                self._calls.append(calls)
                draw, reduces = (start + np.arange(len(program))) * DRAWS_PER_ROW, program.threshold | program.normalise
                columns = (calls.draws, draw, reduces, program.learned, program.writes[:, 0])
                self.kinds += [Kind(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
                self.registers = max(self.registers, program.registers)
                self.second_reads_noise |= calls.second_reads_noise
            return self._offsets[start]

    def has_rows_later(self) -> bool:
        """Whether a loop that leaves out the first timesteps has rows, though one that does not has none."""
        for start in sorted({2, self.length // 4 * 2, (self.length - 1) // 2 * 2} - {0}):
            with suppress(ValueError):
                if start < self.length:
                    self.offset(start)
                    return True
        return False

    def at(self, time: float) -> int:
        """The position of a timestep that is there once. Raises ValueError where there is none."""
        found = self.positions.get(time)
        if found is None:
            raise ValueError(f"timestep must be one of scheduler.timesteps, got {time!r}")
        return found[0]

    def table(self, device: torch.device, dtype: torch.dtype, form: str = "first") -> Table:
        """All rows, of the "first" or the "second" output.

        c_next is 1, so that `net_in` receives the new sample itself.
        """
        key = device, dtype, form, len(self._calls)
        table = self._tables.get(key)
        if table is None:
            with self._lock:
                calls = list(self._calls)
            programs = [call.program for call in calls]
            if form == "second":
                programs = [call.second() for call in calls if call.second is not None]
            registers = self.registers if form == "first" else 1
            tables = [padded(program, registers).table(dtype, device) for program in programs]
            coef, flags = torch.cat([t.coef for t in tables]), torch.cat([t.flags for t in tables])
            table = self._tables[key] = Table(coef, flags, registers)
        return table

    def index(self, row: int, chains: int, device: torch.device) -> torch.Tensor:
        """A row's number for all chains, [chains] int64."""
        key = row, chains, device
        index = self._indices.get(key)
        if index is None:
            if len(self._indices) >= MOST_INDICES:
                self._indices = {}
            index = self._indices[key] = torch.full((chains,), row, device=device)
        return index

    def bound(self, shape: torch.Size, backend: str | None) -> BoundStep | None:
        """The step of float32 samples of this shape on the CPU, for simple rows; None where it takes more."""
        key = shape, backend, len(self._calls)
        try:
            return self._bound[key]
        except KeyError:
            pass
        module = select(backend, "cpu", torch.float32)
        bound = None
        if (
            name_of(module) == "cpu"
            and self.registers == 1
            and not self.second_reads_noise
            and shape
            and shape.numel() > 0
        ):
            bound = module.BoundStep(self.table(torch.device("cpu"), torch.float32), shape)
        if len(self._bound) >= MOST_INDICES:
            self._bound = {}
        self._bound[key] = bound
        return bound


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
