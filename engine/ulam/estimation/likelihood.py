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
from ulam_kernels.tracing import check_not_recorded, outside_graphs
from ulam_kernels.validation import check_batch

from ..denoiser import Denoiser, check_denoiser
from ..gradients import check_no_gradient
from ..noise import DEQUANTISATION, normal_for
from ..schedules import Array, Schedule, SubVP, VariancePreserving
from .derivatives import Derivatives
from .estimator import Estimator, Inputs, training_steps
from .probes import KINDS, MOST_PROBES, dot, probes

MOST_STEPS = 1 << 30
SOLVERS = ("rk4", "heun", "adaptive")
TRACES = ("hutchinson", "exact")
FLOW_RANGE = (1e-3, 1e3)  # of sigma / alpha, where the schedule's own is from 0 to infinity

Step: TypeAlias = "Callable[[_Flow, torch.Tensor, float, float], tuple[torch.Tensor, torch.Tensor]]"


@dataclass(frozen=True)
class Likelihood:
    """The likelihood of a batch.

    value, stderr: bits per dimension, over the whole batch; the error covers the spread over chains and so of the
    probes (nan for one). per_chain, per_chain_stderr: ``[B]`` bits per dimension; the error is that of the trace
    alone (0 if exact, nan for one probe). log_prob: ``[B]`` float64, the log density in nats (of the dequantised data,
    if so). nfe: evaluations of D. derivatives: the mode of automatic differentiation that ran, forward or reverse.
    """

    value: float
    stderr: float
    per_chain: torch.Tensor
    per_chain_stderr: torch.Tensor
    log_prob: torch.Tensor
    nfe: int
    derivatives: str


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
    Grathwohl 2019], or exact: a backward pass a probe, or an element. State and integral are float64, the network runs
    in the dtype of x. A chain's number does not depend on its batch, except through the steps of an adaptive solver,
    which are chosen for the whole batch: there it does within the tolerances. No gradient flows through the result.
    Derivatives are in reverse mode, where the network has it, unless the denoiser says otherwise.

    Args:
        solver: rk4 (order 4) or heun (order 2) on ``steps`` equal steps of l; adaptive: scipy's RK45 with rtol, atol.
            Under time="index" only heun, on the training steps nearest to the equal ones (fewer where two are one).
        trace: hutchinson or exact. samples, kind: of the probes, rademacher (far less variance here) or gaussian.
        levels: of quantised data on that many levels from -1 to 1: uniform noise a level wide is added, and the
            result is a bound on the bits of the level, in the mean over the noise [Theis 2016].
        sigma_min, sigma_max: the range of sigma / alpha, by default the schedule's own.
        prior: log density ``[B]`` of x_t at sigma_max, by default N(0, init_scale^2 I), what a sampler starts from.

    Raises:
        TypeError, ValueError: an argument that cannot be, named in the message; a network that hides its dependence on
            x or has no derivative.
        RuntimeError: the adaptive solver failed; x or cond requires grad while gradients are recorded.
    """
    check_not_recorded("likelihood")
    check_denoiser(denoiser, cond)
    _check(solver, trace, samples, kind, steps, levels)
    if prior is not None and not callable(prior):
        raise TypeError(f"prior: got {described(prior)}, expected a log density, or None")
    check_no_gradient("likelihood", cond, x=x)
    check_batch(x, "x")
    x = x.detach()
    n, cell = x[0].numel(), 1.0 if levels is None else 2 / (levels - 1)
    if levels is not None:
        z = normal_for(DEQUANTISATION, x.shape[1:], seed=seed, chains=len(x), device=x.device)
        x = x + (cell * (torch.special.ndtr(z.double()) - 0.5)).to(x.dtype)
    low, high = _range(denoiser.schedule, sigma_min, sigma_max)
    flow = _Flow(denoiser, x, cond, low, high, trace, samples, kind, seed)
    if denoiser.time == "index" and solver != "heun":
        raise ValueError(
            f"solver: got {solver!r} under time='index', expected 'heun': its levels can be training steps"
        )
    if solver == "adaptive":
        y, gained = _adaptive(flow, x.double(), math.log(low), math.log(high), rtol, atol)
    else:
        grid = _grid(denoiser, low, high, steps)
        y, gained = _fixed(flow, x.double(), grid, {"rk4": _rk4, "heun": _heun}[solver])
    logs = _log_prior(denoiser.schedule, y, high, prior, x.dtype) + gained  # [samples, B]
    log_prob, count = logs.mean(0), len(logs)
    unit = n * math.log(2)
    error = torch.zeros_like(log_prob) if trace == "exact" else torch.full_like(log_prob, math.nan)
    per_chain = -(log_prob + n * math.log(cell)) / unit
    return Likelihood(
        value=float(per_chain.mean()),
        stderr=float(per_chain.std() / len(x) ** 0.5) if len(x) > 1 else math.nan,
        per_chain=per_chain,
        per_chain_stderr=logs.std(0) / count**0.5 / unit if count > 1 else error,
        log_prob=log_prob,
        nfe=flow.evaluations,
        derivatives=flow.mode,
    )


class _Flow:
    """dy/dl, and n - div D ``[samples, B]`` float64, at a level l."""

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
    """log(sigma / alpha) from one end to the other, in equal steps; under time="index" those of training steps."""
    grid = np.linspace(math.log(low), math.log(high), steps + 1)
    if denoiser.time == "index":
        assert isinstance(denoiser.schedule, VariancePreserving)
        training_steps(denoiser.schedule, np.array([low, high]))  # raises unless the ends are some
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
        raise RuntimeError(f"solver: scipy's RK45 failed: {solved.message}")
    end = torch.from_numpy(solved.y[:, -1]).to(device)
    return end[:size].view(y.shape), end[size:].view(flow.traces, -1)


def _range(schedule: Schedule, sigma_min: float | None, sigma_max: float | None) -> tuple[float, float]:
    """The least and the largest sigma / alpha."""
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
        raise ValueError(f"sigma_min, sigma_max must be finite with 0 < sigma_min < sigma_max, got {low:g}, {high:g}")
    schedule.t_of_sigma(np.array([low, high]))  # raises where they are outside the schedule
    return low, high


def _log_prior(
    schedule: Schedule,
    y: torch.Tensor,
    high: float,
    prior: Callable[[torch.Tensor], torch.Tensor] | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """log density ``[B]`` of y, from that of x_t = alpha y."""
    t = float(schedule.t_of_sigma(high))
    alpha, n = float(schedule.alpha(t)), y[0].numel()
    x_t = alpha * y
    if prior is not None:
        log = prior(x_t.to(dtype))
        if log.shape != (len(y),):
            raise ValueError(f"prior must return [{len(y)}] log densities, one a chain, got {list(log.shape)}")
        return log.double() + n * math.log(alpha)
    scale = schedule.init_scale(t)
    squares = dot(x_t, x_t) / scale**2
    return n * math.log(alpha) - squares / 2 - n * math.log(2 * math.pi * scale**2) / 2


def _check(solver: str, trace: str, samples: int, kind: str, steps: int, levels: int | None) -> None:
    choices = (("solver", solver, SOLVERS), ("trace", trace, TRACES), ("kind", kind, KINDS))
    for name, value, allowed in choices:
        choice(value, name, allowed)
    whole(samples, "samples", 1, MOST_PROBES)
    whole(steps, "steps", 1, MOST_STEPS)
    if levels is not None:
        whole(levels, "levels", 2, 1 << 24)
