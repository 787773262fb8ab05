"""Linear-Gaussian hierarchies, whose evidence, posterior and bounds are known, and DDPM as a hierarchy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ulam import Denoiser, noise, vae

Moments = Callable[..., torch.Tensor]


def moments(mean: torch.Tensor, std: Any) -> torch.Tensor:
    """The output of a network that models a diagonal Gaussian."""
    std = torch.as_tensor(std, dtype=mean.dtype)
    return torch.cat([mean, std.log().expand_as(mean)], dim=1)


@dataclass(frozen=True)
class Affine:
    """N(sum of weight @ input + offset, std^2), as a network of its inputs."""

    weights: Sequence[torch.Tensor]
    offset: torch.Tensor
    std: torch.Tensor

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        mean = sum((x @ w.T.to(x) for x, w in zip(inputs, self.weights, strict=True)), self.offset.to(inputs[0]))
        return moments(mean, self.std)


class LinearChain:
    """z_L -> ... -> z_1 -> x with random linear Gaussian conditionals, and a random linear Gaussian q.

    sizes: of the latents, top first. spread: of q's standard deviations, 0.4 to 1 for
    p. All matrices are over z = (z_L, ..., z_1), stacked.
    """

    width, scale = 3, 0.7  # of x

    def __init__(self, sizes: Sequence[int], inference: str, *, spread: float = 1.0, seed: int = 0) -> None:
        self.sizes, self.inference = tuple(sizes), inference
        self.random = torch.Generator().manual_seed(seed)
        levels = len(sizes)
        self.priors: list[Affine | None] = [None]
        self.priors += [self._affine(sizes[k], sizes[k - 1]) for k in range(1, levels)]
        self.decoder = self._matrix(self.width, sizes[-1])
        self.posteriors: list[Affine] = []
        for k in range(levels):
            if inference == "top-down":
                inputs = (self.width,) if k == 0 else (self.width, sizes[k - 1])
            else:
                inputs = (self.width,) if k == levels - 1 else (sizes[k + 1],)
            q = self._affine(sizes[k], *inputs)
            self.posteriors.append(Affine(q.weights, q.offset, spread * q.std))

    def model(self) -> vae.HierarchicalVAE:
        levels = [
            vae.Level((size,), prior, posterior)
            for size, prior, posterior in zip(self.sizes, self.priors, self.posteriors, strict=True)
        ]
        return vae.HierarchicalVAE(levels, lambda z: z @ self.decoder.T.to(z), self.scale, self.inference)

    def evidence(self, x: torch.Tensor) -> torch.Tensor:
        """log p(x), ``[B]``."""
        _, mean, covariance = self._prior()
        onto = self._onto_x()
        covariance = onto @ covariance @ onto.T + self.scale**2 * torch.eye(self.width).double()
        return torch.distributions.MultivariateNormal(onto @ mean, covariance).log_prob(x)

    def gap(self, x: torch.Tensor) -> torch.Tensor:
        """KL(q(z | x) || p(z | x)), ``[B]``."""
        precision, mean, _ = self._prior()
        onto = self._onto_x()
        posterior = precision + onto.T @ onto / self.scale**2
        p_mean = (mean @ precision + x @ onto / self.scale**2) @ torch.linalg.inv(posterior)
        q_mean, q_covariance = self._q(x)
        p = torch.distributions.MultivariateNormal(p_mean, precision_matrix=posterior)
        return torch.distributions.kl_divergence(torch.distributions.MultivariateNormal(q_mean, q_covariance), p)

    def _prior(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Precision, mean and covariance of p(z)."""
        total = sum(self.sizes)
        to, offset, std = torch.zeros(total, total).double(), torch.zeros(total).double(), torch.ones(total).double()
        for k, prior in enumerate(self.priors):
            if prior is not None:
                to[self._at(k), self._at(k - 1)] = prior.weights[0]
                offset[self._at(k)], std[self._at(k)] = prior.offset, prior.std
        solve = torch.linalg.inv(torch.eye(total).double() - to)
        covariance = solve @ torch.diag(std**2) @ solve.T
        return torch.linalg.inv(covariance), solve @ offset, covariance

    def _q(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean ``[B, total]`` and covariance of q(z | x)."""
        total, levels = sum(self.sizes), len(self.sizes)
        to, of_x = torch.zeros(total, total).double(), torch.zeros(total, self.width).double()
        offset, std = torch.zeros(total).double(), torch.ones(total).double()
        for k, q in enumerate(self.posteriors):
            offset[self._at(k)], std[self._at(k)] = q.offset, q.std
            if self.inference == "top-down":
                of_x[self._at(k)] = q.weights[0]
                if k:
                    to[self._at(k), self._at(k - 1)] = q.weights[1]
            elif k == levels - 1:
                of_x[self._at(k)] = q.weights[0]
            else:
                to[self._at(k), self._at(k + 1)] = q.weights[0]
        solve = torch.linalg.inv(torch.eye(total).double() - to)
        return (x @ of_x.T + offset) @ solve.T, solve @ torch.diag(std**2) @ solve.T

    def _onto_x(self) -> torch.Tensor:
        onto = torch.zeros(self.width, sum(self.sizes)).double()
        onto[:, self._at(len(self.sizes) - 1)] = self.decoder
        return onto

    def _at(self, k: int) -> slice:
        start = sum(self.sizes[:k])
        return slice(start, start + self.sizes[k])

    def _affine(self, size: int, *inputs: int) -> Affine:
        weights = [self._matrix(size, n) for n in inputs]
        std = 0.4 + 0.6 * torch.rand(size, generator=self.random, dtype=torch.float64)
        return Affine(weights, 0.3 * self._matrix(size, 1)[:, 0], std)

    def _matrix(self, rows: int, columns: int) -> torch.Tensor:
        return 0.6 * torch.randn(rows, columns, generator=self.random, dtype=torch.float64)


class TwoLevels(torch.nn.Module):
    """The networks of p(z_1 | z_2), q(z_2 | x), q(z_1 | z_2, x) and p(x | z_1)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.top, self.both = torch.nn.Linear(3, 4), torch.nn.Linear(5, 6)
        self.down, self.out = torch.nn.Linear(2, 6), torch.nn.Linear(3, 3)

    def below(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return self.both(torch.cat([x, z], dim=1))

    def model(self, scale: object = 0.6) -> vae.HierarchicalVAE:
        levels = [vae.Level((2,), None, self.top), vae.Level((3,), self.down, self.below)]
        return vae.HierarchicalVAE(levels, self.out, scale)


def written_out(net: TwoLevels, x: torch.Tensor, eps: torch.Tensor, std: object = 0.6) -> tuple[torch.Tensor, ...]:
    """-log p(x | z_1), KL of z_2 and KL of z_1, ``[B]`` each, for noise ``[B, 5]``."""
    mean2, log2 = net.top(x).chunk(2, 1)
    z2 = mean2 + log2.exp() * eps[:, :2]
    mean1, log1 = net.below(x, z2).chunk(2, 1)
    z1 = mean1 + log1.exp() * eps[:, 2:]
    prior, prior_log = net.down(z2).chunk(2, 1)
    kl2 = (mean2**2 + (2 * log2).exp() - 1 - 2 * log2).sum(1) / 2
    kl1 = (((mean1 - prior) ** 2 + (2 * log1).exp()) / (2 * prior_log).exp() - 1 - 2 * log1 + 2 * prior_log).sum(1) / 2
    return -torch.distributions.Normal(net.out(z1), std).log_prob(x).sum(1), kl2, kl1


def eps_of(step: int, sample: int, count: int = 20) -> torch.Tensor:
    """The noise of `TwoLevels` at seed 2, ``[count, 5]``."""
    row = noise.sample_row(step, sample)
    return noise.normal_for(noise.POSTERIOR, (5,), seed=2, chains=noise.example_ids(None, count), row=row).double()


def ddpm(
    denoiser: Denoiser, shape: tuple[int, ...], times: Sequence[int], inference: str, variance: str, **decoder: Any
):
    """DDPM on the training steps ``times`` as a hierarchical VAE, x_T its top latent and its q fixed [Ho 2020].

    q is written from the top down by q(x_s | x_t, x_0) [Ho 2020, eq. 7], or from the bottom up by q(x_t | x_s).
    """
    times = sorted(times)
    alpha, sigma = denoiser.schedule.levels(np.array(times, dtype=np.float64))

    def D(z: torch.Tensor, k: int) -> torch.Tensor:
        eps = denoiser.net(z.float(), torch.full((len(z),), times[k])).to(z)
        return (z - sigma[k] * eps) / alpha[k]

    def back(k: int, x_0: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """The mean of q(x_s | x_t, x_0), t the k-th time and s the one below."""
        ratio = alpha[k] / alpha[k - 1]
        beta = 1 - ratio**2
        return alpha[k - 1] * beta / sigma[k] ** 2 * x_0 + ratio * sigma[k - 1] ** 2 / sigma[k] ** 2 * z

    levels = []
    for k in reversed(range(len(times))):
        last = k == len(times) - 1
        beta = 0.0 if last else 1 - (alpha[k + 1] / alpha[k]) ** 2
        small = 0.0 if last else sigma[k] / sigma[k + 1] * beta**0.5
        own = small if variance == "posterior" else beta**0.5
        prior = None if last else lambda z, k=k, own=own: moments(back(k + 1, D(z, k + 1), z), own)
        below = 1.0 if k == 0 else alpha[k - 1]
        if inference == "bottom-up":
            share = alpha[k] / below
            posterior = lambda x, a=share: moments(a * x, (1 - a**2) ** 0.5)  # noqa: E731
        elif last:
            posterior = lambda x, k=k: moments(alpha[k] * x, sigma[k])  # noqa: E731
        else:
            posterior = lambda x, z, k=k, s=small: moments(back(k + 1, x, z), s)  # noqa: E731
        levels.append(vae.Level(shape, prior, posterior))
    return vae.HierarchicalVAE(levels, lambda z: D(z, 0), inference=inference, **decoder)
