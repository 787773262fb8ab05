"""Stein's unbiased risk estimate: the error of a denoiser without the clean signal [Stein 1981; Ramani 2008].

For y = x + sigma z in R^n, the mean of |D(y) - y|^2 / n - sigma^2 + 2 sigma^2 div D(y) / n is that of |D(y) - x|^2 / n,
if D is weakly differentiable: absolutely continuous on almost every line, as continuous functions with kinks are. A
denoiser that jumps, a hard threshold say, has a derivative that misses its jumps: ``check=True`` refuses it, and
``divergence="difference"`` estimates it. A denoiser here is a :class:`ulam.Denoiser`, or a plain function: D(y, sigma)
if it has a second parameter without a default (sigma ``[B]``, like y), else D(y).

No gradient flows through these estimates; losses are :func:`ulam.objectives.sure` and its like.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeAlias, TypeVar

import torch

from ulam_kernels.arguments import choice, described, switch
from ulam_kernels.reprs import short_repr
from ulam_kernels.tracing import outside_graphs

from .denoiser import Denoiser
from .estimation.derivatives import Derivatives
from .estimation.differences import EXAMPLES, check_derivative
from .estimation.estimator import Estimator, Inputs, Sigma, check_observation
from .estimation.jumps import check_weakly_differentiable
from .estimation.observed import as_denoiser, levels, named, observed
from .estimation.probes import dot, photons, probes
from .estimation.risk import DIVERGENCES, Operator, Risk, check_counts, hudson, linear, stein
from .estimation.uncertainty import BatchEstimate, batch_mean, mean_and_error
from .evaluation import in_eval_mode, modules_in
from .gradients import check_no_gradient
from .lazily import suggests

Plain: TypeAlias = Callable[..., torch.Tensor]
Parameter = TypeVar("Parameter")


@dataclass(frozen=True)
class Sure(BatchEstimate):
    """SURE, an estimate of the mean squared error per element.

    value, stderr: over the whole batch; the error covers the spread over chains and so of the probes (nan for one
    chain). per_chain, per_chain_stderr: ``[B]``; the error is that of the divergence alone (nan for one probe).
    divergence: ``[B]``, div D. derivatives: how it was found: forward or reverse mode, or difference.
    """

    divergence: torch.Tensor
    derivatives: str

    __repr__ = short_repr


@dataclass(frozen=True)
class Selection(Generic[Parameter]):
    """The member of a family with the least SURE.

    best: its parameter. value, stderr: its SURE and the standard error, over chains; the least of many estimates lies
    somewhat below its own mean. runner_up: the next parameter (None for a family of one), with SURE higher by ``gap``,
    whose error ``gap_stderr`` is that of differences chain by chain (nan without a runner-up, or for one chain).
    estimates: the :class:`Sure` of every parameter, in the family's order.
    """

    best: Parameter
    value: float
    stderr: float
    runner_up: Parameter | None
    gap: float
    gap_stderr: float
    estimates: dict[Parameter, Sure]

    __repr__ = short_repr


@outside_graphs
def estimate(
    denoiser: Denoiser | Plain,
    y: torch.Tensor,
    sigma: Sigma,
    cond: Inputs | None = None,
    *,
    samples: int = 1,
    seed: int = 0,
    kind: str = "rademacher",
    divergence: str = "exact",
    check: bool = False,
) -> Sure:
    """SURE of ``denoiser`` at y ``[B, *shape]`` with noise ``sigma``, one number or one a chain.

    The divergence is the mean of v' (dD/dy) v over ``samples`` probes v of a ``kind``, rademacher or gaussian
    [Hutchinson 1990]. Probes are noise-v1 of ``seed``: a chain's estimate does not depend on its batch. No gradient
    flows through the result.

    Args:
        divergence: exact, by automatic differentiation (:mod:`ulam.estimation.derivatives`); or difference, v' (D(y +
            h v) - D(y)) / h with h = 0.05 sigma [Ramani 2008, eq. 8], for black boxes and denoisers that jump: biased
            as if the divergence, and it alone, were taken at a noise level 0.12% above sigma.
        check: hold the derivative against differences on 1,024 segments or more, as long as the noise: their means are
            equal if D is weakly differentiable (:mod:`ulam.estimation.jumps`).

    Raises:
        TypeError, ValueError: an invalid argument, named in the message; a network that hides its dependence on x or
            has no derivative, or jumps under ``check``.
        RuntimeError: y, sigma or cond requires grad while gradients are recorded.
    """
    check_no_gradient("sure.estimate", cond, y=y, sigma=sigma)
    name, function = named(denoiser)
    estimator = Estimator(as_denoiser(denoiser), y, sigma, cond)
    choice(divergence, "divergence", DIVERGENCES)
    switch(check, "check")
    at, n, noise = y.detach(), y[0].numel(), torch.from_numpy(estimator.sigma.copy()).to(y.device)
    directions = probes(at, samples, seed=seed, kind=kind)
    if divergence == "difference":
        with torch.inference_mode(False), torch.no_grad():
            return _of_risk(stein(estimator, at, noise, directions, differences=True), noise, n, "difference")
    derivatives = Derivatives(estimator, y)
    divergences = torch.stack([dot(v, derivatives.image(v)) for v in directions])
    denoised = derivatives.value()
    if check:
        check_weakly_differentiable(estimator, at, noise, function, name, seed)
    risk = (dot(denoised - at, denoised - at) + 2 * noise**2 * divergences.mean(0)) / n - noise**2
    return _of_risk(Risk(risk, divergences), noise, n, derivatives.mode)


@outside_graphs
def projected(
    denoiser: Plain,
    y: torch.Tensor,
    sigma: Sigma,
    operator: Operator,
    *,
    samples: int = 1,
    seed: int = 0,
    divergence: str = "exact",
    check: bool = False,
) -> Sure:
    """SURE of |P (f(y) - x)|^2 / n for y = H x + sigma z, with P = H^+ H, the projection on what H sees [Eldar 2009].

    The mean of |P f(y) - H^+ y|^2 / n - sigma^2 |H^+|_F^2 / n + 2 sigma^2 div_y(H^+' f(y)) / n is that of the error.
    ``denoiser`` is f(y), or f(y, sigma), a plain function that gives estimates of x ``[B, *shape]`` with n elements;
    ``operator`` is H as a matrix ``[m, n]`` for y ``[B, m]`` and estimates ``[B, n]``, or two functions of batches, H
    and its pseudo-inverse H^+, whose |H^+|_F^2 the probes estimate then. ``divergence`` in the result is that of
    H^+' f. Other arguments and errors as in :func:`estimate`.
    """
    check_no_gradient("sure.projected", y=y, sigma=sigma)
    name, function = named(denoiser, plain_only=True)
    check_observation(y)
    noise, H = levels(y, sigma), linear(operator, y)
    differences = choice(divergence, "divergence", DIVERGENCES) == "difference"
    switch(check, "check")
    at, directions = y.detach(), probes(y, samples, seed=seed)
    f = observed(denoiser, noise, like=False)
    with torch.inference_mode(False), torch.no_grad(), in_eval_mode(modules_in(function)):
        if not differences:
            first = observed(denoiser, noise[:EXAMPLES], like=False)
            check_derivative(lambda few: H.forward(first(few)), at[:EXAMPLES], function, name)
            if check:
                check_weakly_differentiable(f, at, noise, function, name, seed, H)
        risk = stein(f, at, noise, directions, H, differences=differences)
        n = f(at)[0].numel()
    return _of_risk(risk, noise, n, "difference" if differences else "reverse")


@outside_graphs
def poisson(
    denoiser: Callable[[torch.Tensor], torch.Tensor],
    y: torch.Tensor,
    *,
    gain: float = 1.0,
    samples: int | None = None,
    seed: int = 0,
) -> BatchEstimate:
    """The unbiased estimate of |D(y) - x|^2 / n for counts y = gain Poisson(x / gain) [Hudson 1978; Luisier 2010].

    PURE, (|D|^2 - 2 sum_i y_i D_i(y - gain e_i) + |y|^2 - gain sum_i y_i) / n, for every D, with jumps or without. y
    are whole multiples of ``gain``, ``[B, *shape]``; ``denoiser`` is a plain function D(y). samples: None evaluates D
    once an element; a number takes as many counts away at random, in proportion to y, which is unbiased too
    (``per_chain_stderr`` is its error, 0 for None and nan for one sample). Errors as in :func:`estimate`.
    """
    check_no_gradient("sure.poisson", y=y)
    _, function = named(denoiser, plain_only=True)
    check_observation(y)
    gain = check_counts(y, gain)
    drawn = photons(y, samples, seed=seed)
    with torch.inference_mode(False), torch.no_grad(), in_eval_mode(modules_in(function)):
        found = hudson(denoiser, y.detach(), gain, drawn)
    error = torch.zeros_like(found.divergences[0]) if drawn is None else mean_and_error(found.divergences)[1]
    return BatchEstimate(
        **batch_mean(found.risk), per_chain=found.risk.double(), per_chain_stderr=2 * error / y[0].numel()
    )


@outside_graphs
def select(
    family: Mapping[Parameter, Denoiser | Plain],
    y: torch.Tensor,
    sigma: Sigma,
    cond: Inputs | None = None,
    *,
    samples: int = 1,
    seed: int = 0,
    divergence: str = "exact",
    check: bool = False,
) -> Selection[Parameter]:
    """The parameter whose denoiser has the least SURE on y, from noisy data alone [Donoho & Johnstone 1995].

    ``family`` maps values of a parameter, thresholds or stopping times say, to denoisers. All are estimated with the
    same probes, so that differences between them are better known than the estimates. Arguments and errors as in
    :func:`estimate`, ValueError also for a SURE that is not finite.
    """
    if not isinstance(family, Mapping):
        raise TypeError(f"family: got {described(family)}, expected denoisers by the value of their parameter")
    if not family:
        raise ValueError("family: got no denoiser, expected at least one")
    for value, denoiser in family.items():
        named(denoiser, argument=f"family[{described(value)}]")
    of = partial(estimate, samples=samples, seed=seed, divergence=divergence, check=check)
    estimates = {value: of(denoiser, y, sigma, cond) for value, denoiser in family.items()}
    for value, found in estimates.items():
        if not math.isfinite(found.value):
            raise ValueError(f"family[{described(value)}]: got SURE {found.value}, expected a finite one")
    best, *others = sorted(estimates, key=lambda value: estimates[value].value)
    least = estimates[best]
    gap = batch_mean(estimates[others[0]].per_chain - least.per_chain) if others else {}
    return Selection(
        best, least.value, least.stderr, others[0] if others else None,
        gap.get("value", math.nan), gap.get("stderr", math.nan), estimates,
    )  # fmt: skip


def _of_risk(found: Risk, sigma: torch.Tensor, n: int, derivatives: str) -> Sure:
    """The estimate of a batch, with n elements a chain, at noise levels ``sigma`` [B]."""
    risk = found.risk.double()
    return Sure(
        **batch_mean(risk),
        per_chain=risk,
        per_chain_stderr=2 * sigma**2 * mean_and_error(found.divergences)[1] / n,
        divergence=found.divergences.mean(0),
        derivatives=derivatives,
    )


suggests(__name__)
