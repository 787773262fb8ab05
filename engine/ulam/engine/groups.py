"""Groups of chains in neighbouring slots, and ranges of free slots between them. Plain Python."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic

from .fair_shares import J


@dataclass(slots=True, eq=False)
class Group(Generic[J]):
    """Chains ``first .. first + len(slots) - 1`` of a job, in neighbouring slots from tick ``start`` until ``end``."""

    job: J
    first: int
    slots: slice
    start: int
    end: int
    size: int = field(init=False)
    chains: slice = field(init=False)  # their indices in the job
    record: Any = field(init=False, default=None)  # what is recorded of them

    def __post_init__(self) -> None:
        self.size = int(self.slots.stop - self.slots.start)
        self.chains = slice(self.first, self.first + self.size)


def merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ranges sorted, adjacent ones joined."""
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if joined and joined[-1][1] == begin:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    return joined
