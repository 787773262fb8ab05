"""What came out of a warm-up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from ...samplers.mcmc.chain_sampler import ChainSampler, PerChain, Preconditioner


@dataclass(frozen=True, eq=False)
class Tuning:
    """What a warm-up found: ``run(target, chains.tuning.sampler, x_init=chains.x, ...)`` goes on with it.

    Attributes:
        sampler: the sampler of the run with its step, preconditioner and number of leapfrog steps filled in.
        acceptance: the mean over the chains of the acceptance in the last window of the warm-up, in which its step
            was still moving.
        gradients: evaluations of the score that the warm-up took, of all chains. Where each warms up alone, those that
            its own search and paths needed; together, also those of chains that waited for others of the batch.
    """

    sampler: ChainSampler
    acceptance: float
    gradients: int

    @property
    def step(self) -> PerChain:
        """The step size: one number where chains warmed up together, else ``[chains]`` float64."""
        assert self.sampler.step is not None
        return self.sampler.step

    @property
    def preconditioner(self) -> Preconditioner:
        """P ``[*shape]`` float64, the inverse mass, or a :class:`ulam.mcmc.LowRank`; None is the identity."""
        return self.sampler.preconditioner

    @property
    def path(self) -> torch.Tensor | None:
        """How long a path is before jitter, step times leapfrog steps, ``[]`` or ``[chains]``; None without paths."""
        leaps = getattr(self.sampler, "leapfrog", None)
        return None if leaps is None else leaps * torch.as_tensor(self.step, dtype=torch.float64)


class Warmed(NamedTuple):
    """What the warm-up of one batch found: a sampler, acceptance float64 and gradients int64 ``[B]`` of its chains."""

    sampler: ChainSampler
    acceptance: torch.Tensor
    gradients: torch.Tensor


def joined(parts: list[tuple[Warmed | None, int]], step: torch.Tensor) -> Tuning | None:
    """The tuning of all batches, each with how many of its chains count; ``step`` ``[chains]``, theirs in the end."""
    found = [(warmed, count) for warmed, count in parts if warmed is not None]
    if not found:
        return None
    sampler: Any = found[0][0].sampler
    if torch.as_tensor(sampler.step).dim():
        sampler = replace(sampler, step=step.clone())
    acceptance = torch.cat([warmed.acceptance[:count] for warmed, count in found]).mean()
    return Tuning(sampler, float(acceptance), sum(int(warmed.gradients[:count].sum()) for warmed, count in found))
