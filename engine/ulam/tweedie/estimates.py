"""Tweedie's formula: the mean and covariance of x given y = x + sigma z, from a denoiser [Robbins 1956; Efron 2011].

    E[x | y]       = y + sigma^2 grad log p(y)                  = D(y)
    Cov[x | y]     = sigma^2 (I + sigma^2 Hess log p(y))        = sigma^2 dD/dy

A denoiser is any :class:`ulam.Denoiser`; y is ``[B, *shape]``, sigma one number or one a chain, ``cond`` the network's
further arguments. Everything is batched: a chain's result does not depend on the others where the network treats rows
independently. Results have the dtype of y; use float64 networks and y where many digits matter.

Derivatives are automatic, in the mode of the denoiser's ``derivatives`` (:mod:`ulam.estimation.derivatives`), and
compared with finite differences at their first use. Results carry no gradient, except those of :func:`mean`. Every
function raises TypeError or ValueError naming the argument, TypeError also for a network that hides its dependence on x
or has no derivative, and RuntimeError for an input that requires grad while gradients are recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ulam_kernels.arguments import choice
from ulam_kernels.tracing import outside_graphs

from ..arguments import whole_number
from ..denoiser import Denoiser
from ..estimation.derivatives import Derivatives
from ..estimation.estimator import Estimator, Inputs, Sigma, check_observation
from ..estimation.probes import dot, probes
from ..estimation.uncertainty import WithError, mean_and_error
from ..gradients import check_no_gradient, without_graph
from .directions import check_direction, check_few, check_wide, units


@dataclass(frozen=True)
class Estimate(WithError[torch.Tensor]):
    """A Monte Carlo estimate: ``value`` and its standard error ``stderr``, one a chain ``[B]``.

    derivatives: the mode of automatic differentiation that ran, forward or reverse.
    """

    derivatives: str


def mean(denoiser: Denoiser, y: torch.Tensor, sigma: Sigma, cond: Inputs | None = None) -> torch.Tensor:
    """E[x | y] = D(y), like y [Robbins 1956; Efron 2011]. Raises TypeError or ValueError for an invalid argument.

    Where y requires grad, so does the result, in y and the network's parameters.
    """
    differentiable = torch.is_grad_enabled() and isinstance(y, torch.Tensor) and y.requires_grad
    check_no_gradient("tweedie.mean", None if differentiable else cond, sigma=sigma)
    estimator = Estimator(denoiser, y, sigma, cond)
    return estimator(y) if differentiable else without_graph(estimator, y)


@outside_graphs
def covariance_product(
    denoiser: Denoiser, y: torch.Tensor, sigma: Sigma, v: torch.Tensor, cond: Inputs | None = None
) -> torch.Tensor:
    """Cov[x | y] v = sigma^2 (dD/dy) v, like y: a Jacobian-vector product, in reverse mode by a double product.

    [Efron 2011.] Arguments and errors as of :func:`covariance`, of any number of elements; v is like y.
    """
    check_no_gradient("tweedie.covariance_product", cond, y=y, sigma=sigma, v=v)
    estimator = Estimator(denoiser, y, sigma, cond)
    check_direction(v, y)
    return estimator.per_chain(estimator.sigma**2) * Derivatives(estimator, y).product(v)


@outside_graphs
def covariance_diagonal(
    denoiser: Denoiser,
    y: torch.Tensor,
    sigma: Sigma,
    cond: Inputs | None = None,
    *,
    samples: int | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """The posterior variance of every element, like y.

    samples=None: exact, one product an element. Else the mean of v * (Cov v) over that many Rademacher probes
    [Bekas 2007]; its error falls with their square root.
    """
    product, _ = _covariance("tweedie.covariance_diagonal", denoiser, y, sigma, cond)
    if samples is not None:
        total = torch.zeros_like(y)
        for v in probes(y, samples, seed=seed):
            total += v * product(v)
        return total / samples
    return torch.stack([product(unit).flatten(1)[:, i] for i, unit in enumerate(units(y))], 1).view_as(y)


@outside_graphs
def covariance(denoiser: Denoiser, y: torch.Tensor, sigma: Sigma, cond: Inputs | None = None) -> torch.Tensor:
    """Cov[x | y], ``[B, n, n]`` for the n elements of a chain in the order of ``y.flatten(1)``; n products.

    The symmetric part of sigma^2 dD/dy: the whole of it for an ideal denoiser, whose Jacobian is symmetric, and what
    :func:`eigenpairs` and :func:`covariance_trace` see of any other (:func:`covariance_product` has all of it)
    [Efron 2011].

    Raises:
        TypeError, ValueError: an invalid argument, more than 4096 elements, a network without a derivative in x.
        RuntimeError: y requires grad while gradients are recorded.
    """
    check_observation(y)
    check_few(y, "y", "covariance_product, covariance_diagonal, covariance_trace or eigenpairs for more")
    product, _ = _covariance("tweedie.covariance", denoiser, y, sigma, cond)
    half = torch.stack([product(unit).flatten(1) for unit in units(y)], 1) / 2
    return half + half.mT


@outside_graphs
def covariance_trace(
    denoiser: Denoiser,
    y: torch.Tensor,
    sigma: Sigma,
    cond: Inputs | None = None,
    *,
    samples: int = 32,
    seed: int = 0,
    method: str = "hutch++",
) -> Estimate:
    """tr Cov[x | y], the posterior's mean squared error, ``[B]`` with its standard error.

    hutchinson: the mean of v' Cov v, over at least 2 samples [Hutchinson 1990]. hutch++: a third of the samples, at
    least 6 in all, finds the leading directions, a third measures the trace on them exactly, the rest estimates the
    remainder [Meyer 2021, alg. 1]; much better where few directions carry most of the trace. Errors as of
    :func:`covariance`, and for too few samples.
    """
    if choice(method, "method", ("hutchinson", "hutch++")) == "hutch++":
        check_observation(y)
        check_wide(y)
    least = 2 if method == "hutchinson" else 6
    if whole_number("samples", samples) < least:
        raise ValueError(f"samples: got {samples}, expected at least {least} for {method}")
    product, derivatives = _covariance("tweedie.covariance_trace", denoiser, y, sigma, cond)
    if method == "hutchinson":
        traces = torch.stack([dot(v, product(v)) for v in probes(y, samples, seed=seed)])
        return Estimate(*mean_and_error(traces), derivatives.mode)
    third = samples // 3
    sketch = torch.stack([product(v).flatten(1) for v in probes(y, third, seed=seed)], dim=2)
    basis = torch.linalg.qr(sketch).Q  # [B, n, third]
    known = sum(dot(q, product(q)) for q in (basis[:, :, k].reshape(y.shape) for k in range(basis.shape[2])))
    rest = []
    for v in probes(y, samples - 2 * third, seed=seed, first=third):
        flat = v.flatten(1)[:, :, None]
        left = (flat - basis @ (basis.mT @ flat))[:, :, 0].reshape(y.shape)
        rest.append(dot(left, product(left)))
    remainder, error = mean_and_error(torch.stack(rest))
    return Estimate(remainder + known, error, derivatives.mode)


@outside_graphs
def eigenpairs(
    denoiser: Denoiser,
    y: torch.Tensor,
    sigma: Sigma,
    count: int,
    cond: Inputs | None = None,
    *,
    iterations: int | None = None,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The leading posterior variances ``[B, count]``, decreasing, and their unit directions ``[B, count, *shape]``.

    Lanczos with full reorthogonalisation, where [Manor & Michaeli 2024] iterate subspaces; ``iterations`` products, by
    default 2 count + 10 (at most the dimension). Errors as of :func:`covariance`, and for a count out of range.
    Of a network whose Jacobian is not symmetric these are the eigenpairs of the projected symmetric part.
    """
    check_observation(y)
    check_wide(y)
    dimension = y[0].numel()
    if not 1 <= whole_number("count", count) <= dimension:
        raise ValueError(f"count: got {count}, expected 1 to the {dimension} elements of a chain")
    steps = min(2 * count + 10, dimension) if iterations is None else whole_number("iterations", iterations)
    if not count <= steps <= dimension:
        raise ValueError(f"iterations: got {steps}, expected {count} to {dimension}")
    product, _ = _covariance("tweedie.eigenpairs", denoiser, y, sigma, cond)
    basis = torch.zeros(len(y), dimension, 0, dtype=y.dtype, device=y.device)
    images = basis
    v = next(probes(y, 1, seed=seed, kind="gaussian")).flatten(1)
    for step in range(steps):
        for _ in range(2):  # twice is enough [Parlett 1998]
            v = v - (basis @ (basis.mT @ v[:, :, None]))[:, :, 0]
        length = v.norm(dim=1, keepdim=True)
        tiny = length <= 1e-12 * (1 if not step else images.abs().amax((1, 2))[:, None].clamp_min(1e-300))
        if tiny.any():  # an invariant subspace is complete: go on in a fresh direction
            fresh = next(probes(y, 1, seed=seed, kind="gaussian", first=step + 1)).flatten(1)
            for _ in range(2):
                fresh = fresh - (basis @ (basis.mT @ fresh[:, :, None]))[:, :, 0]
            v = torch.where(tiny, fresh, v)
            length = v.norm(dim=1, keepdim=True)
        q = v / length
        v = product(q.reshape(y.shape)).flatten(1)
        basis = torch.cat([basis, q[:, :, None]], dim=2)
        images = torch.cat([images, v[:, :, None]], dim=2)
    small = basis.mT @ images
    values, vectors = torch.linalg.eigh((small + small.mT) / 2)
    values, vectors = values.flip(1)[:, :count], vectors.flip(2)[:, :, :count]
    return values, (basis @ vectors).mT.reshape(len(y), count, *y.shape[1:])


def _covariance(
    what: str, denoiser: Denoiser, y: torch.Tensor, sigma: Sigma, cond: Inputs | None
) -> tuple[Callable[[torch.Tensor], torch.Tensor], Derivatives]:
    """v to sigma^2 J v or sigma^2 J' v, equal in quadratic forms, traces and symmetric parts; and the derivatives."""
    check_no_gradient(what, cond, y=y, sigma=sigma)
    estimator = Estimator(denoiser, y, sigma, cond)
    variance, derivatives = estimator.per_chain(estimator.sigma**2), Derivatives(estimator, y)
    return lambda v: variance * derivatives.image(v), derivatives
