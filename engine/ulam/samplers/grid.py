"""The times at which a sampler evaluates the network, and the checks of the arguments that choose them.

A grid is [n] float64, strictly decreasing, every sigma above 0. The data (alpha = 1, sigma = 0) follow its
last time; the previous timestep of each is always the next of the grid.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence

import numpy as np
import torch

from ..schedules import Array, Continuous, Schedule, check_schedule

SPACINGS = ("leading", "linspace", "trailing")


def grid(schedule: Schedule, steps: int | None, spacing: str | None, timesteps: tuple[float, ...] | None) -> Array:
    """The times [n] of a sampler on `schedule`.

    Explicit `timesteps` win; else `steps` of them in the given spacing, which only training indices have.
    Without a spacing: "leading" on VP schedules, the schedule's own grid elsewhere (`schedule.grid`).
    `steps=None` means every training step. Raises ValueError for times out of range or more steps than the
    schedule has.
    """
    check_schedule(schedule)
    if timesteps is not None:
        return _explicit(schedule, timesteps)
    steps = schedule.steps if steps is None else steps
    if steps is None:
        raise ValueError(f"steps must be given on {schedule!r}, which has no training steps")
    if isinstance(schedule, Continuous):
        if spacing is not None:
            raise ValueError(f"spacing must be None on {schedule!r} (no training steps), got {spacing!r}")
        return schedule.grid(steps)
    assert schedule.steps is not None
    if steps > schedule.steps:
        raise ValueError(f"steps must be at most the schedule's {schedule.steps} training steps, got {steps}")
    return _positive_sigma(schedule, spaced(schedule.steps, steps, spacing or "leading"))


def spaced(training_steps: int, steps: int, spacing: str) -> Array:
    """[steps] whole training indices, decreasing [Lin 2024, table 2; rounding as in diffusers].

    leading: i (T // n); linspace: T - 1 down to 0; trailing: T - 1 down by T / n.
    """
    if spacing == "leading":
        return np.arange(steps, dtype=np.float64)[::-1] * (training_steps // steps)
    if spacing == "linspace":
        return np.linspace(0, training_steps - 1, steps).round()[::-1]
    return np.arange(training_steps, 0, -training_steps / steps)[:steps].round() - 1


def check_grid(
    steps: int | None, spacing: str | None, timesteps: object
) -> tuple[int | None, tuple[float, ...] | None]:
    """`steps` as int and `timesteps` as floats. Raises ValueError for what no schedule could take."""
    if spacing is not None and spacing not in SPACINGS:
        raise ValueError(f"spacing must be one of {', '.join(SPACINGS)}, got {spacing!r}")
    if steps is not None:
        steps = check_steps(steps)
    if timesteps is None:
        return steps, None
    times = _floats(timesteps)
    if steps is not None and steps != len(times):
        raise ValueError(f"steps must be left out or equal the {len(times)} timesteps given, got {steps}")
    for before, after in itertools.pairwise(times):
        if not before > after:
            raise ValueError(f"timesteps must be strictly decreasing, got {before:g} before {after:g}")
    return len(times), times


def check_steps(steps: object) -> int:
    """`steps` as an int of at least 1, else ValueError."""
    try:
        count = operator.index(steps)  # type: ignore[arg-type]
    except TypeError:
        count = 0
    if count < 1 or isinstance(steps, bool):
        raise ValueError(f"steps must be a whole number of at least 1, got {steps!r}")
    return count


def check_clip(clip: object) -> tuple[float, float] | None:
    """`clip` as (lo, hi) with lo < hi, or None, else ValueError."""
    if clip is None:
        return None
    if isinstance(clip, Sequence) and len(clip) == 2 and all(map(_is_number, clip)):
        lo, hi = float(clip[0]), float(clip[1])
        if lo < hi:  # false for NaN
            return lo, hi
    raise ValueError(f"clip must be None or a pair (lo, hi) of numbers with lo < hi, got {clip!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _floats(timesteps: object) -> tuple[float, ...]:
    if isinstance(timesteps, (np.ndarray, torch.Tensor)):
        timesteps = timesteps.tolist()
    if not isinstance(timesteps, Sequence) or isinstance(timesteps, str) or len(timesteps) == 0:
        raise ValueError(f"timesteps must be a sequence of numbers, not empty, got {timesteps!r}")
    for time in timesteps:
        if not _is_number(time) or not math.isfinite(time):
            raise ValueError(f"timesteps must be finite numbers, got {time!r}")
    return tuple(map(float, timesteps))


def _explicit(schedule: Schedule, timesteps: tuple[float, ...]) -> Array:
    times = np.array(timesteps)
    try:
        schedule.levels(times)
    except ValueError as error:
        raise ValueError(f"timesteps are out of range: {error}") from None
    return _positive_sigma(schedule, times)


def _positive_sigma(schedule: Schedule, times: Array) -> Array:
    """A time without noise has nothing to denoise (and divides by sigma)."""
    if (schedule.sigma(times) == 0).any():
        raise ValueError(f"timesteps must have sigma above 0, {times[schedule.sigma(times) == 0][0]:g} has sigma 0")
    return times
