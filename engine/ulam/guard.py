"""Chains that turn NaN or Inf: stopped at their last finite state, without a wait and without their neighbours."""

from __future__ import annotations

import math

import torch

from .slots import IDLE_ROW, Slots


def freeze(m: torch.Tensor, uncond: torch.Tensor | None, weight: torch.Tensor, slots: Slots) -> None:
    """Stop the chains to which the network gives anything that is not finite, where guidance at ``weight`` reads it.

    The slot's row pointer is set to the idle row before the update, so the state stays as it was, and ``slots.failed``
    holds the row at which that happened. All of it stays on the device.
    """
    if m.device.type == "cpu" and _sum_is_finite(m) and (uncond is None or _sum_is_finite(uncond)):
        return
    well = finite(m)
    if uncond is not None:
        well = (well | (weight == 0)) & (finite(uncond) | (weight == 1))
    bad = ~well & (slots.row != IDLE_ROW)
    torch.where(bad, slots.row, slots.failed, out=slots.failed)
    slots.row.masked_fill_(bad, IDLE_ROW)
    slots.advance.masked_fill_(bad, 0)


def _sum_is_finite(m: torch.Tensor) -> bool:
    """Whether the sum is finite, and so all values are; on the host, where looking at it waits for nothing."""
    return math.isfinite(m.sum(dtype=torch.float32 if m.dtype != torch.float64 else None).numpy())


def finite(m: torch.Tensor) -> torch.Tensor:
    """``[B]`` bool: whether all of a chain's values are finite."""
    return torch.isfinite(m).flatten(1).all(1) if m.dim() > 1 else torch.isfinite(m)
