"""Checks of what losses are given. Each raises TypeError or ValueError naming the argument."""

from __future__ import annotations

import torch

from ulam_kernels.arguments import described

from ..arguments import check_plain as check_plain


def check_callable(function: object, name: str) -> None:
    if not callable(function):
        raise TypeError(f"{name}: got {described(function)}, expected a callable")


def check_batch(x: torch.Tensor, name: str) -> None:
    check_plain(x, name)
    if not x.is_floating_point() or x.dim() < 2 or not len(x):
        raise ValueError(f"{name}: got {described(x)}, expected a float tensor [B, *shape], not empty")
