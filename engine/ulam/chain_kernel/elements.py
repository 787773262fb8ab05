"""Elements of vectors by number: what moves them about, as views, slices and concatenations do, moves numbers.

A tensor that depends on x is known by the numbers of its elements, for a batch of two chains: those of the second are
`SECOND` higher, unless an element is the same for all chains, whose numbers are negative. An operation that mixes
chains is found by that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

SECOND = 1 << 40
BATCH = 2


@dataclass(frozen=True, eq=False)
class Source:
    """Where elements come from. node: the operation; width: their number; begin: the number of the first."""

    node: Node
    width: int
    begin: int


@dataclass(frozen=True, eq=False)
class Input(Source):
    """x itself."""


@dataclass(frozen=True, eq=False)
class Known(Source):
    """What does not depend on x. kind: "row", "chain" or "constant", whose value is ``literal`` unless the node's.

    inverse: 1 over it.
    """

    kind: str
    literal: torch.Tensor | None = None
    inverse: bool = False


@dataclass(frozen=True, eq=False)
class Product(Source):
    """A matrix times elements, plus a bias."""

    of: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True, eq=False)
class Activation(Source):
    """A function of each element."""

    of: torch.Tensor
    function: str
    parameter: float | None = None


@dataclass(frozen=True, eq=False)
class Pair(Source):
    """The sum, difference or product of elements."""

    function: str
    a: torch.Tensor
    b: torch.Tensor


@dataclass(frozen=True, eq=False)
class Normed(Source):
    """Elements less their mean over their standard deviation, times weight, plus bias."""

    of: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    eps: float


class Elements:
    """All sources, and the numbers of their elements."""

    def __init__(self) -> None:
        self.sources: list[Source] = []
        self._ends: list[int] = []
        self._same: list[Source] = []
        self._same_ends: list[int] = []

    def next(self, same: bool = False) -> int:
        """The number of the next source's first element; ``same``: for all chains."""
        if same:
            return self._same_ends[-1] if self._same_ends else 0
        return self._ends[-1] if self._ends else 0

    def add(self, source: Source, shape: Sequence[int], same: bool = False, batched: bool = True) -> torch.Tensor:
        """The numbers of a new source's elements, as a tensor of this shape behind the batch."""
        ends, sources = (self._same_ends, self._same) if same else (self._ends, self.sources)
        ends.append(source.begin + source.width)
        sources.append(source)
        numbers = torch.arange(source.begin, source.begin + source.width).reshape(list(shape))
        if same:
            numbers = -1 - numbers
            return torch.stack([numbers, numbers]) if batched else numbers
        return torch.stack([numbers, numbers + SECOND])

    def of(self, number: int) -> tuple[Source, int]:
        """The source of an element, and its place there."""
        sources, ends = (self._same, self._same_ends) if number < 0 else (self.sources, self._ends)
        at = -1 - number if number < 0 else number
        place = int(torch.searchsorted(torch.tensor(ends), at, right=True))
        return sources[place], at - sources[place].begin

    def groups(self, numbers: torch.Tensor) -> list[tuple[Source, torch.Tensor, torch.Tensor]]:
        """The sources of these elements in order of their first, each with the elements' columns and places there."""
        found: dict[Source, tuple[list[int], list[int]]] = {}
        for column, number in enumerate(numbers.tolist()):
            source, place = self.of(number)
            columns, places = found.setdefault(source, ([], []))
            columns.append(column)
            places.append(place)
        return [(source, torch.tensor(columns), torch.tensor(places)) for source, (columns, places) in found.items()]


def mixes_chains(numbers: torch.Tensor) -> bool:
    """Whether these numbers, of a batch of two, are not the same elements of either chain."""
    if numbers.dim() == 0 or len(numbers) != BATCH:
        return True
    first, second = numbers
    return bool((first >= SECOND).any()) or not torch.equal(second, torch.where(first < 0, first, first + SECOND))
