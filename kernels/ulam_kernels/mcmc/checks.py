"""What the operations of this folder check of their arguments, and the backend that runs them."""

from __future__ import annotations

from typing import Any

import torch

from ulam_kernels.dispatch import select
from ulam_kernels.validation import check, check_ids


def operations_of(backend: str | None, x: torch.Tensor, dtype: torch.dtype | None = None) -> Any:
    """A backend's operations on chains like ``x``."""
    return select(backend, x.device.type, dtype or x.dtype).mcmc


def present(**tensors: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Those that are not None."""
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def check_like(x: torch.Tensor, **tensors: torch.Tensor) -> None:
    for name, tensor in tensors.items():
        check(tensor, name, x.dtype, x.device, x.shape)


def check_per_chain(x: torch.Tensor, **tensors: torch.Tensor) -> None:
    for name, tensor in tensors.items():
        check(tensor, name, x.dtype, x.device, x.shape[:1])


def check_scale(x: torch.Tensor, scale: torch.Tensor | None) -> None:
    if scale is not None:
        check(scale, "scale", x.dtype, x.device, x.shape[1:])


def check_noise(
    x: torch.Tensor,
    seed: torch.Tensor | None,
    chain: torch.Tensor | None,
    draw: torch.Tensor | None,
    noise: torch.Tensor | None,
) -> None:
    if noise is None and (seed is None or chain is None or draw is None):
        raise ValueError("seed, chain, draw: got None, expected int64 tensors [B] (or noise)")
    check_ids(seed, chain, draw, x.device, x.shape[:1])
