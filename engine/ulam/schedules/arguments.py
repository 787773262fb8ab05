"""Checks of the arguments that make a schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from ulam_kernels.arguments import as_float, described, is_real
from ulam_kernels.validation import real_numbers

MOST_STEPS = 10**7  # of a table of noise levels: 80 MB a column

Array: TypeAlias = npt.NDArray[np.float64]
Numbers: TypeAlias = float | Sequence[float] | npt.NDArray[Any] | torch.Tensor


def number(name: str, value: object) -> float:
    if not is_real(value):
        raise TypeError(f"{name} must be a number, got {described(value)}")
    if not math.isfinite(x := as_float(value)):
        raise ValueError(f"{name} must be finite, got {described(value)}")
    return x


def positive(name: str, value: object) -> float:
    x = number(name, value)
    if x <= 0:
        raise ValueError(f"{name} must be above 0, got {value!r}")
    return x


def training_steps(steps: object) -> int:
    if isinstance(steps, (bool, np.bool_)) or not isinstance(steps, (int, np.integer)):
        raise TypeError(f"steps must be an integer, got {described(steps)}")
    if not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"steps: got {described(steps)}, expected 1 to 10^7 training steps")
    return int(steps)


def one_beta(name: str, value: object) -> float:
    x = number(name, value)
    if not 0 < x < 1:
        raise ValueError(f"{name} must lie in (0, 1), got {value!r}")
    return x


def sigma_ends(sigma_min: object, sigma_max: object) -> tuple[float, float]:
    low, high = positive("sigma_min", sigma_min), positive("sigma_max", sigma_max)
    if low >= high:
        raise ValueError(f"sigma_min must be below sigma_max, got {low!r} and {high!r}")
    return low, high


def numbers(name: str, values: object) -> Array:
    """Numbers (scalar, sequence, array, tensor) as a fresh float64 array; bools and strings are refused."""
    if isinstance(values, torch.Tensor):
        values = real_numbers(name, values).numpy()
    try:
        raw = np.asarray(values)
    except ValueError:
        raise TypeError(f"{name} must be numbers in a regular array, got ragged values") from None
    if raw.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be numbers, got {type(values).__name__} of dtype {raw.dtype}")
    return np.array(raw, dtype=np.float64)


def vector(name: str, values: object) -> Array:
    vector = numbers(name, values)
    if vector.ndim != 1 or len(vector) == 0:
        raise ValueError(f"{name} must be one-dimensional and not empty, got shape {vector.shape}")
    reject(name, vector, ~np.isfinite(vector), "be finite")
    return vector


def reject(name: str, values: Array, bad: npt.NDArray[np.bool_], rule: str) -> None:
    if bad.any():
        index = int(np.argmax(bad))
        raise ValueError(f"{name} must {rule}, got {values[index]!s} at index {index}")


def in_range(name: str, values: object, low: float, high: float, why: str, finite: bool = False) -> Array:
    array = numbers(name, values)
    bad = ~((array >= low) & (array <= high)) | (finite & ~np.isfinite(array))
    if bad.any():
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}] ({why}), got {array[bad].flat[0]!s}")
    return array
