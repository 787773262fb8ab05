"""Diagonal Gaussians by mean and log standard deviation: divergences and densities in nats.

Elements are computed in float32, or wider where a network is, whatever autocast says, and summed in float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from ..evaluation import check_halves

MOMENTS = "the mean, then the log standard deviation"


class Moments(NamedTuple):
    """N(mean, exp(log_std)^2) of every element."""

    mean: torch.Tensor
    log_std: torch.Tensor


def moments(m: object, shape: tuple[int, ...], name: str) -> Moments:
    """The halves of a network's output. Raises TypeError or ValueError naming the network."""
    mean, log_std = wide(check_halves(m, shape, MOMENTS, name)).chunk(2, dim=1)
    return Moments(mean, log_std)


def wide(x: torch.Tensor) -> torch.Tensor:
    """x in float32 if it is narrower."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def nats(elements: torch.Tensor) -> torch.Tensor:
    """Sums over the elements of each example, ``[B]`` float64."""
    return elements.flatten(1).sum(1, dtype=torch.float64)


def kl_elements(q: Moments, p: Moments | None) -> torch.Tensor:
    """KL(q || p) of every element [Kingma & Welling 2014, app. B]; p None: N(0, 1)."""
    if p is None:
        return (q.mean.square() + (2 * q.log_std).expm1()) / 2 - q.log_std
    ratio = 2 * (q.log_std - p.log_std)
    return (standardised(q.mean, p).square() + ratio.expm1() - ratio) / 2


def standardised(z: torch.Tensor, p: Moments | None) -> torch.Tensor:
    """(z - mean) / std; p None: N(0, 1)."""
    return z if p is None else (z - p.mean) * (-p.log_std).exp()


def gaussian_kl(
    mean: torch.Tensor, log_std: torch.Tensor, prior_mean: torch.Tensor, prior_log_std: torch.Tensor
) -> torch.Tensor:
    """KL(N(mean, std^2) || N(prior_mean, prior_std^2)) of diagonal Gaussians in nats, ``[B]`` float64."""
    return nats(kl_elements(Moments(mean, log_std), Moments(prior_mean, prior_log_std)))


def gaussian_log_density(x: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """log N(x; mean, std^2) in nats, ``[B]`` float64."""
    off = standardised(x, Moments(mean, log_std))
    return nats(-off.square() / 2 - log_std - math.log(2 * math.pi) / 2)
