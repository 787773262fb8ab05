"""How many gradients a warm-up takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ...samplers.mcmc.chain_state import Evaluated
from ..batch import ChainBatch


class Gradients:
    """Evaluations of the score by the chains of a batch: ``calls``, each of all chains; ``of_chains`` ``[B]`` int64."""

    def __init__(self, batch: ChainBatch) -> None:
        self._batch, self.calls = batch, 0
        self.of_chains = torch.zeros_like(batch.state.chain)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count the calls of the target inside."""
        state = self._batch.state
        evaluate = state.evaluate

        def counting(at: torch.Tensor, wanted: bool) -> Evaluated:
            self.calls += 1
            return evaluate(at, wanted)

        state.evaluate = counting
        try:
            yield
        finally:
            state.evaluate = evaluate
            self.of_chains.fill_(self.calls)

    def add(self, calls: int) -> None:
        """Count these too, of all chains."""
        self.calls += calls
        self.of_chains.fill_(self.calls)
