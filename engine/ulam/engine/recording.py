"""What jobs record of their chains on the way: states, outputs, and |z|^2 of the noise, row by row.

A row's record is written with its states and before its tick counts as done: a tick that is interrupted in between is
torn, and the rows of a run that begins anew write over the same places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..conditioning import Shared
from .branches import Outputs
from .buffers import Buffers
from .groups import Group
from .guided_outputs import prediction, weighted
from .job import Job
from .rollout import Rollout

Rows = list[tuple[Group[Job], int]]  # groups with the row of their program that they execute


@dataclass(eq=False)
class Record:
    """What was recorded of a group's chains: ``states`` [rows + 1, n, *shape], ``history`` [rows + 1, R - 1, n, *shape]
    of samplers with further registers, ``squares`` [rows, n] int64, ``outputs`` [rows, n, *shape]; shape and dtype of
    the states, the slots there were, and copies of the conditioning, which callers may use again.
    """

    rows: range
    states: torch.Tensor | None
    history: torch.Tensor | None
    squares: torch.Tensor | None
    outputs: torch.Tensor | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    slots: int
    cond: dict[str, torch.Tensor | Shared]
    uncond: dict[str, torch.Tensor | Shared]


class Recorder:
    """Writes the records of the groups in the slots."""

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        self.squares: torch.Tensor | None = None  # [slots], what the step adds to, once a job asks for it

    def of_step(self) -> dict[str, Any]:
        """What the next step adds the squares of its noise to, as its argument."""
        return {} if self.squares is None else {"squares": self.squares.zero_()}

    def begin(self, rows: Rows) -> None:
        """Allocate what these groups need, and keep the states before the first row that is recorded."""
        buffers = self._buffers
        for group, row in rows:
            rollout = group.job.rollout
            assert rollout is not None
            if group.record is None:
                group.record = self._empty(rollout, group)
            record: Record = group.record
            if row == record.rows.start:
                self._keep_states(record, group, 0)
            if rollout.log_prob and self.squares is None:
                with torch.inference_mode(False):
                    self.squares = torch.zeros(buffers.size, dtype=torch.int64, device=buffers.device)

    def keep(self, rows: Rows, outputs: Outputs | None = None) -> None:
        """Keep what these rows have done; ``outputs``: what they used of the network, where it is wanted."""
        for group, row in rows:
            record: Record = group.record
            if row not in record.rows:
                continue
            at = row - record.rows.start
            self._keep_states(record, group, at + 1)
            if record.squares is not None and self.squares is not None:
                record.squares[at].copy_(self.squares[group.slots], non_blocking=True)
            if record.outputs is not None and outputs is not None:
                record.outputs[at].copy_(self._guided(group, outputs), non_blocking=True)

    def _keep_states(self, record: Record, group: Group[Job], at: int) -> None:
        state = self._buffers.state
        if record.states is not None:
            record.states[at].copy_(state[0, group.slots], non_blocking=True)
        if record.history is not None:
            record.history[at].copy_(state[1 : 1 + record.history.shape[1], group.slots], non_blocking=True)

    def _empty(self, rollout: Rollout, group: Group[Job]) -> Record:
        buffers, program, chains = self._buffers, group.job.program, group.size
        rows = rollout.window(program)
        device = torch.device("cpu") if rollout.host else buffers.device
        pinned = rollout.host and buffers.device.type == "cuda"

        def empty(*sizes: int, dtype: torch.dtype = buffers.dtype, of: float = 0) -> torch.Tensor:
            return torch.full(sizes, of, dtype=dtype, device=device, pin_memory=pinned)

        more, count = program.registers - 1, len(rows)
        with torch.inference_mode(False):  # records outlive the call, and may take part in a graph
            return Record(
                rows,
                empty(count + 1, chains, *buffers.shape) if rollout.states else None,
                empty(count + 1, more, chains, *buffers.shape) if rollout.states and more else None,
                empty(count, chains, dtype=torch.int64) if rollout.log_prob else None,
                empty(count, chains, *buffers.shape, of=torch.nan) if rollout.outputs else None,
                buffers.shape,
                buffers.dtype,
                buffers.size,
                _copied(group.job.cond, group.chains),
                _copied(group.job.uncond, group.chains),
            )

    def _guided(self, group: Group[Job], outputs: Outputs) -> torch.Tensor:
        """The output of these chains that their row uses."""
        at, shape, u = group.slots, self._buffers.shape, outputs.uncond
        other = None if u is None else prediction(u[at], shape)
        return weighted(prediction(outputs.m[at], shape), other, outputs.weight[at])


def _copied(cond: dict[str, torch.Tensor | Shared], chains: slice) -> dict[str, torch.Tensor | Shared]:
    return {
        name: Shared(value.tensor.clone()) if isinstance(value, Shared) else value[chains].clone()
        for name, value in cond.items()
    }
