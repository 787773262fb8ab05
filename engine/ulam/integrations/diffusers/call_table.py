"""The rows of a scheduler on its timesteps, one for each call of `step`, and the tables that the kernels read."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ulam_kernels import Table
from ulam_kernels.dispatch import name_of, select

from ...noise import DRAWS_PER_ROW
from ...programs.program import Program
from ...schedules import Array
from .program_edits import padded

if TYPE_CHECKING:
    from ulam_kernels.cpu.bound import BoundStep

MOST_KEPT = 4096  # row numbers and bound steps kept for later calls


@dataclass(frozen=True)
class CallRows:
    """What a scheduler's calls of `step` compile to, from one position of its timesteps on.

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
            raise ValueError(f"program: got {self.program!r}, expected one evaluating row a call of step")


class RowTraits(NamedTuple):
    """What a row does: whether it draws noise (under noise-v1 of this number), has a reduction, reads a learned
    variance, writes x.
    """

    draws: bool
    draw: int
    reduces: bool
    learns: bool
    writes: bool

    @property
    def simple(self) -> bool:
        """Whether the fused step does it alone."""
        return self.writes and not (self.reduces or self.learns)


class CallTable:
    """The rows of the calls on one grid of timesteps, packed per device; shared by threads.

    times: [n] the timesteps, as numbers. compile(start) gives the calls from position `start` on; each such program is
    compiled and appended to the table when it is first needed: row `first_row(start) + position - start` is the call at
    `position`. A family may compile a timestep that is not on the grid under a negative `start`. history: whether calls
    read what earlier calls left, so that it matters where a loop began.
    """

    def __init__(
        self, times: Array, compile: Callable[[int], CallRows], options: tuple[Any, ...] = (), history: bool = True
    ) -> None:
        self.compile, self.options, self.history = compile, options, history
        self.input_scales: list[float] | None = None
        self.weights: list[Array] | None = None  # of several outputs, a call each, where a family sums them first
        self.times: list[float] = times.tolist()
        self.positions: dict[float, list[int]] = {}
        for position, time in enumerate(self.times):
            self.positions.setdefault(time, []).append(position)
        self.rows: dict[float | None, int] = {}  # by timesteps that were looked up
        self.length, self.first = len(self.times), self.times[0]
        self.registers = 1
        self.second_reads_noise = False
        self.traits: list[RowTraits] = []
        self._lock = threading.Lock()
        self._calls: list[CallRows] = []
        self._first_rows: dict[int, int] = {}
        self._tables: dict[tuple[Any, ...], Table] = {}
        self._indices: dict[tuple[int, int, torch.device], torch.Tensor] = {}
        self._bound: dict[tuple[torch.Size, str | None, int], BoundStep | None] = {}

    def row_offset(self, position: int) -> int:
        """The offset from a timestep's position to its row, in a loop that begins at `position`.

        Without history all loops share the rows from position 0 on, unless only later ones exist (levels that
        underflow, for example, in a loop that leaves them out). Raises ValueError where there are none.
        """
        if self.history or position < 0:
            return self.first_row(position) - position
        for start, first in tuple(self._first_rows.items()):
            if 0 <= start <= position:
                return first - start
        try:
            return self.first_row(0)
        except ValueError:
            if position == 0:
                raise
            return self.first_row(position) - position

    def first_row(self, start: int) -> int:
        """The row of position `start`, in the program that begins there."""
        with self._lock:
            if start not in self._first_rows:
                calls = self.compile(start)
                program = calls.program
                self._first_rows[start] = len(self.traits)
                self._calls.append(calls)
                draw, reduces = (start + np.arange(len(program))) * DRAWS_PER_ROW, program.threshold | program.normalise
                columns = (calls.draws, draw, reduces, program.learned, program.writes[:, 0])
                self.traits += [RowTraits(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
                self.registers = max(self.registers, program.registers)
                self.second_reads_noise |= calls.second_reads_noise
            return self._first_rows[start]

    def has_rows_later(self) -> bool:
        """Whether a loop that leaves out the first timesteps has rows, though one that does not has none."""
        for start in sorted({2, self.length // 4 * 2, (self.length - 1) // 2 * 2} - {0}):
            with suppress(ValueError):
                if start < self.length:
                    self.first_row(start)
                    return True
        return False

    def position_of(self, time: float) -> int:
        """The position of a timestep that occurs once. Raises ValueError for one that does not occur."""
        found = self.positions.get(time)
        if found is None:
            raise ValueError(f"timestep: got {time!r}, expected one of scheduler.timesteps")
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
            if len(self._indices) >= MOST_KEPT:
                self._indices = {}
            index = self._indices[key] = torch.full((chains,), row, device=device)
        return index

    def bound(self, shape: torch.Size, backend: str | None) -> BoundStep | None:
        """The step of float32 samples of this shape on the CPU, for simple rows; None where rows need more."""
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
        if len(self._bound) >= MOST_KEPT:
            self._bound = {}
        self._bound[key] = bound
        return bound
