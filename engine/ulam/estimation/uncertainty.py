"""Estimates with their standard errors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from ulam_kernels.reprs import short_repr

Value = TypeVar("Value", float, torch.Tensor)


@dataclass(frozen=True)
class WithError(Generic[Value]):
    """``value`` and its standard error ``stderr``, nan where a single sample does not show it."""

    value: Value
    stderr: Value

    __repr__ = short_repr


@dataclass(frozen=True)
class BatchEstimate(WithError[float]):
    """An estimate over a batch, and of every chain in it: per_chain, per_chain_stderr ``[B]``."""

    per_chain: torch.Tensor
    per_chain_stderr: torch.Tensor

    __repr__ = short_repr


def batch_mean(per_chain: torch.Tensor) -> dict[str, float]:
    """``value`` and ``stderr`` of a batch from ``[B]`` numbers; the error covers their spread (nan for one)."""
    value, count = float(per_chain.mean()), len(per_chain)
    return {"value": value, "stderr": float(per_chain.std() / count**0.5) if count > 1 else math.nan}


def mean_and_error(samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of samples ``[S, *shape]`` over S and its standard error, ``[*shape]`` each (nan for S = 1)."""
    mean = samples.mean(0)
    return mean, samples.std(0) / len(samples) ** 0.5 if len(samples) > 1 else torch.full_like(mean, math.nan)
