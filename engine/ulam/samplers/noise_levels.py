"""Noise levels on a schedule: spacings of training steps, and the way between levels, sigma / alpha and times."""

from __future__ import annotations

import numpy as np

from ..schedules import Array, FlowMatching, Schedule, VariancePreserving


def spaced(training_steps: int, steps: int, spacing: str, convention: str) -> Array:
    """[steps] training indices, decreasing [Lin 2024, table 2; rounding as in diffusers]; see `ulam.samplers.grid`."""
    T, n = training_steps, steps
    if n == 1:  # diffusers starts at 0 for leading and linspace, and so takes noise for data
        return np.array([T - 1.0])
    if spacing == "trailing":
        return np.arange(T, 0, -T / n)[:n].round() - 1
    count = n + 1 if convention == "endless" else n
    if spacing == "leading":
        return (np.arange(count, dtype=np.float64) * (T // count))[::-1][:n]
    times = np.linspace(0, T - 1, count)
    return (times if convention == "fractional" else times.round())[::-1][:n]


def coordinate(schedule: Schedule, t: Array) -> Array:
    """The level in the terms of `sigmas`: sigma / alpha, on flow schedules sigma itself, as in diffusers."""
    alpha, sigma = schedule.levels(t)
    with np.errstate(divide="ignore"):
        return sigma if isinstance(schedule, FlowMatching) else sigma / alpha


def levels_at(schedule: Schedule, values: Array | float) -> tuple[Array, Array]:
    """(alpha, sigma) at these values of `coordinate`."""
    values = np.asarray(values, dtype=np.float64)
    if isinstance(schedule, VariancePreserving):
        alpha = 1 / np.hypot(1, values)
        return alpha, values * alpha
    if isinstance(schedule, FlowMatching):
        return schedule.levels(values)
    return schedule.levels(schedule.t_of_sigma(values))


def network_times(schedule: Schedule, alphas: Array, sigmas: Array) -> Array:
    """The times that the network is told at these levels; on VP schedules interpolated in log(sigma / alpha), as in
    k-diffusion."""
    with np.errstate(divide="ignore"):
        ratios = sigmas / alphas
    if not isinstance(schedule, VariancePreserving):
        return schedule.t_of_sigma(ratios)
    known = schedule.ratios[np.isfinite(schedule.ratios)]
    return np.interp(np.log(ratios), np.log(known), np.arange(len(known)))


def sigma_min(schedule: Schedule) -> float:
    """The smallest sigma / alpha that the schedule was made for."""
    if isinstance(schedule, VariancePreserving):
        return float(schedule.ratios[0])
    if isinstance(schedule, FlowMatching):
        return 1e-3  # a thousandth of the way, as for training steps
    end = getattr(schedule, "sigma_min", None)
    return float(end) if end is not None else float(coordinate(schedule, schedule.grid(2))[-1])  # type: ignore[attr-defined]
