"""The values of a program in JSON's own types, and back, with every fault named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt


def numbers(name: str, values: Any) -> npt.NDArray[np.float64]:
    """Numbers, nested in lists or alone. Raises ValueError for anything else."""
    for value in _leaves(values):
        if type(value) not in (int, float) and value not in ("inf", "-inf", "nan"):
            raise ValueError(f"text: got {value!r:.60} in {name}, expected numbers")
    return _array(name, values, np.float64)


def flags(name: str, values: Any) -> npt.NDArray[np.bool_]:
    for value in _leaves(values):
        if type(value) is not bool:
            raise ValueError(f"text: got {value!r:.60} in {name}, expected true and false")
    return _array(name, values, np.bool_)


def _array(name: str, values: Any, dtype: Any) -> npt.NDArray[Any]:
    try:
        return np.array(values, dtype=dtype)
    except ValueError:
        raise ValueError(f"text: got lists of different lengths in {name}, expected a regular array") from None


def _leaves(values: Any) -> Iterator[Any]:
    if isinstance(values, list):
        for value in values:
            yield from _leaves(value)
    else:
        yield values


def plain(value: Any) -> Any:
    """JSON's own types; floats as shortest exact decimals, those that are not finite as strings."""
    if isinstance(value, np.ndarray):
        return [plain(element) for element in value.tolist()]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list):
        return [plain(element) for element in value]
    return value if not isinstance(value, float) or np.isfinite(value) else str(value)
