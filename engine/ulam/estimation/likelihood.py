"""The likelihood of the probability-flow ODE, by the instantaneous change of variables [Song 2021b, sec. 4.3, D.2]."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import torch

from ulam_kernels.arguments import choice, described, positive, whole
from ulam_kernels.reprs import short_repr
from ulam_kernels.tracing import check_not_recorded, outside_graphs
from ulam_kernels.validation import check_batch

from ..denoiser import Denoiser, check_denoiser
from ..evaluation import check_like
from ..gradients import check_no_gradient
from ..noise import DEQUANTISATION, normal_for
from ..schedules import Array, Schedule, SubVP, VariancePreserving
from .derivatives import Derivatives
from .estimator import Estimator, Inputs, training_steps
from .probes import KINDS, MOST_PROBES, dot, probes
from .uncertainty import BatchEstimate, batch_mean, mean_and_error

MOST_STEPS = 1 << 30
SOLVERS = ("rk4", "heun", "adaptive")
TRACES = ("hutchinson", "exact")
FLOW_RANGE = (1e-3, 1e3)  # of sigma / alpha, where that of the schedule is 0 to infinity

Step: TypeAlias = "Callable[[_Flow, torch.Tensor, float, float], tuple[torch.Tensor, torch.Tensor]]"


@dataclass(frozen=True)
class Likelihood(BatchEstimate):
    """The negative log-likelihood of a batch, in bits per dimension.

    value, stderr: over the whole batch; the error covers the spread over chains and so of the probes (nan for one
    chain). per_chain, per_chain_stderr: ``[B]``; the error is that of the trace alone (0 if exact, nan for one probe).
    log_prob: ``[B]`` float64, the log density in nats (of the dequantised data, where there are ``levels``). nfe:
    evaluations of D. derivatives: the mode of automatic differentiation that ran, forward or reverse.
    """

    log_prob: torch.Tensor
    nfe: int
    derivatives: str

    __repr__ = short_repr


@outside_graphs
def likelihood(
    denoiser: Denoiser,
    x: torch.Tensor,
    cond: Inputs | None = None,
    *,
    solver: str = "rk4",
    steps: int = 100,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    trace: str = "hutchinson",
    samples: int = 1,
    kind: str = "rademacher",
    levels: int | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    prior: Callable[[torch.Tensor], torch.Tensor] | None = None,
    seed: int = 0,
) -> Likelihood:
    """log p(x) of the model that integrates the probability-flow ODE, for x ``[B, *shape]``.

    For y = x_t / alpha_t at the level l = log(sigma_t / alpha_t), on any schedule [Karras 2022, eq. 1; n dimensions]:

        dy/dl = y - D(y, e^l),   d log p_l(y) / dl = -(n - div D(y, e^l))
        log p(x) = log p_max(y_max) + integral of (n - div D) dl,   y = x at sigma_min

    div D is the mean of v' (dD/dy) v over ``samples`` probes of noise-v1, each kept along its path [Hutchinson 1990;
    Grathwohl 2019], or exact: one backward pass per probe, or per element. State and integral are float64, the network
    runs in the dtype of x. A chain's number does not depend on its batch, but for an adaptive solver, whose steps are
    chosen for the whole batch (within its tolerances). No gradient flows through the result. Derivatives are in reverse
    mode where the network allows it, unless the denoiser says otherwise.

    Args:
        solver: rk4 (order 4) or heun (order 2) on ``steps`` equal steps of l; adaptive: scipy's RK45 with rtol, atol.
            Under time="index" or predicts="mean" only heun, on the training steps nearest to the equal ones (fewer
            where two are one).
        trace: hutchinson or exact. samples, kind: how many probes, rademacher (far less variance here) or gaussian.
        levels: the number of values from -1 to 1 on which the data are quantised: uniform noise as wide as a bin is
            added, and the mean result over that noise bounds the bits of the quantised data [Theis 2016].
        sigma_min, sigma_max: the range of sigma / alpha, by default the schedule's own.
        prior: log density ``[B]`` of x_t at sigma_max, by default N(0, init_scale^2 I), what a sampler starts from.

    Raises:
        TypeError, ValueError: an invalid argument, named in the message; a network that hides its dependence on x or
            has no derivative.
        RuntimeError: the adaptive solver failed; x or cond requires grad while gradients are recorded.
    """
    check_not_recorded("likelihood")
    check_denoiser(denoiser, cond)
    _check(solver, trace, samples, kind, steps, levels, prior)
    check_no_gradient("likelihood", cond, x=x)
    check_batch(x, "x")
    x, bin_width = _dequantised(x.detach(), levels, seed)
    n = x[0].numel()
    low, high = _range(denoiser.schedule, sigma_min, sigma_max)
    flow = _Flow(denoiser, x, cond, low, high, trace, samples, kind, seed)
    if denoiser.told_steps and solver != "heun":
        raise ValueError(
            f"solver: got {solver!r} under {denoiser.told_steps}, expected 'heun': its levels can be training steps"
        )
    if solver == "adaptive":
        y, gained = _adaptive(flow, x.double(), math.log(low), math.log(high), rtol, atol)
    else:
        grid = _grid(denoiser, low, high, steps)
        y, gained = _fixed(flow, x.double(), grid, {"rk4": _rk4, "heun": _heun}[solver])
    logs = _log_prior(denoiser.schedule, y, high, prior, x.dtype) + gained  # [samples, B]
    log_prob, error = mean_and_error(logs)
    unit = n * math.log(2)
    per_chain = -(log_prob + n * math.log(bin_width)) / unit
    return Likelihood(
        **batch_mean(per_chain),
        per_chain=per_chain,
        per_chain_stderr=torch.zeros_like(error) if trace == "exact" else error / unit,
        log_prob=log_prob,
        nfe=flow.evaluations,
        derivatives=flow.mode,
    )


def _dequantised(x: torch.Tensor, bins: int | None, seed: int) -> tuple[torch.Tensor, float]:
    """x with uniform noise as wide as one of ``bins`` bins from -1 to 1, and that width (without bins x and 1)."""
    if bins is None:
        return x, 1.0
    width = 2 / (bins - 1)
    z = normal_for(DEQUANTISATION, x.shape[1:], seed=seed, chains=len(x), device=x.device)
    return x + (width * (torch.special.ndtr(z.double()) - 0.5)).to(x.dtype), width


class _Flow:
    """dy/dl, and n - div D ``[samples, B]`` float64, at the noise level l."""

    def __init__(
        self,
        denoiser: Denoiser,
        x: torch.Tensor,
        cond: Inputs | None,
        low: float,
        high: float,
        trace: str,
        samples: int,
        kind: str,
        seed: int,
    ) -> None:
        self._denoiser, self._cond, self._range, self._dtype = denoiser, cond, (low, high), x.dtype
        self._exact = trace == "exact"
        self._probes = [] if self._exact else list(probes(x, samples, seed=seed, kind=kind))
        self.traces = 1 if self._exact else samples
        self.evaluations, self.mode = 0, ""

    def __call__(self, level: float, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = self._range
        self.evaluations += 1
        with torch.inference_mode(False):
            at = y.clone().to(self._dtype)
            estimator = Estimator(self._denoiser, at, min(max(math.exp(level), low), high), self._cond)
            derivatives = Derivatives(estimator, at, first=("reverse", "forward"))
            products = [dot(v, derivatives.image(v)) for v in self._directions(at)]
        self.mode = derivatives.mode
        divergence = torch.stack(products)
        if self._exact:
            divergence = divergence.sum(0, keepdim=True)
        return y - derivatives.value().double(), y[0].numel() - divergence

    def _directions(self, like: torch.Tensor) -> list[torch.Tensor]:
        if not self._exact:
            return self._probes
        units = torch.eye(like[0].numel(), dtype=like.dtype, device=like.device)
        return [unit.view(1, *like.shape[1:]).expand_as(like) for unit in units]


def _grid(denoiser: Denoiser, low: float, high: float, steps: int) -> list[float]:
    """log(sigma / alpha) from one end to the other, in equal steps, or those of training steps."""
    grid = np.linspace(math.log(low), math.log(high), steps + 1)
    if denoiser.told_steps:
        assert isinstance(denoiser.schedule, VariancePreserving)
        training_steps(denoiser, np.array([low, high]))  # raises unless the ends are some
        known = np.log(denoiser.schedule.ratios[np.isfinite(denoiser.schedule.ratios)])
        nearest = np.unique(np.rint(np.interp(grid, known, np.arange(len(known)))).astype(np.int64))
        grid = known[nearest]
    return [float(level) for level in grid]


def _fixed(flow: _Flow, y: torch.Tensor, grid: list[float], step: Step) -> tuple[torch.Tensor, torch.Tensor]:
    gained = torch.zeros(flow.traces, len(y), dtype=torch.float64, device=y.device)
    for level, following in pairwise(grid):
        dy, change = step(flow, y, level, following - level)
        y, gained = y + dy, gained + change
    return y, gained


def _heun(flow: _Flow, y: torch.Tensor, level: float, h: float) -> tuple[torch.Tensor, torch.Tensor]:
    a, of_a = flow(level, y)
    b, of_b = flow(level + h, y + h * a)
    return h / 2 * (a + b), h / 2 * (of_a + of_b)


def _rk4(flow: _Flow, y: torch.Tensor, level: float, h: float) -> tuple[torch.Tensor, torch.Tensor]:
    a, of_a = flow(level, y)
    b, of_b = flow(level + h / 2, y + h / 2 * a)
    c, of_c = flow(level + h / 2, y + h / 2 * b)
    d, of_d = flow(level + h, y + h * c)
    return h / 6 * (a + 2 * b + 2 * c + d), h / 6 * (of_a + 2 * of_b + 2 * of_c + of_d)


def _adaptive(
    flow: _Flow, y: torch.Tensor, low: float, high: float, rtol: float, atol: float
) -> tuple[torch.Tensor, torch.Tensor]:
    from scipy.integrate import solve_ivp

    size, device = y.numel(), y.device

    def rates(level: float, state: Array) -> Array:
        at = torch.from_numpy(state[:size]).view(y.shape).to(device)
        return np.concatenate([rate.cpu().numpy().ravel() for rate in flow(level, at)])

    start = np.concatenate([y.cpu().numpy().ravel(), np.zeros(flow.traces * len(y))])
    solved = solve_ivp(rates, (low, high), start, method="RK45", t_eval=[high], rtol=rtol, atol=atol)
    if not solved.success:
        came = " ".join(str(solved.message).split())
        raise RuntimeError(f"solver: got a failure of scipy's RK45 ({came}), expected looser rtol, atol, or 'rk4'")
    end = torch.from_numpy(solved.y[:, -1]).to(device)
    return end[:size].view(y.shape), end[size:].view(flow.traces, -1)


def _range(schedule: Schedule, sigma_min: float | None, sigma_max: float | None) -> tuple[float, float]:
    """The smallest and the largest sigma / alpha."""
    if isinstance(schedule, VariancePreserving):
        ratios = schedule.ratios[np.isfinite(schedule.ratios)]
        low, high = float(ratios[0]), float(ratios[-1])
    elif hasattr(schedule, "sigma_min") and hasattr(schedule, "sigma_max"):
        low, high = float(schedule.sigma_min), float(schedule.sigma_max)
    elif isinstance(schedule, SubVP):
        low, high = (float(sigma / alpha) for alpha, sigma in map(schedule.levels, (schedule.t_min, 1.0)))
    else:
        low, high = FLOW_RANGE
    low = low if sigma_min is None else positive(sigma_min, "sigma_min")
    high = high if sigma_max is None else positive(sigma_max, "sigma_max")
    if not 0 < low < high < math.inf:
        raise ValueError(f"sigma_min, sigma_max: got {low:g}, {high:g}, expected 0 < sigma_min < sigma_max, finite")
    schedule.t_of_sigma(np.array([low, high]))  # raises where they lie outside the schedule
    return low, high


def _log_prior(
    schedule: Schedule,
    y: torch.Tensor,
    high: float,
    prior: Callable[[torch.Tensor], torch.Tensor] | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The log density ``[B]`` float64 of y, from that of x_t = alpha y."""
    t = float(schedule.t_of_sigma(high))
    alpha, n = float(schedule.alpha(t)), y[0].numel()
    x_t = alpha * y
    if prior is not None:
        log = prior(x_t.to(dtype))
        return check_like(log, (len(y),), "prior", "log densities", ", one a chain").double() + n * math.log(alpha)
    scale = schedule.init_scale(t)
    squares = dot(x_t, x_t) / scale**2
    return n * math.log(alpha) - squares / 2 - n * math.log(2 * math.pi * scale**2) / 2


def _check(solver: str, trace: str, samples: int, kind: str, steps: int, bins: int | None, prior: object) -> None:
    choices = (("solver", solver, SOLVERS), ("trace", trace, TRACES), ("kind", kind, KINDS))
    for name, value, allowed in choices:
        choice(value, name, allowed)
    whole(samples, "samples", 1, MOST_PROBES)
    whole(steps, "steps", 1, MOST_STEPS)
    if bins is not None:
        whole(bins, "levels", 2, 1 << 24)
    if prior is not None and not callable(prior):
        raise TypeError(f"prior: got {described(prior)}, expected a log density, or None")
