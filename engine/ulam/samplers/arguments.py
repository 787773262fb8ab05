"""Checks of the arguments that samplers share. Each raises ValueError naming the argument."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence

import numpy as np
import torch

from ulam_kernels.arguments import as_float, described, is_real, one_of
from ulam_kernels.validation import real_numbers

from ..programs.clip import DynamicThreshold
from .sigmas import BETWEEN, SIGMAS

LARGEST = 1e150  # its square is a float too
MOST_ROWS = 10**7
SPACINGS = ("leading", "linspace", "trailing", "log-snr")
FINALS = ("zero", "sigma_min")


def check_steps(steps: object) -> int:
    """`steps` as an int of at least 1, else ValueError."""
    return check_whole("steps", steps, 1)


def check_whole(name: str, value: object, least: int, most: int | None = None) -> int:
    """`value` as an int in [least, most], else ValueError; without `most` up to MOST_ROWS, the rows of a program."""
    try:
        whole = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        whole = least - 1
    if whole < least or isinstance(value, bool) or whole > (MOST_ROWS if most is None else most):
        right = f"from {least} to {most or MOST_ROWS}" if most is not None or whole > least else f"of at least {least}"
        raise ValueError(f"{name}: got {described(value)}, expected a whole number {right}")
    return whole


def check_number(name: str, value: object, least: float = -math.inf, most: float = math.inf) -> float:
    """`value` as a float in [least, most], finite unless `most` is; else ValueError."""
    if not is_real(value):
        raise ValueError(f"{name}: got {described(value)}, expected a number")
    number = as_float(value)
    if LARGEST < abs(number) < math.inf:
        raise ValueError(f"{name}: got {described(value)}, expected at most {LARGEST:g} in size")
    if math.isfinite(number) and least <= number <= most:
        return number
    if math.isinf(most):
        right = "a finite number" if math.isinf(least) else f"a finite number of at least {least:g}"
    else:
        right = f"a number in [{least:g}, {most:g}]"
    raise ValueError(f"{name}: got {described(value)}, expected {right}")


def check_flag(name: str, value: object) -> bool:
    """`value` if it is True or False, else ValueError."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}: got {described(value)}, expected True or False")
    return value


def check_choice(name: str, value: object, choices: Sequence[str]) -> str:
    """`value` if it is one of `choices`, else ValueError."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: got {described(value)}, expected {one_of(value, choices)}")
    return value


def check_timesteps(timesteps: object) -> tuple[float, ...] | None:
    """`timesteps` as floats, strictly decreasing, else ValueError."""
    return None if timesteps is None else _decreasing("timesteps", timesteps)


def check_sigmas(sigmas: object) -> str | tuple[float, ...] | None:
    """`sigmas` as a known name or as floats, strictly decreasing and above 0 (the last may be 0), else ValueError."""
    if sigmas is None:
        return None
    if isinstance(sigmas, str):
        return check_choice("sigmas", sigmas, SIGMAS)
    values = _decreasing("sigmas", sigmas)
    if values[-1] < 0 or values[0] <= 0:
        raise ValueError(f"sigmas: got {values[-1]:g}, expected numbers above 0 (the last may be 0)")
    return values


def check_final(final: object) -> str | float:
    """`final` as "zero", "sigma_min" or a level above 0, else ValueError."""
    if isinstance(final, str) and final in FINALS:
        return final
    if is_real(final) and 0 < as_float(final) < math.inf:
        return as_float(final)
    raise ValueError(f"final: got {described(final)}, expected 'zero', 'sigma_min' or a noise level above 0")


def grid_arguments(
    steps: object, spacing: object, timesteps: object, sigmas: object, final: object, default: object, every_step: bool
) -> dict[str, object]:
    """The arguments of a `GridSampler` in their checked forms, by name; `steps` counts the list that is given.

    default: of `final`. every_step: whether `steps` may be left out. Raises ValueError naming the argument.
    """
    if spacing is not None:
        check_choice("spacing", spacing, SPACINGS)
    times, levels = check_timesteps(timesteps), check_sigmas(sigmas)
    by_name = isinstance(levels, str) and levels in BETWEEN
    leaves_a_choice = times is None and by_name and spacing != "log-snr"
    if sum(choice is not None for choice in (spacing, times, levels)) > 1 and not leaves_a_choice:
        raise ValueError(
            "spacing, timesteps, sigmas: got more than one, expected one (or spacing with sigmas='karras', "
            "'exponential' or 'beta')"
        )
    count = None if steps is None else check_steps(steps)
    given = times if times is not None else levels if isinstance(levels, tuple) else None
    if given is not None:
        name = "timesteps" if given is times else "sigmas"
        listed = len(given) - (given is levels and given[-1] == 0)
        if count is not None and count not in (listed, len(given) - 1):
            raise ValueError(f"steps: got {count}, expected the {listed} {name} given, or None")
        count = listed if count is None else count
        if count < len(given) and final not in ("zero", default):
            raise ValueError(f"final: got {final!r}, expected 'zero' where the last of {name} is the end")
    if count is None and not every_step:
        raise ValueError("steps: got None, expected a number of steps (or timesteps or sigmas)")
    return {"steps": count, "timesteps": times, "sigmas": levels, "final": check_final(final)}


def check_clip(clip: object) -> tuple[float, float] | DynamicThreshold | None:
    """`clip` as (lo, hi) with lo < hi, a `DynamicThreshold`, or None, else ValueError."""
    if clip is None or isinstance(clip, DynamicThreshold):
        return clip
    if isinstance(clip, Sequence) and len(clip) == 2 and all(map(is_real, clip)):
        lo, hi = as_float(clip[0]), as_float(clip[1])
        if lo < hi:  # false for NaN
            return lo, hi
    right = "None, a DynamicThreshold or a pair (lo, hi) of numbers with lo < hi"
    raise ValueError(f"clip: got {described(clip)}, expected {right}")


def _decreasing(name: str, values: object) -> tuple[float, ...]:
    if isinstance(values, (np.ndarray, torch.Tensor)):
        values = real_numbers(name, values).tolist()
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)) or len(values) == 0:
        raise ValueError(f"{name}: got {described(values)}, expected a sequence of numbers, not empty")
    for value in values:
        if not is_real(value) or not math.isfinite(as_float(value)):
            raise ValueError(f"{name}: got {described(value)}, expected finite numbers")
    numbers = tuple(map(float, values))
    for before, after in itertools.pairwise(numbers):
        if not before > after:
            raise ValueError(f"{name}: got {before:g} before {after:g}, expected strictly decreasing numbers")
    return numbers
