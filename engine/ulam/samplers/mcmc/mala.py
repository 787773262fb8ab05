"""The Metropolis-adjusted Langevin algorithm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

import ulam_kernels.mcmc as ops

from .chain_sampler import ChainSampler, PerChain, Preconditioner, langevin_step
from .chain_state import ChainState, Columns


@dataclass(frozen=True, eq=False)
class MALA(ChainSampler):
    """ULA's step as a proposal, and a Metropolis test that makes p exactly stationary [Roberts & Tweedie 1996].

    In d dimensions the best step falls as d^(-1/3), with an acceptance of 0.574 [Roberts & Rosenthal 1998].
    step, temperature, preconditioner: see `ChainSampler`. Raises TypeError or ValueError naming the argument.
    """

    step: PerChain | None = None
    temperature: PerChain = 1.0
    preconditioner: Preconditioner = None

    kernel: ClassVar[str | None] = "mala"
    adjusted: ClassVar[bool] = True
    rate: ClassVar[float | None] = 0.574

    def coefficients(self, step: torch.Tensor, temperature: torch.Tensor, rows: torch.Tensor, index: int) -> Columns:
        return step, (2 * step * temperature).sqrt(), 1 / temperature, torch.zeros_like(step)

    def transition(self, state: ChainState, c: Columns) -> torch.Tensor | None:
        proposal = langevin_step(state, c, self.bounds, state.spare)
        energy, score = state.evaluate(proposal, True)
        assert energy is not None and state.energy is not None
        state.accepted, log_ratio = ops.mala_accept(
            state.x, proposal, state.score, score, state.energy, energy, c[0],
            inverse_temperature=c[2], scale=state.scale, **state.ids(), backend=state.backend,
        )  # fmt: skip
        return log_ratio
