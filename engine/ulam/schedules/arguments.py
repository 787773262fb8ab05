"""Checks of the arguments of schedules. Each raises TypeError or ValueError naming the argument."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from ulam_kernels.arguments import as_float, described, is_real
from ulam_kernels.validation import real_numbers

from ..gradients import check_no_gradient

MOST_STEPS = 10**7  # of a table of noise levels: 80 MB a column

Array: TypeAlias = npt.NDArray[np.float64]
Numbers: TypeAlias = float | Sequence[float] | npt.NDArray[Any]


def number(name: str, value: object) -> float:
    """A finite number as a float."""
    if not is_real(value):
        raise TypeError(f"{name}: got {described(value)}, expected a number")
    if not math.isfinite(x := as_float(value)):
        raise ValueError(f"{name}: got {described(value)}, expected a finite number")
    return x


def positive(name: str, value: object) -> float:
    """A finite number above 0 as a float."""
    x = number(name, value)
    if x <= 0:
        raise ValueError(f"{name}: got {value!r}, expected a number above 0")
    return x


def training_steps(steps: object) -> int:
    """A count of training steps."""
    if isinstance(steps, (bool, np.bool_)) or not isinstance(steps, (int, np.integer)):
        raise TypeError(f"steps: got {described(steps)}, expected an integer")
    if not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"steps: got {described(steps)}, expected 1 to 10^7 training steps")
    return int(steps)


def one_beta(name: str, value: object) -> float:
    """A number in (0, 1)."""
    x = number(name, value)
    if not 0 < x < 1:
        raise ValueError(f"{name}: got {value!r}, expected a number in (0, 1)")
    return x


def sigma_ends(sigma_min: object, sigma_max: object) -> tuple[float, float]:
    """Two numbers, 0 < sigma_min < sigma_max."""
    low, high = positive("sigma_min", sigma_min), positive("sigma_max", sigma_max)
    if low >= high:
        raise ValueError(f"sigma_min, sigma_max: got {low!r} and {high!r}, expected sigma_min < sigma_max")
    return low, high


def numbers(name: str, values: object) -> Array:
    """Numbers (one, a sequence, an array, a tensor) as a fresh float64 array; bools and strings are refused."""
    if isinstance(values, torch.Tensor):
        values = real_numbers(name, values).numpy()
    try:
        raw = np.asarray(values)
    except ValueError:
        raise TypeError(f"{name}: got ragged values, expected numbers in a regular array") from None
    if raw.dtype.kind not in "iuf":
        raise TypeError(f"{name}: got {type(values).__name__} of dtype {raw.dtype}, expected numbers")
    return np.array(raw, dtype=np.float64)


def vector(name: str, values: object) -> Array:
    """Finite numbers ``[n]``, n at least 1, as a fresh float64 array."""
    check_no_gradient("a schedule", None, **{name: values})
    vector = numbers(name, values)
    if vector.ndim != 1 or len(vector) == 0:
        raise ValueError(f"{name}: got shape {list(vector.shape)}, expected one dimension, not empty")
    reject(name, vector, ~np.isfinite(vector), "finite numbers")
    return vector


def reject(name: str, values: Array, bad: npt.NDArray[np.bool_], right: str) -> None:
    """Raises ValueError for the first of the ``values`` ``[n]`` that is ``bad``; ``right``: what is expected."""
    if bad.any():
        index = int(np.argmax(bad))
        raise ValueError(f"{name}: got {values[index]!s} at index {index}, expected {right}")


def in_range(name: str, values: object, low: float, high: float, why: str, finite: bool = False) -> Array:
    """Numbers in [low, high] as a float64 array, else ValueError; ``why`` the range is that."""
    array = numbers(name, values)
    bad = ~((array >= low) & (array <= high)) | (finite & ~np.isfinite(array))
    if bad.any():
        raise ValueError(f"{name}: got {array[bad].flat[0]!s}, expected numbers in [{low:g}, {high:g}]: {why}")
    return array
