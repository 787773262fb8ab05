"""The Gaussian transitions between two noise levels: forward correlation, and the posterior of DDPM."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch

from .arguments import Array
from .kinds import VariancePreserving

Level = TypeVar("Level", Array, torch.Tensor)


def correlation(alpha_t: Level, sigma_t: Level, alpha_s: Level, sigma_s: Level) -> Level:
    """q = alpha_t sigma_s / (alpha_s sigma_t), the correlation of x_s and x_t given x_0 [Kingma 2021].

    For s before t it lies in [0, 1]: 0 where s is the data or alpha_t = 0. Needs sigma_t > 0, alpha_s > 0.
    """
    q = alpha_t * sigma_s / (alpha_s * sigma_t)
    return q.clamp(max=1.0) if isinstance(q, torch.Tensor) else np.minimum(q, 1.0)


def posterior(alpha_t: Level, sigma_t: Level, alpha_s: Level, sigma_s: Level) -> tuple[Level, Level, Level]:
    """q(x_s | x_t, x_0) for s before t: (coefficient of x_t, coefficient of x_0, 1 - q^2).

    With q = `correlation(...)`, on any Gaussian path:
        mean = (sigma_s / sigma_t) q x_t + alpha_s (1 - q^2) x_0,  variance = sigma_s^2 (1 - q^2),
    and Var[x_t | x_s] = sigma_t^2 (1 - q^2). On a VP schedule these are mu~, beta~ and beta of DDPM
    [Ho 2020, eq. 6-7; Kingma 2021, eq. 26-29].
    """
    q = correlation(alpha_t, sigma_t, alpha_s, sigma_s)
    fresh = (1 - q) * (1 + q)
    return sigma_s / sigma_t * q, alpha_s * fresh, fresh


def before(schedule: VariancePreserving, t: Level) -> tuple[Level, Level]:
    """(alpha, sigma) one training step before the whole steps `t`; those of the data, 1 and 0, before step 0."""
    if isinstance(t, torch.Tensor):
        alpha_s, sigma_s = schedule.levels((t - 1).clamp(min=0))
        return torch.where(t == 0, 1.0, alpha_s), torch.where(t == 0, 0.0, sigma_s)
    alpha_s, sigma_s = schedule.levels(np.maximum(t - 1, 0))
    return np.where(t == 0, 1.0, alpha_s), np.where(t == 0, 0.0, sigma_s)
