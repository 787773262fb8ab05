"""For which conditioning derivatives of a network were held against differences.

A network may hide its dependence on x for some labels alone, so what was seen for others is no proof. A row counts as
seen by the numbers of its own conditioning, so a loop over batches of labels soon has nothing new; one over embeddings
always has, and is looked into at its first :data:`FREE` uses and at one in :data:`EVERY` from there on.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import torch

FREE = 10  # looks that nothing has to be saved up for
EVERY = 16  # uses for one further look: each costs about two
MOST = 100_000  # rows that are remembered


@dataclass
class Held:
    """That a way agreed with differences: for which rows (of :func:`rows_of`), in how many looks and uses.

    wary: it did not at another time, so every new row is looked into.
    """

    seen: set[Hashable] = field(default_factory=set)
    looks: int = 0
    uses: int = 0
    wary: bool = False

    def serves(self, rows: set[Hashable]) -> bool:
        """Whether nothing is new in a use with these rows, or it is not its turn to be looked into."""
        self.uses += 1
        return rows <= self.seen or not (self.wary or self.looks < FREE + self.uses // EVERY)

    def add(self, rows: set[Hashable]) -> None:
        """Note a look that found nothing wrong."""
        self.looks += 1
        if len(self.seen) < MOST:
            self.seen |= rows


def rows_of(cond: Mapping[str, object], chains: int) -> list[Hashable]:
    """What tells the conditioning of one chain from that of another, ``[chains]``; what all share is in each."""
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
        except RuntimeError:  # sparse, nested and other layouts: new each time
            return [object()] * chains
    return [value if isinstance(value, (bool, int, float, str, type(None))) else id(value)] * chains


def _of_tensor(value: torch.Tensor, chains: int) -> list[Hashable]:
    """A number a chain: the elements' sum, each times its own factor."""
    own = value.dim() > 0 and len(value) == chains
    flat = value.reshape(chains if own else 1, -1)
    flat = torch.view_as_real(flat).flatten(1) if flat.is_complex() else flat
    factors = 1 + torch.rand(flat.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    numbers = (flat.double() * factors.to(flat.device)).sum(1).tolist()
    return numbers if own else numbers * chains
