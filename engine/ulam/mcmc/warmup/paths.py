"""Path lengths found in a warm-up together: ChEES for HMC, and MAMS' own."""

from __future__ import annotations

import math

import torch

from ...samplers.mcmc.chain_state import Proposal
from .moments import Moments

MOST_LEAPS = 1000  # of a transition
FIRST_LEAPS = 10  # before masses are known
RATE, MEMORY, TINY = 0.025, 0.95, 1e-30  # Adam's learning rate and beta_2 (beta_1 = 0), and what it adds to roots
MOST_CHANGE = 0.35  # of the log of the length in one step
AVERAGED = 0.5  # the power of m with which the m-th length enters their average
LONGER = 1.3  # than sqrt(d)
DECORRELATED, MOST_LONGER = 0.5, 2.0  # the path in lengths over which draws decorrelate, and what it may grow by


def leaps_of(length: float, step: float, most: int = MOST_LEAPS) -> int:
    """Leapfrog steps of a path: ceil(length / step), from 1 to ``most``."""
    return min(max(math.ceil(length / step), 1), most)


class ChEES:
    """The path length T that changes the squared distance from the mean most [Hoffman, Radul & Sountsov 2021].

    ChEES = E[(|x' - m|^2 - |x - m|^2)^2] / 4 of the ends x' of paths from x, in coordinates whitened by the mass; m is
    the mean of the states of the window so far. Its derivative by log T, from the paths of all chains weighted by their
    acceptance, each with t its own time and v' the velocity at its end: t (|x' - m|^2 - |x - m|^2) (x' - m) . v'.
    Adam climbs it (learning rate 0.025, beta_1 = 0, beta_2 = 0.95); ``final`` averages log T with weights m^-1/2.
    """

    def __init__(self, length: float) -> None:
        self.length, self._whitened = length, False
        self.restart()

    def restart(self) -> None:
        """Begin to average anew."""
        self._log_average, self._count, self._square = math.log(self.length), 0, 0.0

    def update(
        self, x: torch.Tensor, end: Proposal, mean: torch.Tensor, scale: torch.Tensor | None, acceptance: torch.Tensor
    ) -> None:
        """Climb by the paths from x ``[B, *shape]``; mean ``[*shape]``, acceptance ``[B]``, both float64."""
        gradient = chees_gradient(x, end, mean, scale, acceptance)
        self._count += 1
        if math.isfinite(gradient):
            self._square = MEMORY * self._square + (1 - MEMORY) * gradient * gradient
            root = math.sqrt(self._square / (1 - MEMORY**self._count)) + TINY
            change = min(max(RATE * gradient / root, -MOST_CHANGE), MOST_CHANGE)
            self.length *= math.exp(change)
        self._log_average += (math.log(self.length) - self._log_average) * self._count**-AVERAGED

    @property
    def final(self) -> float:
        """The averaged length."""
        return math.exp(self._log_average)

    def whitened(self, longest: float, unit: float) -> None:
        """Go on in coordinates of another mass, in which paths are 1 / ``longest`` as long, but at least ``unit``.

        With the first mass paths begin at ``unit``, that in which a state of the mass's size is crossed.
        """
        self.length, self._whitened = max(self.length / longest, unit) if self._whitened else unit, True


def chees_gradient(
    x: torch.Tensor, end: Proposal, mean: torch.Tensor, scale: torch.Tensor | None, acceptance: torch.Tensor
) -> float:
    """d ChEES / d log T, weighted by acceptance; paths that ended at numbers that are not finite do not count."""
    wide = scale.double() if scale is not None else 1.0
    before, after = ((at.double() - mean) / wide for at in (x, end.x))
    v = end.v.double()
    finite = torch.isfinite(after.flatten(1)).all(1) & torch.isfinite(v.flatten(1)).all(1)
    grown = (after.square() - before.square()).flatten(1).sum(1)
    slope = end.time.double() * grown * (after * v).flatten(1).sum(1)
    weight = torch.where(finite, acceptance, 0.0)
    return float((weight * torch.where(finite, slope, 0.0)).sum() / weight.sum())


class Decorrelation:
    """MAMS' path length L [Robnik, Cohn-Gordon & Seljak 2025, section 5; blackjax' adjusted_mclmc_adaptation].

    At first L = 1.3 sqrt(sum of variances) in coordinates whitened by the mass, about 1.3 sqrt(d); from the last window
    of masses L = L n / (2 ESS), at most twice as long, with ESS / n the mean over elements of (1 - rho) / (1 + rho) and
    rho the correlation of a state and the next.
    """

    def __init__(self, length: float) -> None:
        self.length = length

    def restart(self, x: torch.Tensor) -> None:
        """Begin to watch correlations, at x ``[B, *shape]``."""
        self._from, self._products, self._count = x.double().mean(0), torch.zeros_like(x[0], dtype=torch.float64), 0

    def update(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """Take a transition between these states ``[B, *shape]`` into account."""
        self._products += ((before.double() - self._from) * (after.double() - self._from)).sum(0)
        self._count += len(before)

    def whitened(self, moments: Moments, mass: torch.Tensor) -> None:
        """Go on with an inverse mass ``[*shape]``, made of the states of a window."""
        self.length = LONGER * float((moments.variance / mass).sum().sqrt())

    def decorrelated(self, moments: Moments) -> None:
        """Lengthen or shorten paths by the correlations seen since :meth:`restart`."""
        apart = moments.mean - self._from
        rho = (self._products / self._count - apart.square()) / moments.variance
        share = ((1 - rho) / (1 + rho)).nan_to_num(1.0).clamp(0, 1).mean()
        self.length *= min(DECORRELATED / max(float(share), TINY), MOST_LONGER)
