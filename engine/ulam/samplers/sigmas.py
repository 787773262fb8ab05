"""Grids of noise levels by name: where to spend the steps between a largest and a smallest sigma."""

from __future__ import annotations

import numpy as np
from scipy.special import betaincinv

from ..schedules import Array

SIGMAS = ("karras", "exponential", "beta")


def sigma_grid(name: str, largest: float, smallest: float, steps: int) -> Array:
    """[steps] decreasing levels from `largest` to `smallest`.

    | name | levels |
    |---|---|
    | karras | uniform in sigma^(1/7) [Karras 2022, eq. 5] |
    | exponential | uniform in log sigma (and so in log-SNR: the grid of Lu 2022a, sec. 3.3) |
    | beta | at the quantiles of the Beta(0.6, 0.6) distribution [Lee 2024] |
    """
    ramp = np.linspace(0, 1, steps)
    if name == "karras":
        ends = largest ** (1 / 7), smallest ** (1 / 7)
        levels = (ends[0] + ramp * (ends[1] - ends[0])) ** 7
    elif name == "beta":
        levels = smallest + betaincinv(0.6, 0.6, 1 - ramp) * (largest - smallest)
    else:
        levels = np.exp(np.log(largest) + ramp * (np.log(smallest) - np.log(largest)))
    return np.asarray(levels, dtype=np.float64)
