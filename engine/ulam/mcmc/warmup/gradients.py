"""How many gradients a warm-up takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ...samplers.mcmc.chain_state import Evaluated
from ..batch import ChainBatch


class Gradients:
    """Evaluations of the score by the chains of a batch: ``of_chains`` ``[B]`` int64; ``calls``: counted, of all."""

    def __init__(self, batch: ChainBatch) -> None:
        self._batch, self.calls = batch, 0
        self.of_chains = torch.zeros_like(batch.state.chain)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count the calls of the target inside."""
        state = self._batch.state
        evaluate, before = state.evaluate, self.calls

        def counting(at: torch.Tensor, wanted: bool) -> Evaluated:
            self.calls += 1
            return evaluate(at, wanted)

        state.evaluate = counting
        try:
            yield
        finally:
            state.evaluate = evaluate
            self.of_chains += self.calls - before

    def add(self, evaluations: torch.Tensor) -> None:
        """Count these too, ``[B]`` int64."""
        self.of_chains += evaluations
