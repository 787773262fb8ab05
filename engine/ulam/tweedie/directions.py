"""Directions along which posterior moments are taken, and the unit ones of a few elements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch

from ulam_kernels.arguments import described
from ulam_kernels.validation import check_data

from ..arguments import whole_number
from ..estimation.autograd import ORDERS

Directions: TypeAlias = "torch.Tensor | Sequence[torch.Tensor]"
HIGHEST = len(ORDERS) + 1  # order of a cumulant, which takes one derivative less
DENSE = 4096  # elements of a chain for which matrices are made


def check_direction(v: torch.Tensor, y: torch.Tensor, name: str = "v") -> None:
    """Raises TypeError or ValueError unless v is a tensor of numbers like y."""
    check_data(v, name)
    if v.shape != y.shape:
        raise ValueError(f"{name}: got shape {list(v.shape)}, expected {list(y.shape)} like y")
    if v.dtype != y.dtype:
        raise TypeError(f"{name}: got {v.dtype}, expected {y.dtype} like y")
    if v.device != y.device:
        raise ValueError(f"{name}: got a tensor on {v.device}, expected one on {y.device} like y")


def check_order(order: object) -> int:
    """The order of a cumulant. Raises TypeError or ValueError for what is none."""
    number = whole_number("order", order)
    if not 1 <= number <= HIGHEST:
        raise ValueError(f"order: got {number}, expected 1 to {HIGHEST}")
    return number


def each_direction(v: object, y: torch.Tensor, order: int) -> list[torch.Tensor]:
    """``order`` directions like y: v itself for each of them, or v if it is a sequence of as many."""
    if isinstance(v, torch.Tensor):
        check_direction(v, y)
        return [v] * order
    if not isinstance(v, Sequence) or isinstance(v, (str, bytes)):
        raise TypeError(f"v: got {described(v)}, expected a tensor like y, or a sequence of {order}")
    if len(v) != order:
        raise ValueError(f"v: got {len(v)} directions, expected {order}, as many as the order, or one tensor")
    for k, direction in enumerate(v):
        check_direction(direction, y, f"v[{k}]")
    return list(v)


def check_few(y: torch.Tensor, name: str, way_out: str) -> None:
    """Raises ValueError where a chain has too many elements for a matrix."""
    if y[0].numel() > DENSE:
        raise ValueError(f"{name}: got {y[0].numel()} elements a chain, expected at most {DENSE}: {way_out}")


def check_wide(y: torch.Tensor) -> None:
    """Raises TypeError for a dtype that torch's linear algebra does not support."""
    if y.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"y: got {y.dtype}, expected torch.float32 or torch.float64")


def units(y: torch.Tensor) -> Iterator[torch.Tensor]:
    """The unit direction of every element in turn, like y; each is overwritten by the next."""
    unit = torch.zeros_like(y, memory_format=torch.contiguous_format)
    entries = unit.view(len(y), -1)
    for i in range(entries.shape[1]):
        entries[:, i] = 1
        yield unit
        entries[:, i] = 0
