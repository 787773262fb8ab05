"""Gaussian mixtures as data: ideal networks on every schedule, and the exact posterior of x given y = x + sigma z."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from ulam import Denoiser, schedules

SIGMA = torch.tensor([0.3, 0.8, 2.0], dtype=torch.float64)
SCHEDULES = {
    "vp": schedules.vp_linear(),
    "cosine": schedules.vp_cosine(),
    "ve": schedules.ve(0.01, 50.0),
    "flow": schedules.flow(),
    "edm": schedules.edm(),
    "sub_vp": schedules.sub_vp(),
}


class Mixture:
    """x ~ sum_k w_k N(mu_k, S_k) in three dimensions, and the exact posterior of x given y = x + sigma z."""

    def __init__(self, components: int = 3) -> None:
        generator = torch.Generator().manual_seed(4)
        self.weights = torch.softmax(torch.randn(components, generator=generator, dtype=torch.float64), 0)
        self.means = torch.randn(components, 3, generator=generator, dtype=torch.float64)
        root = torch.randn(components, 3, 3, generator=generator, dtype=torch.float64) / 2
        self.covariances = root @ root.mT + 0.1 * torch.eye(3, dtype=torch.float64)

    def parts(self, y: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weights [B, K], means [B, K, 3] and covariances [B, K, 3, 3] of the posterior's components."""
        noisy = self.covariances + sigma[:, None, None, None] ** 2 * torch.eye(3, dtype=torch.float64)
        off = (y[:, None] - self.means)[..., None]
        solved = torch.linalg.solve(noisy, off)
        log = self.weights.log() - (off * solved).sum((2, 3)) / 2 - torch.linalg.slogdet(noisy).logabsdet / 2
        means = self.means + (self.covariances @ solved)[..., 0]
        return (
            torch.softmax(log, 1),
            means,
            self.covariances - self.covariances @ torch.linalg.solve(noisy, self.covariances.expand_as(noisy)),
        )

    def denoise(self, y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        w, means, _ = self.parts(y, sigma)
        return (w[..., None] * means).sum(1)

    def network(self, schedule: schedules.Schedule, predicts: str, sigma: torch.Tensor):
        """The ideal network on a schedule at these noise levels: given x_t, it says x0 (or what follows from it)."""
        levels = schedule.levels(schedule.t_of_sigma(sigma))

        def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            alpha, noise = (torch.from_numpy(np.asarray(level))[: len(x)] for level in levels)
            if predicts == "raw":
                power = noise**2 + schedule.sigma_data**2
                y = x * power.sqrt()[:, None]
                D = self.denoise(y, noise)
                c_out = noise * schedule.sigma_data / power.sqrt()
                return (D - (schedule.sigma_data**2 / power)[:, None] * y) / c_out[:, None]
            D = self.denoise(x / alpha[:, None], noise / alpha)
            eps = (x - alpha[:, None] * D) / noise[:, None]
            outputs = {"x0": D, "eps": eps, "v": alpha[:, None] * eps - noise[:, None] * D}
            outputs |= {"flow": eps - D, "score": -eps / noise[:, None]}
            return outputs[predicts]

        return net


MIXTURE = Mixture()
Y = torch.tensor([[0.4, -0.2, 1.0], [1.5, 0.3, -0.7], [-2.0, 1.0, 0.1]], dtype=torch.float64)


def ideal(name: str, predicts: str, sigma: torch.Tensor = SIGMA) -> Denoiser:
    return Denoiser(MIXTURE.network(SCHEDULES[name], predicts, sigma), SCHEDULES[name], predicts)


def exact_cumulant(vs: list[torch.Tensor], y: torch.Tensor = Y, sigma: torch.Tensor = SIGMA) -> torch.Tensor:
    """kappa of v_1' x, ..., v_k' x given y for k = 1 to 4, ``[B]``, from the moments of its Gaussian components."""
    w, means, covariances = MIXTURE.parts(y, sigma)
    mean = (w[..., None] * means).sum(1, keepdim=True)
    off = [((means - mean) * v[:, None]).sum(2) for v in vs]  # [B, K] each
    C = {
        (i, j): torch.einsum("bi,bkij,bj->bk", vs[i], covariances, vs[j])
        for i, j in itertools.combinations(range(len(vs)), 2)
    }

    def moment(*which: int) -> torch.Tensor:
        """The central moment of these, by Isserlis' theorem about every component's mean."""
        if not which:
            return torch.ones_like(w)
        first, *rest = which
        total = off[first] * moment(*rest)
        for other in rest:
            total = total + C[first, other] * moment(*(i for i in rest if i != other))
        return total

    def E(*which: int) -> torch.Tensor:
        return (w * moment(*which)).sum(1)

    if len(vs) == 1:
        return (mean[:, 0] * vs[0]).sum(1)
    if len(vs) < 4:
        return E(*range(len(vs)))
    return E(0, 1, 2, 3) - E(0, 1) * E(2, 3) - E(0, 2) * E(1, 3) - E(0, 3) * E(1, 2)
