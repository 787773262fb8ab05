"""Random arguments of the five sums over a chain, and a backend's result for them."""

from __future__ import annotations

from typing import Any

import torch


def arguments(shape: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers over many orders of magnitude, some of them 0."""
    draw = torch.Generator().manual_seed(seed + sum(shape))
    x, y, spread = (torch.randn(shape, generator=draw) for _ in range(3))
    return x * torch.exp2(4 * spread), torch.where(spread > 1.5, 0, y - x / 2)


def result(backend: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The sums by a backend's own function, over a poisoned result."""
    out = torch.full((len(x), 5), float("nan"), dtype=torch.float64)
    backend.moments(x, y, out)
    return out
