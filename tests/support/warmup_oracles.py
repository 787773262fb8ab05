"""What warm-up is held against: its arithmetic in plain loops of float64 numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def dual_averaging(step: float, rate: float, acceptances: Sequence[float], ahead: float) -> tuple[list[float], float]:
    """The steps after each of these acceptances, and their average [Hoffman & Gelman 2014, algorithm 5]."""
    mu, h, log_average, steps = math.log(ahead * step), 0.0, 0.0, []
    for m, a in enumerate(acceptances, 1):
        h = (1 - 1 / (m + 10)) * h + (rate - a) / (m + 10)
        log_step = mu - math.sqrt(m) / 0.05 * h
        log_average = m**-0.75 * log_step + (1 - m**-0.75) * log_average
        steps.append(math.exp(log_step))
    return steps, math.exp(log_average)


def first_step(step: float, acceptance: Callable[[float], float]) -> float:
    """Where a step that doubles or halves crosses acceptance 1/2 [Hoffman & Gelman 2014, algorithm 4]."""
    up = acceptance(step) > 0.5
    for _ in range(50):
        step *= 2.0 if up else 0.5
        if (acceptance(step) > 0.5) != up:
            break
    return step


def chees(x: Array, end: Array, mean: Array, weight: Array) -> float:
    """E[(|x' - m|^2 - |x - m|^2)^2] / 4, chains weighted."""
    grown = ((end - mean) ** 2).sum(1) - ((x - mean) ** 2).sum(1)
    return float((weight * grown**2).sum() / weight.sum() / 4)
