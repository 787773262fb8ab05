"""The rows of all programs that a runner has met, in one table."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ulam_kernels import Table

from .program import Program


class Rows:
    """Row 0 is the idle row, then come the programs in the order in which they were added.

    table: the coefficients, rounded once to ``dtype``. time: ``[rows]``, what the network is told, as ``time_dtype``.
    blends: the ``[rows, 2]`` coefficients of known image and noise, program by program.
    """

    table: Table
    time: torch.Tensor

    def __init__(self, device: torch.device, dtype: torch.dtype, time_dtype: torch.dtype) -> None:
        self._device, self._dtype, self._time_dtype = device, dtype, time_dtype
        self._begins: dict[Program, int] = {}
        self._told: dict[Program, list[float]] = {}
        self._tables: list[Table] = []
        self._times: list[torch.Tensor] = []
        self.blends: list[torch.Tensor] = []

    def __contains__(self, program: Program) -> bool:
        return program in self._begins

    def add(self, program: Program) -> None:
        """Append a program's rows."""
        table = program.table(dtype=self._dtype, device=self._device)
        if not self._tables:
            # Idle slots are told the first program's first time, which the network can surely take.
            idle = Table(torch.zeros_like(table.coef[:1]), torch.zeros_like(table.flags[:1]), table.registers)
            self._append(idle, program.time[program.evaluates][:1], torch.zeros(1, 2))
        self._begins[program] = sum(map(len, self._tables))
        known = torch.from_numpy(np.stack([program.known_a, program.known_b], axis=1)).to(torch.float32)
        self._append(table, program.time, known)
        registers = max(table.registers for table in self._tables)
        self.table = Table.cat([table.widen(registers) for table in self._tables])
        self.time = torch.cat(self._times)
        self._told[program] = self._times[-1].to("cpu", torch.float64)[program.evaluating].tolist()

    def begin(self, program: Program) -> int:
        """Where a program's rows begin in the table."""
        return self._begins[program]

    def told(self, program: Program) -> list[float]:
        """The times of a program's evaluations, as the network is told them."""
        return self._told[program]

    def _append(self, table: Table, time: npt.NDArray[np.float64], known: torch.Tensor) -> None:
        self._tables.append(table)
        self.blends.append(known)
        self._times.append(torch.from_numpy(np.nan_to_num(time)).to(self._device, self._time_dtype))
