"""How likely data are under a trained denoiser, in bits per dimension: the DDPM bound and the exact ODE likelihood.

>>> bound = ulam.bounds.vlb(denoiser, x_0)                    # the variational bound, term by term
>>> exact = ulam.bounds.likelihood(denoiser, x_0, samples=8)  # the probability-flow ODE, see ulam.estimation.likelihood
>>> e = ulam.bounds.x0_variances(denoiser, other_x_0)         # for variance="optimal" here and in ulam.samplers.DDPM
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ulam_kernels.arguments import choice, whole
from ulam_kernels.likelihood import discretised_log_likelihood, gaussian_kl
from ulam_kernels.reprs import short_repr
from ulam_kernels.tracing import check_not_recorded, outside_graphs

from . import tweedie
from .arguments import chain_ids, per_chain, whole_number
from .conditioning import rowwise
from .denoiser import Denoiser, check_denoiser
from .estimation.estimator import Inputs
from .estimation.likelihood import Likelihood, likelihood
from .estimation.probes import MOST_PROBES
from .estimation.reverse_chain import Index, ReverseChain
from .estimation.uncertainty import BatchEstimate, batch_mean, mean_and_error
from .estimation.x0_variances import check_clip, check_finite, check_pair, noised_estimate, x0_variances
from .gradients import check_no_gradient
from .lazily import suggests
from .noise import BOUND, SAMPLED_STEPS, normal_for
from .samplers.ddpm import MEASURE, VARIANCES, at_times, check_x0_variances
from .schedules import Array

__all__ = ["Bound", "Likelihood", "ReverseChain", "likelihood", "vlb", "x0_variances"]

DECODERS = ("discretised", "gaussian")
FEW_ELEMENTS, PROBES = 64, 4  # a trace is exact up to so many, and estimated with so many products beyond


@dataclass(frozen=True)
class Bound(BatchEstimate):
    """A bound on the negative log-likelihood, in bits per dimension.

    value, stderr: over the whole batch; the error covers the spread over chains and so of the noise (nan for one
    chain). per_chain, per_chain_stderr: ``[B]``; the error is that of the noise alone, from repeats (nan for
    ``samples=1``). prior: ``[B]``, L_T, exact. terms: ``[E, B]``, every term that was evaluated: the KL L_(t-1), at the
    first step the decoder's L_0. t: ``[E, B]`` int64, the training steps of the terms. weight: ``[E]``; per_chain =
    prior + sum of weight * terms.
    """

    prior: torch.Tensor
    terms: torch.Tensor
    t: torch.Tensor
    weight: torch.Tensor

    __repr__ = short_repr

    def by_step(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(t, mean, stderr), each ``[K]``: the steps that were evaluated, and the means of their terms."""
        t, place = torch.unique(self.t, return_inverse=True)
        count, mean = torch.bincount(place.flatten()), torch.bincount(place.flatten(), self.terms.flatten())
        mean = mean / count
        squares = torch.bincount(place.flatten(), (self.terms - mean[place]).flatten() ** 2)
        return t, mean, torch.where(count > 1, squares / (count - 1).clamp(min=1) / count, torch.nan).sqrt()


