"""Jobs with chains in a scheduler's queue or slots, and how free slots are shared among them. Plain Python."""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

J = TypeVar("J", bound=Hashable)


@dataclass
class JobRecord(Generic[J]):
    """A job with chains in the queue or in slots: how many of its ``chains`` have ``entered``, how many slots it holds
    (``held``). ``stamp``: of its current entry in the queue.
    """

    job: J
    number: int
    ticks: int
    chains: int
    priority: int
    weight: float
    latest: float  # the tick by which it must have all slots to meet its deadline
    entered: int = 0
    held: int = 0
    stamp: int = 0
    pressing: bool = False

    def __post_init__(self) -> None:
        self.waiting = self.chains  # without a slot so far


def check_numbers(chains: int, ticks: int, priority: int, weight: float, deadline: float | None) -> None:
    """Raises ValueError for an invalid argument of a submission, named in the message."""
    for name, value in (("chains", chains), ("ticks", ticks)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise ValueError(f"priority: got {priority!r}, expected a whole number (higher is sooner)")
    if not 0 < weight < math.inf:
        raise ValueError(f"weight: got {weight!r}, expected a finite number above 0")
    if deadline is not None and not math.isfinite(deadline):
        raise ValueError(f"deadline: got {deadline!r}, expected a number of ticks from now, or None")


def shares(records: list[JobRecord[J]], vacant: int) -> list[tuple[JobRecord[J], int]]:
    """How many of the vacant slots each job gets: each goes to the least (slots held + 1) / weight, ties by submission.

    Most are dealt out in bulk: with a level such that the sum of max(level weight - held, 0) is the number of slots,
    each job gets the slots that keep it below the level.
    """
    if len(records) == 1:
        return [(records[0], min(records[0].waiting, vacant))]
    counts = [0] * len(records)
    live = list(range(len(records)))
    while vacant > 2 * len(live) > 0:
        under, before = live, None
        while under != before:
            level = (vacant + sum(records[i].held + counts[i] for i in under)) / sum(records[i].weight for i in under)
            before, under = under, [i for i in under if records[i].held + counts[i] < level * records[i].weight]
        for i in under:
            more = math.floor(level * records[i].weight) - records[i].held - counts[i] - 1
            more = min(max(more, 0), records[i].waiting - counts[i])
            counts[i] += more
            vacant -= more
        live = [i for i in live if counts[i] < records[i].waiting]
    turns = [((records[i].held + counts[i] + 1) / records[i].weight, records[i].number, i) for i in live]
    heapq.heapify(turns)
    while vacant and turns:
        _, number, i = heapq.heappop(turns)
        counts[i] += 1
        vacant -= 1
        if counts[i] < records[i].waiting:
            heapq.heappush(turns, ((records[i].held + counts[i] + 1) / records[i].weight, number, i))
    return [(record, counts[i]) for i, record in enumerate(records)]
