"""Data whose ideal network, density and bound are known in closed form, in torch."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from ulam import Denoiser, schedules

Tensor = torch.Tensor
FP64 = torch.float64


class Mixture:
    """sum_k w_k N(mu_k, s_k^2), every element on its own, and its ideal network on any schedule, in the dtype of x."""

    def __init__(self, weights: list[float], means: list[float], stds: list[float]) -> None:
        self.weights, self.means, self.stds = (torch.tensor(v, dtype=FP64) for v in (weights, means, stds))

    def terms(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log w_k N(x; alpha mu_k, v_k), x - alpha mu_k and v_k, with a last axis for k."""
        off, v = (
            x[..., None] - alpha[..., None] * self.means,
            (alpha[..., None] * self.stds) ** 2 + sigma[..., None] ** 2,
        )
        return self.weights.log() - (off**2 / v + (2 * math.pi * v).log()) / 2, off, v

    def x0(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        log, off, v = self.terms(x, alpha, sigma)
        return (torch.softmax(log, -1) * (self.means + alpha[..., None] * self.stds**2 / v * off)).sum(-1)

    def log_density(self, x: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
        levels = (torch.tensor(level, dtype=FP64) for level in (alpha, sigma))
        return torch.logsumexp(self.terms(x.double(), *levels)[0], -1).flatten(1).sum(1)

    def sample(self, shape: tuple[int, ...], seed: int = 0) -> Tensor:
        rng = np.random.default_rng(seed)
        k = torch.from_numpy(rng.choice(len(self.weights), size=shape, p=self.weights.numpy()))
        return self.means[k] + self.stds[k] * torch.from_numpy(rng.normal(size=shape))

    def denoiser(self, schedule: schedules.Schedule, predicts: str = "eps") -> Denoiser:
        def net(x: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = (level.view(-1, *[1] * (x.dim() - 1)) for level in torch_levels(schedule, t.double()))
            D = self.x0(x.double(), alpha, sigma)
            eps = (x - alpha * D) / sigma
            return {"x0": D, "eps": eps, "v": alpha * eps - sigma * D, "flow": eps - D}[predicts].to(x.dtype)

        return Denoiser(net, schedule, predicts)


def torch_levels(schedule: schedules.Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) as torch operations, which a derivative in forward mode can go through."""
    if schedule.kind == "flow":
        return 1 - t, t
    if schedule.kind == "ve":
        return torch.ones_like(t), t
    if schedule.kind == "subvp":
        log_alpha = -t * (schedule.beta_min / 2 + t * (schedule.beta_max - schedule.beta_min) / 4)
        return log_alpha.exp(), -torch.expm1(2 * log_alpha)
    ratios = torch.from_numpy(np.append(schedule.ratios, schedule.ratios[-1]))
    below = t.floor().long()
    ratio = ratios[below] + (t - below) * (ratios[below + 1] - ratios[below])
    return 1 / torch.hypot(torch.ones_like(t), ratio), ratio / torch.hypot(torch.ones_like(t), ratio)


GAUSSIAN = Mixture([1.0], [0.3], [0.7])
TWO = Mixture([0.3, 0.7], [-0.8, 0.6], [0.15, 0.3])


def vp(steps: int) -> schedules.Schedule:
    """The process of DDPM's betas cut into any number of steps."""
    rate = 0.1 + 19.9 * (np.arange(steps) + 0.5) / steps
    return schedules.from_betas(-np.expm1(-rate / steps))


def with_variance(denoiser: Denoiser, value: Callable[[Tensor], Tensor]) -> Denoiser:
    return Denoiser(lambda x, t: torch.cat([denoiser.net(x, t), value(x)], 1), denoiser.schedule, denoiser.predicts)


def images(dtype: torch.dtype, chains: int = 4) -> Tensor:
    level = torch.randint(0, 256, (chains, 2, 3, 5), generator=torch.Generator().manual_seed(3))
    level[0, 0], level[1, 1] = 0, 255
    return (level / 127.5 - 1).to(dtype)
