"""Whether a run that starts from noise alone starts at the schedule's noisiest level."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..schedules import Continuous, Schedule, VarianceExploding
from .grid import GridSampler

FAR = 2.0  # times below the noisiest level, from where a first level has another law
MOSTLY_NOISE = 10.0  # sigma / alpha, above which less than a hundredth of the variance is data of variance 1


@lru_cache(maxsize=256)
def start_below_noise(sampler: GridSampler, schedule: Schedule) -> str | None:
    """A warning for a sampler without x_init whose first noise level still holds signal, or None.

    Without x_init a chain starts from noise of the first level's standard deviation. The law there is that of alpha x_0
    + sigma eps, for which noise alone can stand only at the schedule's noisiest level. The warning is for a first level
    of sigma / alpha below half of that: on VE schedules at any level (the scale of the data is not known), elsewhere
    below 10 (where data of variance 1 make up a hundredth of the variance of x_t).
    """
    first, last = sampler.grid(schedule).ratios[0], noisiest(schedule)
    if first * FAR >= last or (first >= MOSTLY_NOISE and not isinstance(schedule, VarianceExploding)):
        return None
    if isinstance(sampler.sigmas, tuple):
        name, way = "sigmas", "begin higher"
    elif sampler.timesteps is not None:
        name, way = "timesteps", "begin higher"
    else:
        name, way = "steps", "use spacing='trailing' or more steps"
    return (
        f"{name}: got a first noise level of sigma/alpha {first:.4g} without x_init, expected the schedule's noisiest, "
        f"{last:.4g}: chains start from noise that lacks the signal of that level ({way}, or give x_init)"
    )


def noisiest(schedule: Schedule) -> float:
    """The largest sigma / alpha of the schedule; inf where it has pure noise."""
    time = schedule.grid(1)[0] if isinstance(schedule, Continuous) else (schedule.steps or 1) - 1.0
    alpha, sigma = schedule.levels(time)
    with np.errstate(divide="ignore"):
        return float(np.divide(sigma, alpha))