@outside_graphs
def vlb(
    denoiser: Denoiser,
    x_0: torch.Tensor,
    cond: Inputs | None = None,
    *,
    variance: str = "posterior",
    x0_variances: Mapping[float, float] | None = None,
    timesteps: Sequence[int] | None = None,
    sampled: int | None = None,
    samples: int = 1,
    decoder: str = "discretised",
    bins: int = 256,
    ends: tuple[float, float] = (-1.0, 1.0),
    cdf: str = "exact",
    clip: tuple[float, float] | None = None,
    seed: int = 0,
    chains: int | range | torch.Tensor | None = None,
    backend: str | None = None,
) -> Bound:
    """The variational bound of DDPM on -log p(x_0), in bits per dimension [Ho 2020, eq. 5]:

        L_T + sum_(t > 0) L_(t-1) + L_0
        L_T     = KL(q(x_T | x_0) || N(0, I))
        L_(t-1) = KL(q(x_(t-1) | x_t, x_0) || N(mu(x_t, D), variance)), x_t ~ q(x_t | x_0)
        L_0     = -log p(x_0 | x_1)

    openai/guided-diffusion's names: prior is ``_prior_bpd``; a term at training step t (from 0) is
    ``_vb_terms_bpd(t)["output"]``; per_chain is ``calc_bpd_loop``'s ``total_bpd`` and terms its ``vb``, from t = 0 up,
    under ``clip=(-1, 1)`` (its ``clip_denoised``) and ``cdf="tanh"`` (``discretized_gaussian_log_likelihood``).
    variance posterior, beta, learned and learned_range are its FIXED_SMALL, FIXED_LARGE, LEARNED and LEARNED_RANGE.

    The noise is noise-v1 of (seed, chain, number of the evaluation): a chain's bound does not depend on its batch.

    Args:
        x_0: ``[B, *shape]``, for the discretised decoder on ``bins`` equal levels between the two ``ends``. cond: the
            network's further arguments.
        variance: of the model's steps, see :class:`ReverseChain`. optimal: beta~ + on_D^2 e_t, the fixed one of the
            least bound [Bao 2022]; at the first step e_t for the gaussian decoder, else as posterior.
        x0_variances: {t: e_t} from :func:`x0_variances` on other data, under the same clip. By default what an ideal D
            without clip has: Tweedie's posterior variance at the x_t of this batch, the mean over elements (exact up to
            64 a chain, else by 4 products) and chains, on which a chain's bound then depends. It does not see x_0, so
            the bound remains one.
        timesteps: the steps of the reverse process, every training step by default (respaced: beta is recomputed).
        sampled: evaluate L_0 and this many of the other steps, each chain drawing one from each of as many equal parts;
            each step stands for its part, so the bound stays unbiased. samples: repeats, with new noise and steps.
        decoder: discretised: the probability of the bin of x_0 [Ho 2020, eq. 13], its cdf exact or tanh. gaussian: the
            density of continuous data; a fixed variance is (sigma / alpha)^2 of the first step there.
        clip: (lo, hi) for D. chains: ids of the examples, 0 to B - 1 by default.

    Raises:
        TypeError, ValueError: an invalid argument, named in the message.
        RuntimeError: x_0 or cond requires grad while gradients are recorded: none flows through the result (to train on
            the bound, see :func:`ulam.objectives.hybrid`).
    """
    check_not_recorded("vlb")
    check_no_gradient("bounds.vlb", cond, x_0=x_0)
    check_denoiser(denoiser, cond)
    x_0 = check_finite(x_0)
    if chains is not None and len(chain_ids(chains)) != len(x_0):
        raise ValueError(f"chains: got {len(chain_ids(chains))} ids, expected {len(x_0)}, one an example")
    chain = ReverseChain(denoiser.schedule, timesteps)
    choice(variance, "variance", VARIANCES)
    choice(decoder, "decoder", DECODERS)
    clip = check_clip(clip)
    samples = whole(samples, "samples", 1, MOST_PROBES)
    if sampled is not None and not 1 <= whole_number("sampled", sampled) <= max(len(chain) - 1, 1):
        raise ValueError(f"sampled: got {sampled}, expected 1 to the {len(chain) - 1} steps after the first")
    ends = _ends(ends, x_0, decoder)
    optimal = _optimal(chain, variance, x0_variances, sampled, decoder)
    options = bins, ends, cdf, clip, seed, chains, backend
    term = _Term(denoiser, x_0, rowwise(cond), chain, variance, optimal, decoder, *options)
    terms: list[torch.Tensor] = []
    steps: list[torch.Tensor] = []
    for repeat in range(samples):
        for k in _evaluated(chain, x_0, sampled, seed, repeat, chains):
            terms.append(term(k, number=len(terms)))
            steps.append(torch.from_numpy(chain.t[k]))
    return _bound(term.prior(), torch.stack(terms), torch.stack(steps), _weights(len(chain), sampled), samples)


def _optimal(
    chain: ReverseChain, variance: str, given: Mapping[float, float] | None, sampled: int | None, decoder: str
) -> Array | None:
    """log sigma_*^2 ``[K]`` of the numbers ``given``; None where there are none, or none are needed."""
    pairs = check_x0_variances(given, variance)
    if pairs is not None:
        found = chain.log_optimal(at_times(pairs, chain.t.astype(np.float64)))
        if decoder == "gaussian" and not np.isfinite(found[0]):
            raise ValueError(f"x0_variances: got 0 at t = {chain.t[0]}, expected more: it is the decoder's variance")
        return found
    if variance == "optimal" and sampled is not None:
        raise ValueError(f"x0_variances: got None under sampled={sampled}, expected {MEASURE}: chains differ in steps")
    if variance == "optimal" and chain.alpha[-1] == 0:
        raise ValueError(f"x0_variances: got None at zero terminal SNR, expected {MEASURE}")
    return None


