"""The replicas of the chains of a batch: their temperatures, and the swaps between neighbours [Geyer 1991]."""

from __future__ import annotations

import torch

import ulam_kernels.mcmc as ops

from ..noise import DRAWS_PER_ROW, SWAP
from ..samplers.mcmc.chain_sampler import ChainSampler
from ..samplers.mcmc.chain_state import ChainState
from ..samplers.mcmc.tempering import ParallelTempering


class Replicas:
    """K replicas of each of B chains, in rows b K + k; one replica, which never swaps, without tempering.

    ``count``: K. ``swapped`` ``[B, K - 1]`` int64: accepted swaps of neighbours since :meth:`forget`.
    """

    def __init__(self, tempering: ParallelTempering | None, chains: int, device: torch.device) -> None:
        self._tempering = tempering
        ladder = [1.0] if tempering is None else list(tempering.temperatures)
        self.count = len(ladder)
        self._ladder = torch.tensor(ladder, dtype=torch.float64, device=device)
        self._every = 1 if tempering is None else tempering.swap_every
        self.swapped = torch.zeros(chains, self.count - 1, dtype=torch.int64, device=device)
        self._attempts = [0, 0]  # of the even pairs, and of the odd ones

    def heated(
        self, sampler: ChainSampler, step: torch.Tensor, temperature: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Steps and temperatures of all rows ``[B K]``, float64, given those of the sampler."""
        if self._tempering is None:
            return step, temperature
        temperature = self._ladder.repeat(len(step) // self.count)
        if self._tempering.scaled:
            step = step * (temperature.sqrt() if sampler.step_is_a_time else temperature)
        return step, temperature

    def rows(self, chains: torch.Tensor) -> torch.Tensor:
        """b K + k for the chains b ``[B]`` and all k: ``[B K]``."""
        return (chains[:, None] * self.count + torch.arange(self.count, device=chains.device)).flatten()

    def until_swap(self, index: int) -> int:
        """Steps from step ``index`` to the next swap, at least 1."""
        return self._every - index % self._every

    def swap_due(self, index: int) -> bool:
        """Whether neighbours swap before step ``index``."""
        return self._tempering is not None and index % self._every == 0

    def swap(self, state: ChainState, temperature: torch.Tensor, index: int) -> None:
        """Swap neighbours before step ``index``, the even pairs and the odd ones in turn; temperatures ``[B K]``."""
        energy = state.energy
        assert energy is not None and self._tempering is not None
        odd = index // self._every % 2
        self._attempts[odd] += 1
        low = torch.arange(odd, self.count - 1, 2, device=state.x.device)
        if not len(low):
            return
        grid = torch.arange(len(state.x), device=state.x.device).view(-1, self.count)
        first, second = grid[:, low].flatten(), grid[:, low + 1].flatten()
        beta = 1 / temperature
        log_ratio = (beta[first] - beta[second]) * (energy[first] - energy[second])
        # The uniform is that of the lower replica at the step before, which was the last one.
        draw = state.draw[first] - DRAWS_PER_ROW + SWAP.stage
        accepted = ops.accept(
            log_ratio, [], seed=state.seed[first], chain=state.chain[first], draw=draw, backend=state.backend
        )
        order = grid.flatten().clone()
        order[first], order[second] = torch.where(accepted, second, first), torch.where(accepted, first, second)
        state.x, state.score, state.energy = state.x[order], state.score[order], energy[order]
        if state.v is not None:
            sampler = self._tempering.sampler
            state.v = sampler.at_temperature(state.v[order], temperature / temperature[order])
        self.swapped[:, low] += accepted.view(-1, len(low))

    def forget(self) -> None:
        """Count swaps from here on."""
        self.swapped.zero_()
        self._attempts = [0, 0]

    def swap_rates(self) -> torch.Tensor | None:
        """Shares of accepted swaps ``[B, K - 1]`` float64, None without tempering."""
        if self._tempering is None:
            return None
        attempts = [max(self._attempts[k % 2], 1) for k in range(self.count - 1)]
        return self.swapped.double() / torch.tensor(attempts, device=self.swapped.device)
