"""States and noise levels at which derivatives are compared, central differences, and all that uses derivatives."""

from __future__ import annotations

import torch

import ulam
from ulam import Denoiser, schedules, sure, tweedie
from ulam.estimation import measure as check


def differences(function, y, v, h=1e-3):
    """First and second derivatives along v to order 4, from four further states."""
    with torch.no_grad():
        two, one, at, _one, _two = (function(y + k * h * v) for k in (2, 1, 0, -1, -2))
        return (8 * (one - _one) - (two - _two)) / (12 * h), (16 * (one + _one) - (two + _two) - 30 * at) / (12 * h**2)


def close(found, expected, tolerance):
    assert float((found - expected).norm()) <= tolerance * float(expected.norm()) + 1e-9


VE, VP = schedules.ve(0.01, 50.0), schedules.vp_linear()
SIGMA = torch.tensor([0.3, 0.8, 2.0], dtype=torch.float64)


def state(net, dtype=torch.float64, seed=1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(2, len(SIGMA), *net.shape, generator=generator, dtype=torch.float64)
    return draw[0].to(dtype), draw[1].to(dtype)


def users(denoiser: Denoiser, y: torch.Tensor):
    """Everything that differentiates a denoiser, by name."""
    v = torch.ones_like(y)
    return {
        "sure": lambda: sure.estimate(denoiser, y, 0.5),
        "likelihood": lambda: ulam.bounds.likelihood(denoiser, y, steps=2),
        "exact likelihood": lambda: ulam.bounds.likelihood(denoiser, y, steps=2, trace="exact"),
        "product": lambda: tweedie.covariance_product(denoiser, y, 0.5, v),
        "diagonal": lambda: tweedie.covariance_diagonal(denoiser, y, 0.5),
        "trace": lambda: tweedie.covariance_trace(denoiser, y, 0.5),
        "eigenpairs": lambda: tweedie.eigenpairs(denoiser, y, 0.5, 1),
        "third": lambda: tweedie.third_cumulant(denoiser, y, 0.5, v),
        "covariance": lambda: tweedie.covariance(denoiser, y, 0.5),
        "fourth": lambda: tweedie.cumulant(denoiser, y, 0.5, v, order=4),
        "check": lambda: list(check.measure(denoiser, y.repeat(2, 1), [0.5])),
    }