def _ends(ends: object, x_0: torch.Tensor, decoder: str) -> tuple[float, float]:
    """The least and the largest level, with x_0 between them where the decoder is discretised; else raises."""
    lo, hi = check_pair(ends, "ends")
    slack = 5e-4 * (hi - lo)
    outside = x_0[(x_0 < lo - slack) | (x_0 > hi + slack)] if decoder == "discretised" else x_0[:0]
    if outside.numel():
        right = f"numbers in [{lo:g}, {hi:g}] for the discretised decoder"
        raise ValueError(f"x_0: got {float(outside.flatten()[0]):g}, expected {right}")
    return lo, hi


@dataclass(frozen=True)
class _Term:
    """One term of the bound for every chain, ``[B]`` float64 bits per dimension."""

    denoiser: Denoiser
    x_0: torch.Tensor
    cond: dict[str, Any]
    chain: ReverseChain
    variance: str
    optimal: Array | None
    decoder: str
    bins: int
    ends: tuple[float, float]
    cdf: str
    clip: tuple[float, float] | None
    seed: int
    chains: int | range | torch.Tensor | None
    backend: str | None

    def __call__(self, k: Index, number: int) -> torch.Tensor:
        """The term of step ``k`` ``[B]`` of the chain; all of k are 0, or none is."""
        x_t, D, v = self._estimate(k, number)
        log_variance = self._per_chain(self._log_variance(k, v, x_t))
        if not (k == 0).all():
            # Both means have the same term in x_t, which drops out; a common factor of the rest leaves the KL as it is.
            scale = 2 * np.log(self.chain.on_D[k])
            shift = per_chain(self._per_chain(scale), log_variance)
            posterior_variance = self._per_chain(self.chain.small[k] - scale)
            nats = gaussian_kl(self._x, posterior_variance, D, log_variance - shift, backend=self.backend)
        elif self.decoder == "discretised":
            nats = -self._log_probability(D, log_variance / 2)
        else:
            nats = -self._log_density(D, log_variance)
        return nats / (self.x_0[0].numel() * math.log(2))

    def prior(self) -> torch.Tensor:
        """L_T, ``[B]``."""
        alpha, sigma = self.chain.alpha[-1], self.chain.sigma[-1]
        variance = self._per_chain(np.full(len(self.x_0), 2 * math.log(sigma)))
        zero = torch.zeros_like(variance)
        mean = (alpha * self._x).contiguous()
        nats = gaussian_kl(mean, variance, torch.zeros_like(mean), zero, backend=self.backend)
        return nats / (self.x_0[0].numel() * math.log(2))

    @property
    def _x(self) -> torch.Tensor:
        return self._wide(self.x_0)

    def _estimate(self, k: Index, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """x_t, D, and the second half of the network's output where the variance is learned."""
        ids = len(self.x_0) if self.chains is None else self.chains
        names = {"seed": self.seed, "chains": ids, "device": self.x_0.device, "backend": self.backend}
        z = normal_for(BOUND, self.x_0.shape[1:], row=number, **names)
        options: dict[str, Any] = {"clip": self.clip, "learned": self.variance.startswith("learned")}
        t = self.chain.t[k].astype(np.float64)
        x_t, D, v = noised_estimate(self.denoiser, self.x_0, t, z, self.cond, backend=self.backend, **options)
        return x_t, self._wide(D), None if v is None else self._wide(v)

    def _log_variance(self, k: Index, v: torch.Tensor | None, x_t: torch.Tensor) -> torch.Tensor | Array:
        """The model's log-variance at steps ``k``, ``[B]`` if fixed, else like v; of the decoder at the first."""
        first = bool((k == 0).all())
        if first and self.decoder == "gaussian" and self.variance in ("posterior", "beta"):
            return np.asarray(2 * np.log(self.chain.sigma[k] / self.chain.alpha[k]))
        if self.variance != "optimal" or (first and self.decoder == "discretised"):
            return self.chain.log_variance("posterior" if self.variance == "optimal" else self.variance, k, v)
        if self.optimal is not None:
            return np.asarray(self.optimal[k])
        return np.asarray(self.chain.log_optimal(self._posterior_variance(x_t, k))[k])

    def _posterior_variance(self, x_t: torch.Tensor, k: Index) -> float:
        """Tweedie's variance of x_0 given x_t, the mean over the elements of the batch, which is at one step."""
        alpha, ratio = self.chain.alpha[k[0]], self.chain.sigma[k[0]] / self.chain.alpha[k[0]]
        samples = None if x_t[0].numel() <= FEW_ELEMENTS else PROBES
        y = (x_t.double() / alpha).to(x_t.dtype)
        diagonal = tweedie.covariance_diagonal(self.denoiser, y, ratio, self.cond, samples=samples, seed=self.seed)
        mean = float(diagonal.double().mean())
        if not (mean > 0 or (mean == 0 and k[0])):  # at the first step it is the decoder's variance
            t = self.chain.t[k[0]]
            raise ValueError(
                f"denoiser: got a posterior variance of {mean:g} at t = {t}, expected one above 0, or x0_variances"
            )
        return mean

    def _log_probability(self, D: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
        """log P(N(D, exp(log_scale)^2) falls into the bin of x_0), ``[B]``, of levels from -1 to 1 after scaling."""
        x, (lo, hi) = self._x, self.ends
        if (lo, hi) != (-1, 1):
            x, D = ((2 * of - lo - hi) / (hi - lo) for of in (x, D))
            log_scale = log_scale + math.log(2 / (hi - lo))
        return discretised_log_likelihood(x, D, log_scale, self.bins, cdf=self.cdf, backend=self.backend)

    def _log_density(self, D: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        """log N(x_0; D, variance) of the first step, ``[B]``."""
        wide = log_variance.double()
        wide = per_chain(wide, D) if wide.dim() == 1 else wide
        squares = (self._x.double() - D.double()) ** 2 * (-wide).exp()
        return -(squares + wide + math.log(2 * math.pi)).flatten(1).sum(1) / 2

    def _wide(self, x: torch.Tensor) -> torch.Tensor:
        """x in the dtype of the reductions, float64 where the data are, else float32."""
        return x.to(torch.float64 if self.x_0.dtype == torch.float64 else torch.float32).contiguous()

    def _per_chain(self, values: torch.Tensor | Array) -> torch.Tensor:
        return self._wide(torch.from_numpy(values) if isinstance(values, np.ndarray) else values).to(self.x_0.device)


def _evaluated(
    chain: ReverseChain, x_0: torch.Tensor, sampled: int | None, seed: int, repeat: int, chains: object
) -> list[Index]:
    """The steps ``[B]`` of one repeat's evaluations."""
    first = np.zeros(len(x_0), dtype=np.int64)
    if sampled is None:
        return [first + k for k in range(len(chain))]
    if len(chain) == 1:
        return [first]
    ids = len(x_0) if chains is None else chains
    z = normal_for(SAMPLED_STEPS, (sampled,), seed=seed, chains=ids, row=repeat)
    uniform = torch.special.ndtr(z.double()).numpy()
    edges = np.linspace(1, len(chain), sampled + 1)  # parts of (len - 1) / sampled steps each, cut at fractions
    drawn = np.floor(edges[:-1] + uniform * (edges[1:] - edges[:-1])).astype(np.int64)
    return [first, *np.minimum(drawn, len(chain) - 1).T]


def _weights(steps: int, sampled: int | None) -> Array:
    """The number of terms that each evaluation of one repeat stands for."""
    if sampled is None or steps == 1:
        return np.ones(steps)
    return np.append(1.0, np.full(sampled, (steps - 1) / sampled))


def _bound(prior: torch.Tensor, terms: torch.Tensor, steps: torch.Tensor, weights: Array, samples: int) -> Bound:
    weight = torch.from_numpy(weights).to(terms)
    repeats = prior + (terms.view(samples, len(weight), -1) * weight[:, None]).sum(1)
    mean, error = mean_and_error(repeats)
    return Bound(
        **batch_mean(mean),
        per_chain=mean,
        per_chain_stderr=error,
        prior=prior,
        terms=terms,
        t=steps.to(terms.device),
        weight=weight.repeat(samples) / samples,
    )


suggests(__name__)
