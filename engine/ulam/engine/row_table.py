"""The rows of the programs that the slots run, in tables on the device that stay where they are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ulam_kernels import Table
from ulam_kernels.table import C_NEXT, width

from ..programs.program import Program
from .transfers import write_rows

CAPACITY = 4096  # rows at first: 180 KB for programs of one register


@dataclass(eq=False, slots=True)
class Place:
    """Where a program's rows are, the times of its evaluations as the network is told them, and when it was last used.

    The last is a count of the uses of all programs.
    """

    begin: int
    end: int
    network_times: list[float]
    used: int = 0


@dataclass(frozen=True, eq=False)
class Columns:
    """What there is of every row, ``[capacity]`` each; ``tables`` by their number of registers."""

    times: torch.Tensor  # what the network is told
    known_a: torch.Tensor  # coefficients of a known image and its noise
    known_b: torch.Tensor
    c_next: torch.Tensor  # the scale of the next network input, as in the tables
    flags: torch.Tensor
    tables: dict[int, Table]


class RowTable:
    """Row 0 is the idle row; each program has a range of rows, the same for every number of registers.

    A new program takes rows that are free, or those of programs that no chain runs, the longest unused first. Only
    where that is not enough are the columns made anew, at least twice as long: ``columns`` is then another object.
    Coefficients are rounded once to ``dtype``.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, time_dtype: torch.dtype) -> None:
        self._device, self._dtype, self._time_dtype = device, dtype, time_dtype
        self._places: dict[Program, Place] = {}
        self._loads = 0
        self.columns = self._empty(CAPACITY)

    def __len__(self) -> int:
        """The rows that there is room for."""
        return len(self.columns.flags)

    @property
    def programs(self) -> Collection[Program]:
        """The programs in the table."""
        return self._places.keys()

    def __getitem__(self, program: Program) -> Place:
        return self._places[program]

    def find(self, program: Program) -> Place | None:
        """A program's place, if it has one; it counts as used."""
        place = self._places.get(program)
        if place is not None:
            place.used = self._loads = self._loads + 1
        return place

    def add(self, program: Program, running: Callable[[], Collection[Program]]) -> Place:
        """A place for a program that has none; the programs that are ``running`` keep theirs."""
        self.table(program.registers)  # so that its rows are written there too
        place = self._write(program, self._room(len(program.time), running))
        place.used = self._loads = self._loads + 1
        self._places[program] = place
        return place

    def table(self, registers: int) -> Table:
        """The rows of all programs of at most so many registers, for a state that has just as many."""
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
        """Where there are so many rows free."""
        while True:
            for begin, end in self._gaps():
                if end - begin >= rows:
                    return begin
            kept = running()
            if unused := [program for program in self._places if program not in kept]:
                self._forget(min(unused, key=lambda program: self._places[program].used))
            else:
                self.columns = self._longer(max(2 * len(self), len(self) + rows))

    def _forget(self, program: Program) -> None:
        del self._places[program]

    def _gaps(self) -> Iterator[tuple[int, int]]:
        """The ranges between those of the programs."""
        at = 1
        for begin, end in sorted((place.begin, place.end) for place in self._places.values()):
            yield at, begin
            at = end
        yield at, len(self)

    def _longer(self, capacity: int) -> Columns:
        """The columns with room for more rows."""
        old, new = self.columns, self._empty(capacity)
        for name in ("times", "known_a", "known_b", "c_next", "flags"):
            getattr(new, name)[: len(old.flags)].copy_(getattr(old, name))
        for registers, table in old.tables.items():
            coef = self._zeros(capacity, width(registers), dtype=self._dtype)
            coef[: len(old.flags)].copy_(table.coef)
            new.tables[registers] = Table(coef, new.flags, registers)
        return new

    def _empty(self, capacity: int) -> Columns:
        known_a, known_b, c_next = (self._zeros(capacity, dtype=self._dtype) for _ in range(3))
        times, flags = (self._zeros(capacity, dtype=dtype) for dtype in (self._time_dtype, torch.int32))
        return Columns(times, known_a, known_b, c_next, flags, {})

    def _zeros(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._device)

    # ------------------------------------------------------------------------------------------------ their values

    def _write(self, program: Program, begin: int) -> Place:
        columns, packed = self.columns, program.table(dtype=self._dtype)
        times = torch.from_numpy(np.nan_to_num(program.time)).to(self._time_dtype)
        if not self._places:
            # Idle slots are told the first program's first time, which the network can surely take.
            write_rows(0, (columns.times, times[program.evaluating[0] :][:1]))
        write_rows(
            begin,
            (columns.times, times),
            (columns.known_a, torch.from_numpy(program.known_a.copy())),
            (columns.known_b, torch.from_numpy(program.known_b.copy())),
            (columns.c_next, packed.coef[:, C_NEXT]),
            (columns.flags, packed.flags),
            *((table.coef, packed.widen(table.registers).coef) for table in _serving(columns.tables, packed.registers)),
        )
        return Place(begin, begin + len(times), times.to(torch.float64)[program.evaluating].tolist())


def _serving(tables: dict[int, Table], registers: int) -> list[Table]:
    """The tables of at least so many registers."""
    return [table for table in tables.values() if table.registers >= registers]
