"""How many gradients a warm-up takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ...samplers.mcmc.chain_state import Evaluated
from ..batch import ChainBatch


class Gradients:
    """Evaluations of the score by the chains of a batch: ``of_chains`` ``[B]`` int64."""

    def __init__(self, batch: ChainBatch) -> None:
        self._batch, self._counting = batch, False
        self.of_chains = torch.zeros_like(batch.state.chain)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count the calls of the target inside, each of all chains; what is added inside is among them."""
        if self._counting:
            yield
            return
        state, calls = self._batch.state, 0
        evaluate = state.evaluate

        def counting(at: torch.Tensor, wanted: bool) -> Evaluated:
            nonlocal calls
            calls += 1
            return evaluate(at, wanted)

        state.evaluate, self._counting = counting, True
        try:
            yield
        finally:
            state.evaluate, self._counting = evaluate, False
            self.of_chains += calls

    def add_own(self) -> None:
        """Count the transition that each chain has made: one a leapfrog step of its own path."""
        ends = self._batch.state.ends or {self._batch.sampler.leaps: None}
        for leaps, chains in ends.items():
            self.of_chains += leaps if chains is None else leaps * chains.long()

    def add(self, evaluations: torch.Tensor) -> None:
        """Count these too, ``[B]`` int64, unless calls are counted."""
        if not self._counting:
            self.of_chains += evaluations
