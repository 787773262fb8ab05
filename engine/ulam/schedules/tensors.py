"""Noise levels of torch tensors: on their device, with gradients, and in what torch compiles or transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch

from ulam_kernels.autograd import forward_mode, recorded
from ulam_kernels.tracing import readable
from ulam_kernels.validation import check_real, check_tensor

from .arguments import Array

Levels: TypeAlias = tuple[torch.Tensor, torch.Tensor]


def tensor_levels(
    t: torch.Tensor, host: Callable[[torch.Tensor], tuple[Array, Array]], formula: Callable[[torch.Tensor], Levels]
) -> Levels:
    """(alpha_t, sigma_t) float64 of a tensor: ``host`` computes and checks them in NumPy, ``formula`` in torch.

    Where the host can read t at once, the values are NumPy's to the last bit. Elsewhere, on a GPU and in what torch
    records, they are those of the formula, NaN where t is out of range.
    """
    check_tensor(t, "t")
    check_real(t, "t")
    if not readable(t):
        return formula(t.double())
    alpha, sigma = (torch.from_numpy(np.array(level)) for level in host(t))
    if not recorded(t) and not forward_mode():
        return alpha, sigma
    a, s = formula(t.double())
    return with_value(a, alpha), with_value(s, sigma)


def with_value(x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """``value`` with the derivatives of ``x``, which differs from it by roundings: x + (value - x) is exact then."""
    return torch.where(x.isfinite(), x + (value - x).detach(), value)


def only_inside(inside: torch.Tensor, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Each of the values, NaN where not inside."""
    return tuple(torch.where(inside, value, torch.nan) for value in values)
