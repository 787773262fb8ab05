"""The rows of a batch at which a target is evaluated: all, and near the end of a run those of chains that go on."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..samplers.mcmc.chain_state import Evaluate, Evaluated

SHARE = 0.75  # of the rows evaluated so far: so few chains that go on are evaluated alone
LEAST = 2  # rows: some functions squeeze their result, and are none of one row
FAILURES = (IndexError, RuntimeError, TypeError, ValueError)  # of a function that wants all rows

Bind = Callable[[torch.Tensor, torch.Tensor], Evaluate]  # of states like x [M, *shape], and these rows [M] of the batch


class LiveRows:
    """A target bound to the B rows of a batch, or to those of them whose chains are not done.

    It is called as the target's own `Evaluate`, with the states ``[B, *shape]`` of all rows, and returns as much: of
    the rows left out what an earlier call gave, or zeros. Where the target cannot be called for fewer rows, as one that
    refers to a tensor with a row for each chain, it goes on with all of them.

    Attributes:
        where: ``[B]`` bool, the rows that are evaluated. count: of them.

    Args:
        evaluate: the target bound to all rows. bind: binds it to some of them.
        where: ``[B]`` bool, all of them.
    """

    def __init__(self, evaluate: Evaluate, bind: Bind, where: torch.Tensor) -> None:
        self._of_all, self._bind, self._all = evaluate, bind, where
        self._of_some: Evaluate | None = None
        self._tried = self._refused = False
        self._rows: torch.Tensor | None = None
        self._score: torch.Tensor | None = None
        self._energy: torch.Tensor | None = None
        self.where, self.count = where, len(where)

    def __call__(self, x: torch.Tensor, wanted: bool) -> Evaluated:
        if self._rows is None:
            return self._of_all(x, wanted)
        some = x[self._rows]
        try:
            if self._of_some is None:
                self._of_some = self._bind(some, self._rows)
            energy, score = self._of_some(some, wanted)
        except FAILURES:
            if self._tried:
                raise
            self._refused = True
            self.widen()
            return self._of_all(x, wanted)
        self._tried = True
        self._score = torch.zeros_like(x) if self._score is None else self._score
        self._score[self._rows] = score
        if energy is None:
            return None, self._score
        self._energy = energy.new_zeros(len(x)) if self._energy is None else self._energy
        self._energy[self._rows] = energy
        return self._energy, self._score

    def narrow(self, live: torch.Tensor, count: int) -> None:
        """Evaluate the ``live`` rows ``[B]`` bool alone, ``count`` of them, where it is worth it."""
        if not self._refused and LEAST <= count <= SHARE * self.count:
            self.where, self.count = live.clone(), count
            self._rows, self._of_some = live.nonzero()[:, 0], None

    def widen(self) -> None:
        """Evaluate all rows again."""
        self._rows = self._score = self._energy = None
        self.where, self.count = self._all, len(self._all)
