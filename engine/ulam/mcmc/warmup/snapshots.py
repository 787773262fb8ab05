"""States and scores of all chains, seen now and then in a window of a warm-up."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch


class Snapshots:
    """States and scores of B chains at evenly spaced steps: of twice ``most`` states every second step goes.

    Of more chains than ``most`` evenly spaced ones are taken.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.restart()

    def restart(self) -> None:
        """Forget all."""
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by the number of the step
        self._every, self._step = 1, 0

    def add(self, x: torch.Tensor, score: torch.Tensor) -> bool:
        """See the states x and their scores, both ``[B, *shape]``, of one more step; whether they are kept."""
        self._step += 1
        if self._step % self._every:
            return False
        chains = slice(None, None, -(-len(x) // self._most))
        self._kept[self._step] = x[chains].flatten(1).double(), score[chains].flatten(1).double()
        if len(self) > 2 * self._most:
            self._every *= 2
            self._kept = {step: seen for step, seen in self._kept.items() if not step % self._every}
        return True

    def __len__(self) -> int:
        """How many states are kept."""
        return sum(len(x) for x, _ in self._kept.values())

    def move(self, change: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Change what is kept to other coordinates, from x and score ``[n, d]`` to theirs."""
        self._kept = {step: change(*seen) for step, seen in self._kept.items()}

    def states(self, fold: int = 0, folds: int = 1) -> Seen:
        """What is kept of every ``folds``-th chain from ``fold`` on."""
        parts = [(x[fold::folds], score[fold::folds]) for x, score in self._kept.values()]
        chains = [torch.arange(len(x), device=x.device) for x, _ in parts]
        return Seen(torch.cat([x for x, _ in parts]), torch.cat([score for _, score in parts]), torch.cat(chains))


class Seen(NamedTuple):
    """States: x and score ``[n, d]`` float64, and which chain each is of, ``[n]`` int64."""

    x: torch.Tensor
    score: torch.Tensor
    chain: torch.Tensor

    def joined(self, other: Seen) -> Seen:
        """These and others."""
        return Seen(*(torch.cat(pair) for pair in zip(self, other, strict=True)))
