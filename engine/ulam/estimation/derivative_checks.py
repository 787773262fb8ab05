"""For which conditioning the derivatives of a network were compared with finite differences.

A network may hide its dependence on x for some labels only, so other labels prove nothing. A row counts as seen by the
numbers of its own conditioning: a loop over batches of labels soon meets nothing new; a loop over embeddings always
does, and is checked at its first :data:`FREE` uses and at one in :data:`EVERY` from then on.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import torch

FREE = 10  # checks at once
EVERY = 16  # uses per further check, which costs about two uses
MOST = 100_000  # rows remembered


@dataclass
class Held:
    """A way that agreed with differences: for which rows (of :func:`rows_of`), in how many checks and uses.

    wary: it disagreed at another time, so every new row is checked.
    """

    seen: set[Hashable] = field(default_factory=set)
    looks: int = 0
    uses: int = 0
    wary: bool = False

    def serves(self, rows: set[Hashable]) -> bool:
        """Whether a use with these rows needs no check: none is new, or no check is due."""
        self.uses += 1
        return rows <= self.seen or not (self.wary or self.looks < FREE + self.uses // EVERY)

    def add(self, rows: set[Hashable]) -> None:
        """Note a check of these rows that found nothing wrong."""
        self.looks += 1
        if len(self.seen) < MOST:
            self.seen |= rows


def rows_of(cond: Mapping[str, object], chains: int) -> list[Hashable]:
    """A key for the conditioning of each chain, ``[chains]``; what all chains share is part of every key."""
    columns = [_column(value, chains) for _, value in sorted(cond.items())]
    return list(zip(*columns, strict=True)) if columns else [()] * chains


def _column(value: object, chains: int) -> list[Hashable]:
    if isinstance(value, Mapping):
        return rows_of({str(key): inner for key, inner in value.items()}, chains)
    if isinstance(value, (list, tuple)):
        return rows_of({str(place): inner for place, inner in enumerate(value)}, chains)
    if isinstance(value, torch.Tensor):
        try:
            return _of_tensor(value.detach(), chains)
        except RuntimeError:  # sparse, nested and other layouts count as new each time
            return [object()] * chains
    return [value if isinstance(value, (bool, int, float, str, type(None))) else id(value)] * chains


def _of_tensor(value: torch.Tensor, chains: int) -> list[Hashable]:
    """A number per chain: the sum of its elements, each times a factor of its own."""
    own = value.dim() > 0 and len(value) == chains
    flat = value.reshape(chains if own else 1, -1)
    flat = torch.view_as_real(flat).flatten(1) if flat.is_complex() else flat
    factors = 1 + torch.rand(flat.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    numbers = (flat.double() * factors.to(flat.device)).sum(1).tolist()
    return numbers if own else numbers * chains
