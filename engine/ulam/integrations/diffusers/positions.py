"""Which row a call of `step` executes: found by its timestep, or counted on from the call before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from .arguments import check_batch, check_timestep
from .call_table import CallTable
from .threads import Threaded
from .translation import numbers

Timestep = float | torch.Tensor


class Positioned(Threaded):
    """A scheduler that knows where in its timesteps a call is."""

    counted: ClassVar[bool] = True  # calls are counted from the first on, as diffusers counts them

    def _row(self, calls: CallTable, timestep: Timestep, sample: torch.Tensor) -> int | torch.Tensor:
        """The row of this call, or the rows of its chains [B]; counts the call."""
        local = self._local
        if not self.counted:
            row = calls.rows.get(local.times.value(timestep))
            if row is not None:
                return row
        if isinstance(timestep, torch.Tensor) and timestep.numel() > 1:
            check_batch(sample, "sample")
            return self._rows_of_chains(calls, timestep, len(sample))
        if not self.counted:
            return self._looked_up(calls, timestep)
        position = local._step_index
        if not position or position >= calls.length or local.times.value(timestep) == calls.first:
            position = self._position(calls, timestep)  # a loop may begin here
        if local.row_offset is None:
            try:
                local.row_offset = calls.row_offset(local.start)
            except ValueError:  # no rows from there on
                local.start, local.row_offset, local._step_index = local.before or (0, None, None)
                raise
        local._step_index = position + 1
        return position + local.row_offset

    def _step_back(self, of_chains: bool) -> None:
        """Restore the progress before a call that was refused after `_row`."""
        local = self._local
        if not self.counted:
            return
        if of_chains:
            local.chains = local.chains_before
            return
        assert local._step_index is not None
        local._step_index -= 1
        if local._step_index == local.start and local.before is not None:
            local.start, local.row_offset, local._step_index = local.before

    def _looked_up(self, calls: CallTable, timestep: Timestep) -> int:
        """The row of a timestep of a scheduler that does not count calls."""
        position = self._lookup(calls, timestep)
        row = position + calls.row_offset(position)
        if position >= 0:
            calls.rows[calls.times[position]] = row
        return row

    def _position(self, calls: CallTable, timestep: Timestep) -> int:
        """The position of this call in the timesteps: the next one, except where a loop begins (anew)."""
        local = self._local
        position = local._step_index
        if position is None or position >= calls.length:
            return self._begun(calls, timestep)
        if position and local.times.value(timestep) == calls.first and self._begins_anew(calls, position, timestep):
            return self._begun(calls, timestep)
        return position

    def _begun(self, calls: CallTable, timestep: Timestep) -> int:
        """The position that a loop begins at: that of `set_begin_index`, or else its timestep's."""
        local = self._local
        begin = local._begin_index
        position = self._lookup(calls, timestep) if begin is None else checked_begin(calls, begin)
        local.before = local.start, local.row_offset, local._step_index
        local.start, local.row_offset, local._step_index = position, None, position
        return position

    def _begins_anew(self, calls: CallTable, position: int, timestep: Timestep) -> bool:
        """Whether the first timestep's value, given after it, begins a new loop: not where it is due once more."""
        return calls.times[position] != calls.first or self._local.times.position(timestep) == 0

    def _lookup(self, calls: CallTable, timestep: Timestep) -> int:
        """The position of a timestep among `self.timesteps`; of equal ones the one that it is an element of.

        Where it is no element, the first of equal ones if that is the first timestep, else the second, as in diffusers.
        """
        times = self._local.times
        value = times.value(timestep)
        time = float(timestep if value is None else value)
        if not math.isfinite(time):
            raise ValueError(f"timestep: got {time}, expected one of scheduler.timesteps")
        equal = calls.positions.get(time, ())
        if len(equal) > 1:
            position = times.position(timestep)
            return position if position in equal else self._among(equal)
        return self._at(calls, time)

    def _at(self, calls: CallTable, time: float) -> int:
        """The position of a timestep's value that occurs once at most. Raises ValueError where it does not occur."""
        return calls.position_of(time)

    def _among(self, equal: Sequence[int]) -> int:
        """Of the positions of equal timesteps the one that a loop begins at."""
        return equal[0] if equal[0] == 0 else equal[1]

    def _rows_of_chains(self, calls: CallTable, timestep: torch.Tensor, chains: int) -> torch.Tensor:
        """[B] rows; a chain goes on where it was if its timestep is the next there, and otherwise begins at it."""
        local = self._local
        check_timestep(timestep)
        times = timestep.tolist()
        if timestep.dim() != 1 or len(times) != chains:
            raise ValueError(f"timestep: got shape {list(timestep.shape)}, expected a number or [{chains}]")
        known = local.chains if local.chains is not None and len(local.chains) == chains else [(-1, 0)] * chains
        now = []
        for time, (before, offset) in zip(times, known, strict=True):
            position = before + 1
            if before < 0 or position not in calls.positions.get(time, ()):
                position = self._first_of_chain(calls, time)
                offset = calls.row_offset(position)
            now.append((position, offset))
        if self.counted:
            local.chains_before, local.chains = local.chains, now
        rows = [position + offset for position, offset in now]
        return torch.tensor(rows, device=timestep.device)

    def _first_of_chain(self, calls: CallTable, time: float) -> int:
        """The position that a chain begins at: that of `set_begin_index`, if its timestep is the one there."""
        equal, begin = calls.positions.get(time, ()), self._local._begin_index
        if begin in equal:
            return begin  # type: ignore[return-value]
        return self._among(equal) if len(equal) > 1 else self._at(calls, time)


def index_for_timestep(self: Any, timestep: Timestep, schedule_timesteps: Any = None) -> int:
    """The position of a timestep for diffusers' `add_noise`: where a loop begins at it. Replaces diffusers' method."""
    times = self.timesteps if schedule_timesteps is None else schedule_timesteps
    equal = np.flatnonzero(numbers(times) == float(timestep)).tolist()
    if len(equal) > 1:
        known = getattr(self._local, "times", None)
        position = known.position(timestep) if known is not None else None
        return position if position in equal else self._among(equal)  # type: ignore[no-any-return]
    return self._original.index_for_timestep(self, timestep, schedule_timesteps)  # type: ignore[no-any-return]


def checked_begin(calls: CallTable, begin: Any) -> int:
    """What `set_begin_index` set. Raises ValueError where there is no such position."""
    if isinstance(begin, bool) or not isinstance(begin, (int, np.integer)) or not 0 <= begin < calls.length:
        raise ValueError(f"begin_index: got {begin!r}, expected a position of the {calls.length} timesteps")
    return int(begin)
