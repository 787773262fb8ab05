"""Grids of noise levels by name: where to spend the steps between a largest and a smallest level."""

from __future__ import annotations

import numpy as np

from ..schedules import Array, Continuous, FlowMatching, Schedule, SubVP, VarianceExploding

SIGMAS = ("karras", "exponential", "beta", "beta-time")
BETA = 0.6, 0.6  # of the Beta distribution [Lee 2024]


def sigma_grid(name: str, largest: float, smallest: float, steps: int) -> Array:
    """[steps] decreasing levels from `largest` to `smallest`: karras, exponential or beta; see `ulam.samplers.grid`."""
    ramp = np.linspace(0, 1, steps)
    if name == "karras":
        ends = largest ** (1 / 7), smallest ** (1 / 7)
        levels = (ends[0] + ramp * (ends[1] - ends[0])) ** 7
    elif name == "beta":
        levels = smallest + _quantiles(1 - ramp) * (largest - smallest)
    else:
        levels = np.exp(np.log(largest) + ramp * (np.log(smallest) - np.log(largest)))
    return np.asarray(levels, dtype=np.float64)


def beta_times(schedule: Schedule, steps: int) -> Array:
    """[steps] decreasing times, at the quantiles 1, 1 - 1/n, ..., 1/n of the Beta distribution in time [Lee 2024].

    Time runs in training indices, the nearest being taken; on flow schedules through their shift; on sub-VP from t_min
    to 1; on VE and EDM in log sigma.
    """
    share = _quantiles(1 - np.arange(steps) / steps)
    if isinstance(schedule, FlowMatching):
        return np.asarray(schedule.shift * share / (1 + (schedule.shift - 1) * share))
    if isinstance(schedule, SubVP):
        return np.asarray(schedule.t_min + share * (1 - schedule.t_min))
    if isinstance(schedule, VarianceExploding):
        return np.asarray(schedule.sigma_max * (schedule.sigma_min / schedule.sigma_max) ** (1 - share))
    if isinstance(schedule, Continuous) or schedule.steps is None:
        raise ValueError(f"sigmas: got 'beta-time' on {schedule!r}, expected 'beta': its time has no known ends")
    return np.asarray(np.rint(share * (schedule.steps - 1)))


def _quantiles(share: Array) -> Array:
    """Of the Beta distribution."""
    from scipy.special import betaincinv  # whose import takes as long as a tenth of torch's, for two grids

    return np.asarray(betaincinv(*BETA, share), dtype=np.float64)
