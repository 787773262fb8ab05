"""Mean and variance of the states of all chains, and the inverse mass made of them."""

from __future__ import annotations

import torch

PRIOR, PRIOR_VARIANCE = 5.0, 1e-3  # states that the mass before counts as, and how much of it
LEAST_MASS = 1e-60  # where an element never moves


class Moments:
    """Mean and squared deviations of states by element, merged group by group [Chan, Golub & LeVeque 1983, eq. 2.1].

    mean, deviations: ``[*shape]`` float64. count: of states.
    """

    def __init__(self, x: torch.Tensor) -> None:
        self.mean = torch.zeros_like(x[0], dtype=torch.float64)
        self.deviations, self.count = torch.zeros_like(self.mean), 0

    def add(self, x: torch.Tensor) -> None:
        """Take the states x ``[M, *shape]`` into account."""
        if not len(x):
            return
        wide, new = x.double(), len(x)
        mean = wide.mean(0)
        apart, total = mean - self.mean, self.count + new
        self.deviations += (wide - mean).square().sum(0) + apart.square() * (self.count * new / total)
        self.mean += apart * (new / total)
        self.count = total

    @property
    def variance(self) -> torch.Tensor:
        """``[*shape]``; of at least two states."""
        return self.deviations / max(self.count - 1, 1)


def inverse_mass(moments: Moments, before: torch.Tensor) -> torch.Tensor:
    """P = (n var + 5 1e-3 P_before) / (n + 5) ``[*shape]``, from n states and the mass before.

    From the identity it is Stan's; later it is regularised towards the scale found so far, whatever the units of x.
    """
    n = moments.count
    return ((n * moments.variance + PRIOR * PRIOR_VARIANCE * before) / (n + PRIOR)).clamp(min=LEAST_MASS)
