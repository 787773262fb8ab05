"""The rows of a batch at which a target is evaluated: all, and near the end of a run those of chains that go on."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..samplers.mcmc.chain_state import Evaluate, Evaluated

SHARE = 0.75  # of the rows evaluated so far: so few are evaluated alone
MULTIPLE = 32  # numbers of rows are multiples of it, for which products of matrices keep most rows' bits
FAILURES = (IndexError, RuntimeError, TypeError, ValueError)  # of a function that wants all rows

Bind = Callable[[torch.Tensor, torch.Tensor], Evaluate]  # of states like x [M, *shape], and these rows [M] of the batch


class LiveRows:
    """A target bound to the B rows of a batch, or to those of them whose chains are not done.

    It is called as the target's own `Evaluate`, with the states ``[B, *shape]`` of all rows, and returns as much: of
    the rows left out what an earlier call gave, or zeros. The first call for fewer rows is one for all rows as well.
    Where the bits of a row differ, as of targets that round by the size of their batch, or the target cannot be called
    for fewer rows, as one that refers to a tensor with a row for each chain, it goes on with all of them.

    Attributes:
        where: ``[B]`` bool, the rows that are evaluated. count: of them. evaluated: ``[B]`` int64, evaluations of every
            row in the last call.

    Args:
        evaluate: the target bound to all rows. bind: binds it to some of them.
        where: ``[B]`` bool, all of them.
    """

    def __init__(self, evaluate: Evaluate, bind: Bind, where: torch.Tensor) -> None:
        self._of_all, self._bind, self._all = evaluate, bind, where
        self._of_some: Evaluate | None = None
        self._refused = False
        self._rows: torch.Tensor | None = None
        self._score: torch.Tensor | None = None
        self._energy: torch.Tensor | None = None
        self.where, self.count, self.evaluated = where, len(where), where.long()

    def __call__(self, x: torch.Tensor, wanted: bool) -> Evaluated:
        self.evaluated = self.where.long()
        if self._rows is None:
            return self._of_all(x, wanted)
        if self._of_some is None:
            return self._first(x, wanted, self._rows)
        return self._completed(x, self._of_some(x[self._rows], wanted), self._rows)

    def _first(self, x: torch.Tensor, wanted: bool, rows: torch.Tensor) -> Evaluated:
        """Call the target for these rows, and for all of them, and go on with these where their bits are the same."""
        whole, some = self._of_all(x, wanted), x[rows]
        self.evaluated = self._all.long()
        try:
            self._of_some = self._bind(some, rows)
            found = self._of_some(some, wanted)
            self.evaluated += self.where
            pairs = [
                (one, every) for one, every in zip(found, whole, strict=True) if one is not None and every is not None
            ]
            alike = bool(torch.stack([_same(one, every[rows]) for one, every in pairs]).all())
        except FAILURES:
            alike = False
        if alike:
            return self._completed(x, found, rows)
        self._refused = True
        self.widen()
        return whole

    def _completed(self, x: torch.Tensor, found: Evaluated, rows: torch.Tensor) -> Evaluated:
        energy, score = found
        self._score = torch.zeros_like(x) if self._score is None else self._score
        self._score[rows] = score
        if energy is None:
            return None, self._score
        self._energy = energy.new_zeros(len(x)) if self._energy is None else self._energy
        self._energy[rows] = energy
        return self._energy, self._score

    def narrow(self, live: torch.Tensor, count: int) -> None:
        """Evaluate the ``live`` rows ``[B]`` bool, ``count`` of them, and few others, where it is worth it."""
        size = -(-count // MULTIPLE) * MULTIPLE
        if not self._refused and 0 < size <= SHARE * self.count:
            self._rows = torch.argsort(~live, stable=True)[:size].sort().values
            self.where, self.count = torch.zeros_like(live).index_fill_(0, self._rows, True), size
            self._of_some = None

    def widen(self) -> None:
        """Evaluate all rows again."""
        self._rows = self._score = self._energy = None
        self.where, self.count = self._all, len(self._all)


def _same(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Whether all bits are the same, or both are NaN: ``[]`` bool."""
    return ((one == other) & (one.signbit() == other.signbit()) | one.isnan() & other.isnan()).all()
