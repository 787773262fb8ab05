"""How likely data are under a trained denoiser, in bits per dimension: the DDPM bound and the exact ODE likelihood.

>>> bound = ulam.bounds.vlb(denoiser, x_0)                    # the variational bound, term by term
>>> exact = ulam.bounds.likelihood(denoiser, x_0, samples=8)  # the probability-flow ODE, see ulam.estimation.likelihood
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from ulam_kernels.arguments import choice, described, real, whole
from ulam_kernels.likelihood import discretised_log_likelihood, gaussian_kl
from ulam_kernels.tracing import check_not_recorded, outside_graphs
from ulam_kernels.validation import check_batch

from .arguments import chain_ids, per_chain, whole_number
from .denoiser import Denoiser, check_denoiser
from .estimation.estimator import Inputs
from .estimation.forward import add_noise
from .estimation.likelihood import Likelihood, likelihood
from .estimation.probes import MOST_PROBES
from .estimation.uncertainty import BatchEstimate, batch_mean, mean_and_error
from .evaluation import check_halves, check_output, in_eval_mode, modules_in
from .gradients import check_no_gradient, without_graph
from .noise import BOUND, SAMPLED_STEPS, normal_for
from .ops import predict_x0
from .samplers.ddpm import VARIANCES
from .schedules import Array, Schedule, VariancePreserving, posterior

__all__ = ["Bound", "Likelihood", "ReverseChain", "likelihood", "vlb"]

Index: TypeAlias = npt.NDArray[np.int64]
DECODERS = ("discretised", "gaussian")
VARIANCE_HALVES = "the mean, then the variance"


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

    def by_step(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(t, mean, stderr), each ``[K]``: the steps that were evaluated, and the means of their terms."""
        t, place = torch.unique(self.t, return_inverse=True)
        count, mean = torch.bincount(place.flatten()), torch.bincount(place.flatten(), self.terms.flatten())
        mean = mean / count
        squares = torch.bincount(place.flatten(), (self.terms - mean[place]).flatten() ** 2)
        return t, mean, torch.where(count > 1, squares / (count - 1).clamp(min=1) / count, torch.nan).sqrt()


class ReverseChain:
    """The Gaussian steps of DDPM on training steps ``t`` ``[K]``, increasing, and their posteriors [Ho 2020, eq. 7].

    With s the step before t, the data before the first, all ``[K]`` float64: on_D, the coefficient of x_0 in the mean
    of q(x_s | x_t, x_0) (that of x_t is the model's own, so it drops out of every KL); small = log beta~ and
    large = log beta, recomputed for the steps left [Nichol & Dhariwal 2021, sec. 4]. beta~ of the first step is 0, so
    small has the second step's there, as in openai/guided-diffusion.

    Raises TypeError or ValueError for a schedule that is not vp, or steps that are not among its own.
    """

    def __init__(self, schedule: Schedule, timesteps: Sequence[int] | None = None) -> None:
        if not isinstance(schedule, VariancePreserving):
            raise ValueError(
                f"schedule: got {schedule!r:.80}, expected a vp schedule: the bound is of its training steps"
            )
        if timesteps is not None and (not isinstance(timesteps, Sequence) or isinstance(timesteps, str)):
            raise TypeError(f"timesteps: got {described(timesteps)}, expected training steps, or None")
        steps = range(schedule.steps) if timesteps is None else [whole_number("timesteps", t) for t in timesteps]
        self.t = np.array(sorted(steps), dtype=np.int64)
        if not len(self.t) or len(set(steps)) < len(self.t) or self.t[0] < 0 or self.t[-1] >= schedule.steps:
            raise ValueError(
                f"timesteps: got {timesteps!r:.80}, expected different numbers from 0 to {schedule.steps - 1}"
            )
        self.alpha, self.sigma = schedule.levels(self.t.astype(np.float64))
        alpha_s, sigma_s = np.append(1.0, self.alpha[:-1]), np.append(0.0, self.sigma[:-1])
        _, self.on_D, fresh = posterior(self.alpha, self.sigma, alpha_s, sigma_s)
        with np.errstate(divide="ignore"):
            self.large, self.small = np.log(self.sigma**2 * fresh), np.log(sigma_s**2 * fresh)
        self.small[0] = self.small[1] if len(self.t) > 1 else self.large[0]

    def __len__(self) -> int:
        return len(self.t)

    def log_variance(self, variance: str, k: Index, v: torch.Tensor | None) -> torch.Tensor | Array:
        """The model's log-variance at steps ``k`` ``[B]``: ``[B]`` if fixed, else like v, the network's second half.

        | variance | |
        |---|---|
        | posterior, beta | log beta~, log beta; both log beta~ of the second step at the first |
        | learned | v |
        | learned_range | f log beta + (1 - f) log beta~, f = (v + 1) / 2 [Nichol & Dhariwal 2021, eq. 15] |

        With the ideal D and ever more steps the bound converges to the exact value under beta if the data have a
        density, under posterior if they are atoms [Ho 2020, sec. 3.2]; a learned variance can serve both.
        """
        if variance == "posterior":
            return np.asarray(self.small[k])
        if variance == "beta":
            return np.asarray(np.where(k == 0, self.small[0], self.large[k]))
        assert v is not None, "the network's output was checked"
        if variance == "learned":
            return v
        low, high = (per_chain(torch.from_numpy(a[k]).to(v), v) for a in (self.small, self.large))
        return (low + high) / 2 + (high - low) / 2 * v


