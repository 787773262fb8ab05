"""Units: chains of a job, and the key of all that their bytes depend on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# The parts of a job that its bytes depend on, in the order in which a difference is named.
PARTS = (
    "weights", "sampler", "seed", "chains", "cond", "guidance", "x_init", "known", "labels", "finish", "shape", "dtype",
    "slots", "options",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PlannedUnit:
    """Chains ``begin`` to ``end`` (places, not ids) of a job, and the key of their work in any environment."""

    job: int
    begin: int
    end: int
    key: str


def units_of(jobs: Iterable[tuple[int, list[str]]], unit: int) -> Iterator[PlannedUnit]:
    """The units of jobs, each given by its number of chains and its keys. Raises ValueError unless there is a key for
    each.
    """
    for number, (chains, keys) in enumerate(jobs):
        for begin, key in zip(range(0, chains, unit), keys, strict=True):
            yield PlannedUnit(number, begin, min(begin + unit, chains), key)
