"""The evidence lower bound, latent by latent, and the importance-weighted one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from ulam_kernels.reprs import short_repr

from ..estimation.uncertainty import WithError, mean_and_error
from .decoder import Decoder
from .gaussians import Moments, kl_elements, nats, standardised
from .levels import Latent, Level, infer, posterior_noise, priors

Draw = tuple[list[Latent], list[Moments | None]]


@dataclass(frozen=True)
class Elbo(WithError[torch.Tensor]):
    """The evidence lower bound of each example in nats, ``[B]`` float64: value = reconstruction - sum of kl.

    stderr: its Monte Carlo error over the samples of q (nan for one sample). reconstruction: E_q log p(x | z_1).
    kl: ``[B, L]``, one column a latent, top first. bits_per_dim: -value of the whole batch, in bits an element of x.
    """

    reconstruction: torch.Tensor
    kl: torch.Tensor
    dimensions: int = field(repr=False)

    __repr__ = short_repr

    @property
    def bits_per_dim(self) -> float:
        return float(-self.value.detach().mean()) / (self.dimensions * math.log(2))


@dataclass(frozen=True)
class ImportanceWeighted(WithError[torch.Tensor]):
    """log 1/K sum_k w_k of each example in nats, ``[B]`` float64, with w_k = p(x, z^k) / q(z^k | x), z^k ~ q.

    stderr: of the logarithm, from the spread of the weights (nan for K = 1). log_ratios: log w_k ``[K, B]``.
    """

    log_ratios: torch.Tensor

    __repr__ = short_repr


@dataclass(frozen=True)
class Posterior:
    """Draws of all latents of x from q, and the priors there, sample by sample."""

    levels: Sequence[Level]
    inference: str
    x: torch.Tensor
    samples: int
    seed: int
    step: int
    chains: torch.Tensor | None

    __repr__ = short_repr

    def __iter__(self) -> Iterator[Draw]:
        for sample in range(self.samples):
            noise = posterior_noise(self.levels, self.x, self.seed, self.step, sample, self.chains)
            latents = infer(self.levels, self.inference, self.x, noise)
            yield latents, priors(self.levels, latents)


def elbo(posterior: Posterior, decoder: Decoder) -> Elbo:
    """See :meth:`HierarchicalVAE.elbo`."""
    kls, reconstructions, values = [], [], []
    for latents, given in posterior:
        terms = [nats(kl_term(latent, p, posterior.inference)) for latent, p in zip(latents, given, strict=True)]
        kls.append(torch.stack(terms, dim=1) if len(terms) > 1 else terms[0][:, None])
        reconstructions.append(decoder.log_likelihood(posterior.x, latents[-1].z))
        values.append(reconstructions[-1] - sum(terms[1:], terms[0]))
    dimensions = math.prod(posterior.x.shape[1:])
    if len(values) == 1:  # without operations that change nothing, which a small batch would wait for
        return Elbo(values[0], torch.full_like(values[0], math.nan), reconstructions[0], kls[0], dimensions)
    value, error = mean_and_error(torch.stack(values))
    return Elbo(value, error.detach(), torch.stack(reconstructions).mean(0), torch.stack(kls).mean(0), dimensions)


def importance_weighted(posterior: Posterior, decoder: Decoder) -> ImportanceWeighted:
    """See :meth:`HierarchicalVAE.importance_weighted`."""
    ratios = []
    for latents, given in posterior:
        total = decoder.log_likelihood(posterior.x, latents[-1].z)
        for latent, p in zip(latents, given, strict=True):
            total = total + nats(log_ratio(latent, p))
        ratios.append(total)
    log_ratios = torch.stack(ratios)
    _, error = mean_and_error(torch.softmax(log_ratios.detach(), 0) * len(ratios))
    return ImportanceWeighted(torch.logsumexp(log_ratios, 0) - math.log(len(ratios)), error, log_ratios)


def kl_term(latent: Latent, p: Moments | None, inference: str) -> torch.Tensor:
    """What each element of z_k adds to KL(q || p), expected as far as is known given the latents q depends on.

    Top-down, and at the top of either inference, that is the divergence of two Gaussians. Bottom-up below the top, p
    depends on the draw of z_{k+1}, which depends on z_k: log q(z_k | z_{k-1}) is replaced by its expectation, the
    negative entropy, and log p(z_k | z_{k+1}) is taken at the draws.
    """
    if p is None or inference == "top-down":
        return kl_elements(latent.q, p)
    return (standardised(latent.z, p).square() - 1) / 2 + p.log_std - latent.q.log_std


def log_ratio(latent: Latent, p: Moments | None) -> torch.Tensor:
    """log p(z_k | z_{k+1}) - log q(z_k | .) of every element at the draw."""
    log_std = latent.q.log_std if p is None else latent.q.log_std - p.log_std
    return (latent.eps.square() - standardised(latent.z, p).square()) / 2 + log_std
