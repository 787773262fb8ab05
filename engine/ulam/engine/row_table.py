"""The rows of the programs that the slots run, in tables on the device that move only to grow."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ulam_kernels import Table
from ulam_kernels.table import C_NEXT, width

from ..programs.program import Program
from .transfers import write_rows

CAPACITY = 4096  # initial rows: 180 KB for programs of one register


@dataclass(eq=False, slots=True)
class Place:
    """Where a program's rows are, the times that its evaluations give the network, and when it was last used.

    ``used`` counts the uses of all programs up to then.
    """

    begin: int
    end: int
    network_times: list[float]
    used: int = 0


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of all rows, ``[capacity]`` each; ``tables`` by their number of registers."""

    times: torch.Tensor  # given to the network
    known_a: torch.Tensor  # coefficients of a known image and its noise
    known_b: torch.Tensor
    second: torch.Tensor  # another time that the network is told
    unguided: torch.Tensor  # the register that takes the unguided output, 0 for none
    guidance: torch.Tensor  # a factor on the guidance weight
    c_next: torch.Tensor  # the scale of the next network input, as in the tables
    flags: torch.Tensor
    tables: dict[int, Table]


class RowTable:
    """Row 0 is the idle row; each program has a range of rows, the same for every number of registers.

    A new program takes free rows, or those of programs that no chain runs, the least recently used first. Only if that
    is not enough are the columns reallocated, at least twice as long: ``columns`` is then a new object. Coefficients
    are rounded once to ``dtype``.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, time_dtype: torch.dtype) -> None:
        self._device, self._dtype, self._time_dtype = device, dtype, time_dtype
        self._places: dict[Program, Place] = {}
        self._loads = 0
        self.columns = self._empty(CAPACITY)

    def __len__(self) -> int:
        """The number of rows that fit."""
        return len(self.columns.flags)

    @property
    def programs(self) -> Collection[Program]:
        """The programs in the table."""
        return self._places.keys()

    def __getitem__(self, program: Program) -> Place:
        return self._places[program]

    def find(self, program: Program) -> Place | None:
        """A program's place, or None; the program counts as used."""
        place = self._places.get(program)
        if place is not None:
            place.used = self._loads = self._loads + 1
        return place

    def add(self, program: Program, running: Callable[[], Collection[Program]]) -> Place:
        """Add a program's rows and return their place; ``running`` programs keep theirs."""
        self.table(program.registers)  # so that its rows are written there too
        place = self._write(program, self._room(len(program.time), running))
        place.used = self._loads = self._loads + 1
        self._places[program] = place
        return place

    def table(self, registers: int) -> Table:
        """The rows of all programs with at most this many registers, for a state with exactly as many."""
        table = self.columns.tables.get(registers)
        if table is None:
            coef = self._zeros(len(self), width(registers), dtype=self._dtype)
            table = Table(coef, self.columns.flags, registers)
            for program, place in self._places.items():
                if program.registers <= registers:
                    packed = program.table(dtype=self._dtype)
                    write_rows(place.begin, (coef, packed.widen(registers).coef))
            self.columns.tables[registers] = table
        return table

    # ---------------------------------------------------------------------------------------------- room for rows

    def _room(self, rows: int, running: Callable[[], Collection[Program]]) -> int:
        """Make room for this many rows; return the first."""
        while True:
            for begin, end in self._gaps():
                if end - begin >= rows:
                    return begin
            in_use = running()
            if unused := [program for program in self._places if program not in in_use]:
                self._forget(min(unused, key=lambda program: self._places[program].used))
            else:
                self.columns = self._grown(max(2 * len(self), len(self) + rows))

    def _forget(self, program: Program) -> None:
        del self._places[program]

    def _gaps(self) -> Iterator[tuple[int, int]]:
        """The free ranges between the programs' rows."""
        at = 1
        for begin, end in sorted((place.begin, place.end) for place in self._places.values()):
            yield at, begin
            at = end
        yield at, len(self)

    def _grown(self, capacity: int) -> Columns:
        """The columns, copied to this larger capacity."""
        old, new = self.columns, self._empty(capacity)
        for name in ("times", "known_a", "known_b", "second", "unguided", "guidance", "c_next", "flags"):
            getattr(new, name)[: len(old.flags)].copy_(getattr(old, name))
        for registers, table in old.tables.items():
            coef = self._zeros(capacity, width(registers), dtype=self._dtype)
            coef[: len(old.flags)].copy_(table.coef)
            new.tables[registers] = Table(coef, new.flags, registers)
        return new

    def _empty(self, capacity: int) -> Columns:
        known_a, known_b, c_next = (self._zeros(capacity, dtype=self._dtype) for _ in range(3))
        times, second = (self._zeros(capacity, dtype=self._time_dtype) for _ in range(2))
        unguided, flags = (self._zeros(capacity, dtype=torch.int32) for _ in range(2))
        guidance = self._zeros(capacity, dtype=torch.float32)
        return Columns(times, known_a, known_b, second, unguided, guidance, c_next, flags, {})

    def _zeros(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._device)

    # ------------------------------------------------------------------------------------------------ their values

    def _write(self, program: Program, begin: int) -> Place:
        columns, packed = self.columns, program.table(dtype=self._dtype)
        times = torch.from_numpy(np.nan_to_num(program.time)).to(self._time_dtype)
        second = torch.from_numpy(np.nan_to_num(np.where(np.isnan(program.second), program.time, program.second)))
        second = second.to(self._time_dtype)
        if not self._places:
            # Idle slots get the first program's first time, which the network surely accepts.
            first = slice(program.evaluating[0], program.evaluating[0] + 1)
            write_rows(0, (columns.times, times[first]), (columns.second, second[first]))
        write_rows(
            begin,
            (columns.times, times),
            (columns.known_a, torch.from_numpy(program.known_a.copy())),
            (columns.known_b, torch.from_numpy(program.known_b.copy())),
            (columns.second, second),
            (columns.unguided, torch.from_numpy(program.unguided.astype(np.int32))),
            (columns.guidance, torch.from_numpy(program.guidance.copy()).float()),
            (columns.c_next, packed.coef[:, C_NEXT]),
            (columns.flags, packed.flags),
            *((table.coef, packed.widen(table.registers).coef) for table in _serving(columns.tables, packed.registers)),
        )
        return Place(begin, begin + len(times), times.to(torch.float64)[program.evaluating].tolist())


def _serving(tables: dict[int, Table], registers: int) -> list[Table]:
    """The tables with at least this many registers."""
    return [table for table in tables.values() if table.registers >= registers]
