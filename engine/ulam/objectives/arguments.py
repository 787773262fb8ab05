"""Checks of what losses are given. Each raises TypeError or ValueError naming the argument."""

from __future__ import annotations

import torch

from ulam_kernels.arguments import described
from ulam_kernels.tracing import readable
from ulam_kernels.validation import check_real

from ..arguments import check_plain as check_plain


def check_callable(function: object, name: str) -> None:
    if not callable(function):
        raise TypeError(f"{name}: got {described(function)}, expected a callable")


def check_levels(sigma: torch.Tensor, x: torch.Tensor) -> None:
    check_plain(sigma, "sigma")
    check_real(sigma, "sigma")
    if sigma.shape != (len(x),):
        raise ValueError(f"sigma: got shape {list(sigma.shape)}, expected [{len(x)}], one an example")
    if readable(sigma) and bool((wrong := ~((sigma >= 0) & sigma.isfinite())).any()):
        raise ValueError(f"sigma: got {sigma.detach()[wrong][0]:g}, expected finite levels of at least 0")


def check_batch(x: torch.Tensor, name: str) -> None:
    check_plain(x, name)
    if not x.is_floating_point() or x.dim() < 2 or not x.numel():
        raise ValueError(f"{name}: got {described(x)}, expected a float tensor [B, *shape], not empty")