@outside_graphs
def vlb(
    denoiser: Denoiser,
    x_0: torch.Tensor,
    cond: Inputs | None = None,
    *,
    variance: str = "posterior",
    timesteps: Sequence[int] | None = None,
    sampled: int | None = None,
    samples: int = 1,
    decoder: str = "discretised",
    bins: int = 256,
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
        x_0: ``[B, *shape]``, for the discretised decoder in ``bins`` bins from -1 to 1. cond: the network's further
            arguments.
        variance: of the model's steps, see :class:`ReverseChain`.
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
    check_batch(x_0, "x_0")
    x_0 = x_0.resolve_neg()
    if chains is not None and len(chain_ids(chains)) != len(x_0):
        raise ValueError(f"chains: got {len(chain_ids(chains))} ids, expected {len(x_0)}, one an example")
    chain = ReverseChain(denoiser.schedule, timesteps)
    choice(variance, "variance", VARIANCES)
    choice(decoder, "decoder", DECODERS)
    if clip is not None:
        if not isinstance(clip, Sequence) or isinstance(clip, str) or len(clip) != 2:
            raise TypeError(f"clip: got {described(clip)}, expected (lo, hi) or None")
        clip = real(clip[0], "clip"), real(clip[1], "clip")
    samples = whole(samples, "samples", 1, MOST_PROBES)
    if sampled is not None and not 1 <= whole_number("sampled", sampled) <= max(len(chain) - 1, 1):
        raise ValueError(f"sampled: got {sampled}, expected 1 to the {len(chain) - 1} steps after the first")
    if decoder == "discretised" and len(x_0) and not float(x_0.abs().max()) <= 1 + 1e-3:  # NaN too
        largest = float(x_0.abs().max())
        raise ValueError(f"x_0: got {largest:g} in size, expected numbers in [-1, 1] for the discretised decoder")
    term = _Term(denoiser, x_0, dict(cond or {}), chain, variance, decoder, bins, cdf, clip, seed, chains, backend)
    terms: list[torch.Tensor] = []
    steps: list[torch.Tensor] = []
    for repeat in range(samples):
        for k in _evaluated(chain, x_0, sampled, seed, repeat, chains):
            terms.append(term(k, number=len(terms)))
            steps.append(torch.from_numpy(chain.t[k]))
    return _bound(term.prior(), torch.stack(terms), torch.stack(steps), _weights(len(chain), sampled), samples)


@dataclass(frozen=True)
class _Term:
    """One term of the bound for every chain, ``[B]`` float64 bits per dimension."""

    denoiser: Denoiser
    x_0: torch.Tensor
    cond: dict[str, torch.Tensor]
    chain: ReverseChain
    variance: str
    decoder: str
    bins: int
    cdf: str
    clip: tuple[float, float] | None
    seed: int
    chains: int | range | torch.Tensor | None
    backend: str | None

    def __call__(self, k: Index, number: int) -> torch.Tensor:
        """The term of step ``k`` ``[B]`` of the chain; all of k are 0, or none is."""
        D, v = self._estimate(k, number)
        log_variance = self._per_chain(self.chain.log_variance(self.variance, k, v))
        if not (k == 0).all():
            # Both means have the same term in x_t, which drops out; a common factor of the rest leaves the KL as it is.
            scale = 2 * np.log(self.chain.on_D[k])
            shift = per_chain(self._per_chain(scale), log_variance)
            posterior_variance = self._per_chain(self.chain.small[k] - scale)
            nats = gaussian_kl(self._x, posterior_variance, D, log_variance - shift, backend=self.backend)
        elif self.decoder == "discretised":
            options = {"cdf": self.cdf, "backend": self.backend}
            nats = -discretised_log_likelihood(self._x, D, log_variance / 2, self.bins, **options)  # type: ignore[arg-type]
        else:
            nats = -self._log_density(D, v)
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

    def _estimate(self, k: Index, number: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """D, and the second half of the network's output where the variance is learned."""
        denoiser, channels = self.denoiser, self.x_0.shape[1]
        t = torch.from_numpy(self.chain.t[k])
        ids = len(self.x_0) if self.chains is None else self.chains
        names = {"seed": self.seed, "chains": ids, "device": self.x_0.device, "backend": self.backend}
        z = normal_for(BOUND, self.x_0.shape[1:], row=number, **names)
        with torch.no_grad():
            x_t = add_noise(
                self.x_0.detach(), t, denoiser.schedule, "eps", noise=self._wide(z), backend=self.backend
            ).x_t
            network_times = t.to(x_t.device, denoiser.time_dtype)
            with in_eval_mode(modules_in(denoiser.net)):
                m = without_graph(lambda x: denoiser.net(x, network_times, **self.cond), x_t)
            learned = self.variance.startswith("learned")
            m = check_halves(m, x_t.shape, VARIANCE_HALVES) if learned else check_output(m, x_t.shape)
            D = predict_x0(x_t, m[:, :channels].contiguous(), t, denoiser.schedule, denoiser.predicts)
        D = D if self.clip is None else D.clamp(*self.clip)
        return self._wide(D), self._wide(m[:, channels:]) if learned else None

    def _log_density(self, D: torch.Tensor, v: torch.Tensor | None) -> torch.Tensor:
        """log N(x_0; D, variance) of the first step, ``[B]``."""
        k = np.zeros(len(self.x_0), dtype=np.int64)
        first = 2 * np.log(self.chain.sigma[k] / self.chain.alpha[k])
        log_variance = self._per_chain(first if v is None else self.chain.log_variance(self.variance, k, v))
        wide = log_variance.double().view(len(D), *([1] * (D.dim() - 1) if v is None else D.shape[1:]))
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
