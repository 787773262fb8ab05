"""Parallel tempering: which replicas a chain has, and when they swap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ulam_kernels.arguments import described, switch

from ...arguments import whole_number
from .chain_sampler import ChainSampler, check_numbers, copied


@dataclass(frozen=True, eq=False)
class ParallelTempering:
    """Replicas of every chain at several temperatures, neighbours swapping their states [Geyer 1991].

    Replica k of a chain samples exp(-E / T_k) by ``sampler``; every ``swap_every`` steps the pairs (0, 1), (2, 3), ...
    and (1, 2), (3, 4), ... in turn swap with probability min(1, exp((1 / T_k - 1 / T_l) (E_k - E_l))). The result
    holds the states at the first temperature. With K temperatures, replica k of chain c has the noise of chain c K + k;
    swaps have uniforms of their own, so nothing depends on other chains.

    Args:
        sampler: one of the other samplers, at its default temperature of 1.
        temperatures: at least two, increasing; the first, usually 1, is the one to be sampled.
        swap_every: steps between swaps, at least 1.
        scaled: whether steps grow with the temperature, as step T_k (steps that multiply
            velocities, as of BAOAB and HMC: step sqrt(T_k)).

    Raises:
        TypeError, ValueError: an invalid argument, named in the message.
    """

    sampler: ChainSampler
    temperatures: Sequence[float]
    swap_every: int = 1
    scaled: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, ChainSampler):
            raise TypeError(
                f"sampler: got {described(self.sampler)}, expected ULA, HMC or another Markov chain sampler"
            )
        if not isinstance(self.sampler.temperature, (int, float)) or self.sampler.temperature != 1:
            came = described(self.sampler.temperature)
            raise ValueError(f"temperature: got {came}, expected 1: the replicas of the sampler have their own")
        if self.sampler.step is None:
            name = type(self.sampler).__name__
            raise ValueError(f"step: got None, expected a step size for {name} under ParallelTempering")
        ladder = check_numbers("temperatures", self.temperatures, above=0)
        if ladder.dim() != 1 or len(ladder) < 2 or not bool((ladder.diff() > 0).all()):
            raise ValueError(f"temperatures: got {described(self.temperatures)}, expected at least two, increasing")
        if isinstance(self.temperatures, torch.Tensor):
            object.__setattr__(self, "temperatures", ladder.tolist())
        switch(self.scaled, "scaled")
        if whole_number("swap_every", self.swap_every) < 1:
            raise ValueError(f"swap_every: got {self.swap_every}, expected at least 1")

    def settings(self) -> dict[str, Any]:
        """As :meth:`ChainSampler.settings`, together with those of the inner sampler."""
        inner = {f"sampler.{name}": value for name, value in self.sampler.settings().items()}
        own = {name: copied(getattr(self, name)) for name in ("temperatures", "swap_every", "scaled")}
        return {"name": type(self).__name__, **own, **inner}
