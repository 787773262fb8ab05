"""What ``pytest --quick`` leaves, as ``make test`` runs it; ``make test-all`` runs everything.

Tests marked ``long`` go, and of one over several parameters every value of each stays, but not every pair of them. Of
GPU architectures one stays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import TypeVar

import pytest

ARCHITECTURES = (90, "sm_90")  # of those that a test compiles for
Value = TypeVar("Value", bound=Hashable)


def fewest(cases: Sequence[frozenset[Value]]) -> list[int]:
    """The places of cases that together hold all values: first those that hold most of what is left, in their order."""
    left: set[Value] = set().union(*cases)
    places, kept = list(range(len(cases))), []
    while left:
        best = max(places, key=lambda place: len(cases[place] & left))
        kept.append(best)
        left -= cases[best]
    return sorted(kept)


def values(item: pytest.Function) -> frozenset[Hashable]:
    """A case's parameters; by value where they are words or numbers, otherwise each object is one of its own."""
    told: list[Hashable] = []
    for name, value in item.callspec.params.items():
        written = value is None or isinstance(value, (str, int, float))
        told.append((name, type(value), repr(value) if written else id(value)))
    return frozenset(told)


def split(items: Sequence[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """The items that are kept and those that are not, in their order."""
    tests: dict[tuple[object, str], list[pytest.Function]] = defaultdict(list)
    dropped = set()
    for item in items:
        if item.get_closest_marker("long"):
            dropped.add(item)
        elif isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            tests[item.parent, item.originalname].append(item)
    for cases in tests.values():
        if any(case.callspec.params.get("architecture") in ARCHITECTURES for case in cases):
            others = [case for case in cases if case.callspec.params["architecture"] not in ARCHITECTURES]
            dropped.update(others)
            cases = [case for case in cases if case not in others]
        kept = set(fewest([values(case) for case in cases]))
        dropped.update(case for place, case in enumerate(cases) if place not in kept)
    return [item for item in items if item not in dropped], [item for item in items if item in dropped]
