"""Why chains have not mixed, from their draws, and what to try.

**Runaway.** Under an energy of the wrong sign, or one with no integrable exp(-E / T), states leave for where the energy
is lower still. It is looked for in chains that failed for any reason: either the energy falls the farther out the
states are (Spearman's correlation of E and |x| below -0.9 over all draws) and varies more than a Gaussian's, whose
standard deviation is T sqrt(d / 2) in d dimensions; or the distances grow block by block over the run in three quarters
of the chains; or states are 10^6 sqrt(d) and more from the origin. A warm-up that was too short on the way to a far
place looks the same, so both are named.

**Modes.** Chains mix where they are, with an effective sample size of at least 20 in each of a quarter of them, which
for chains of one law would mean an R-hat of about 1.05, and yet disagree: an R-hat above 1.1, of the ranks alone, which
tells places and not widths apart. Chains stuck for want of a smaller step look alike, so divergences come first.

**Slow.** The others. R-hat^2 - 1 falls as one over the steps, and effective sample sizes grow with them, which gives
the number of steps that would do.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from .statistics import LEAST_ESS, MOST_RHAT, Worst, own_ess, rhat_of_places

APART, WITHIN, SHARE = 1.1, 20.0, 0.25  # R-hat, effective sample size of a chain, share of the chains
LOOKED_AT = 16  # chains whose own effective sample size is measured
FALLING = -0.9  # Spearman's correlation
BLOCKS, GROWING, GROWTH, FAR = 5, 0.75, 1.2, 1e6  # of a run; share of the chains, factor from block to block, distance
NO_WALLS = "ulam.mcmc.Model with Positive or Interval parameters"  # in place of a density that is 0 beyond them
SAMPLED = 20_000  # draws that ranks are taken of


class Cause(NamedTuple):
    """Its name, what was found, and what to try in Python.

    Names: ``few``, ``runaway``, ``divergences``, ``modes``, ``slow``, ``stuck``.
    """

    name: str
    found: str
    to_try: str

    def __str__(self) -> str:
        return f"{self.found}: try {self.to_try}"


def runaway(x: torch.Tensor, energies: torch.Tensor | None, temperature: float) -> Cause | None:
    """The cause if the states ``[chain, draw, element]`` run away; see the module."""
    radius = x.double().square().sum(2).sqrt().cpu()  # inf or nan where a chain left the finite numbers
    finite = torch.isfinite(radius)
    told = f"states as far as {float(radius[finite].max()) if finite.any() else math.inf:.3g} from the origin"
    d = x.shape[2]
    if energies is not None:
        energies = energies.cpu()
        known = finite & torch.isfinite(energies)
        r, e = (values[known][:: max(int(known.sum()) // SAMPLED, 1)].numpy() for values in (radius, energies))
        if len(e) > 2 and e.std() > temperature * math.sqrt(d / 2) and _rank_correlation(r, e) < FALLING:
            found = f"the energy falls the farther out the states are: {told}, energies down to {e.min():.3g}"
            advice = "the other sign (E = -log p, and exp(-E) must be integrable); if it is right, a longer warmup="
            return Cause("runaway", found, advice)
    if finite.all() and (bool((radius > FAR * math.sqrt(d)).any()) or _grows(radius)):
        advice = "an energy that grows far out (exp(-E) must be integrable); if it does, a longer warmup="
        return Cause("runaway", f"states run away: {told}", advice)
    return None


def modes(x: torch.Tensor) -> Cause | None:
    """The cause if chains sit in different modes; x ``[chain, draw]``: where R-hat is worst."""
    if not rhat_of_places(x) > APART:
        return None
    some = torch.linspace(0, len(x) - 1, min(len(x), LOOKED_AT)).long()
    own = float(np.quantile(own_ess(x[some.to(x.device)]), 1 - SHARE))
    if own < WITHIN:
        return None
    found = f"chains sit in different modes: alone each mixes (ESS {own:.0f} of {x.shape[1]} draws), but they disagree"
    return Cause("modes", found, "ParallelTempering(sampler, temperatures=[1, 2, 4, 8])")


def more_steps(rhat: Worst, *ess: Worst) -> float:
    """How many times the steps would bring R-hat and effective sample sizes to their limits; at least 1."""
    factors = [(rhat.value**2 - 1) / (MOST_RHAT**2 - 1), *(LEAST_ESS / max(one.value, 1.0) for one in ess)]
    return max([1.0, *(factor for factor in factors if not math.isnan(factor))])


def _rank_correlation(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    first, second = (values.argsort().argsort() for values in (a, b))
    return float(np.corrcoef(first, second)[0, 1])


def _grows(radius: torch.Tensor) -> bool:
    if radius.shape[1] < BLOCKS:
        return False
    blocks = torch.stack([part.mean(1) for part in radius.tensor_split(BLOCKS, 1)], 1)
    typical = blocks.median(0).values
    growing = (blocks.diff(dim=1) > 0).all(1).double().mean()
    return float(growing) >= GROWING and float(typical[-1]) > GROWTH * float(typical[0])
