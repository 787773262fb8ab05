"""Which chains sit in which slots, and when. Plain Python: no tensors, no clock.

A chain's number of ticks is known before it starts, so every departure is known at its arrival. Chains of one job
that enter neighbouring slots together form a group, which also leaves together: the work follows events, not chains.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Job = TypeVar("Job", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Group(Generic[Job]):
    """Chains ``first .. first + len(slots) - 1`` of a job, in neighbouring slots from tick ``start`` until ``end``."""

    job: Job
    first: int
    slots: slice
    start: int
    end: int

    @property
    def size(self) -> int:
        return int(self.slots.stop - self.slots.start)

    @property
    def chains(self) -> slice:
        """Where the group's chains stand in their job."""
        return slice(self.first, self.first + self.size)


@dataclass
class _Waiting(Generic[Job]):
    job: Job
    chains: int
    ticks: int
    admitted: int = 0


@dataclass
class Scheduler(Generic[Job]):
    """First come, first served over a fixed number of slots."""

    slots: int
    tick: int = 0
    groups: list[Group[Job]] = field(default_factory=list)
    _free: list[tuple[int, int]] = field(default_factory=list)
    _queue: deque[_Waiting[Job]] = field(default_factory=deque)
    _ends: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._free = [(0, self.slots)]

    @property
    def busy(self) -> bool:
        return bool(self.groups or self._queue)

    @property
    def active(self) -> int:
        """Slots with a chain."""
        return sum(group.size for group in self.groups)

    def submit(self, job: Job, chains: int, ticks: int) -> None:
        """Queue a job of ``chains`` chains, each lasting ``ticks`` ticks (both at least 1)."""
        self._queue.append(_Waiting(job, chains, ticks))

    def admit(self) -> list[Group[Job]]:
        """Fill the free slots from the queue; the groups that entered."""
        entered = []
        while self._free and self._queue:
            waiting = self._queue[0]
            begin, end = self._free[0]
            count = min(end - begin, waiting.chains - waiting.admitted)
            group = Group(
                waiting.job,
                waiting.admitted,
                slice(begin, begin + count),
                self.tick,
                self.tick + waiting.ticks,
            )
            entered.append(group)
            heapq.heappush(self._ends, group.end)
            waiting.admitted += count
            if waiting.admitted == waiting.chains:
                self._queue.popleft()
            if begin + count == end:
                self._free.pop(0)
            else:
                self._free[0] = (begin + count, end)
        self.groups += entered
        return entered

    @property
    def ticks_until_event(self) -> int:
        """Ticks until the next group leaves; nothing enters before."""
        return self._ends[0] - self.tick if self._ends else 0

    def retire(self) -> list[Group[Job]]:
        """Free the slots of the groups that end at this tick; those groups."""
        if not self._ends or self._ends[0] > self.tick:
            return []
        left = [group for group in self.groups if group.end <= self.tick]
        self.groups = [group for group in self.groups if group.end > self.tick]
        while self._ends and self._ends[0] <= self.tick:
            heapq.heappop(self._ends)
        self._free = _merged(self._free + [(group.slots.start, group.slots.stop) for group in left])
        return left


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted ranges, neighbours joined."""
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if joined and joined[-1][1] == begin:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    return joined
