"""Tweedie's formula beyond the covariance: cumulants of x given y = x + sigma z of any order, from a denoiser.

Derivatives of log p(y) are the cumulants of the posterior [Robbins 1956; Efron 2011], so those of a denoiser are too:

    kappa_k[x | y] = sigma^(2k) d^k log p(y) / dy^k = sigma^(2k - 2) d^(k-1) D(y) / dy^(k-1)        for k > 2

What is said of arguments, errors, gradients and the check of derivatives in :mod:`ulam.tweedie.estimates` holds here.
"""

from __future__ import annotations

import torch

from ulam_kernels.tracing import outside_graphs

from ..denoiser import Denoiser
from ..estimation.derivatives import Derivatives
from ..estimation.estimator import Estimator, Inputs, Sigma
from ..gradients import check_no_gradient, without_graph
from .directions import Directions, check_direction, check_order, each_direction


@outside_graphs
def cumulant(
    denoiser: Denoiser, y: torch.Tensor, sigma: Sigma, v: Directions, cond: Inputs | None = None, *, order: int
) -> torch.Tensor:
    """kappa_k[v_1' x, ..., v_k' x | y] = sigma^(2k - 2) v_1' d^(k-1) D [v_2, ..., v_k], ``[B]``, for k = ``order``.

    v: one direction like y, for the k-th cumulant of v' x; or a sequence of k, for a mixed one. Order 1 is the mean of
    v' x, 2 its variance (or a covariance), 3 and 4 its skewness and kurtosis before they are divided by powers of the
    standard deviation. Orders 1 to 10, in k - 1 passes in reverse mode; each makes the graph some three times as large.

    The order of the directions does not matter to an ideal denoiser. Another's Jacobian may not be symmetric: its
    output is taken along v_1. Of a piecewise linear network (ReLU) the result is 0 above order 2.
    [Robbins 1956; Efron 2011.] Errors as of :func:`covariance`, and for another order, or directions that do not fit.
    """
    if isinstance(v, (tuple, list)):
        check_no_gradient("tweedie.cumulant", **{f"v[{k}]": each for k, each in enumerate(v)})
    check_no_gradient("tweedie.cumulant", cond, y=y, sigma=sigma, v=v)
    estimator = Estimator(denoiser, y, sigma, cond)
    first, *others = each_direction(v, y, check_order(order))
    if not others:
        return (first * without_graph(estimator, y)).flatten(1).sum(1)
    variance = estimator.per_chain(estimator.sigma**2)
    return Derivatives(estimator, y).contracted(first, *(variance * other for other in others))


@outside_graphs
def third_cumulant(
    denoiser: Denoiser, y: torch.Tensor, sigma: Sigma, v: torch.Tensor, cond: Inputs | None = None
) -> torch.Tensor:
    """kappa_3[x | y] applied twice to v: sigma^4 (d^2 D/dy^2)[v, v], like y.

    Its inner product with v is the third cumulant of v' x, which :func:`cumulant` gives. It takes two derivatives,
    always in reverse mode. For a piecewise linear network (ReLU) the result is 0 [Robbins 1956; Efron 2011]. Errors as
    of :func:`covariance`, and for a v that is not like y.
    """
    check_no_gradient("tweedie.third_cumulant", cond, y=y, sigma=sigma, v=v)
    estimator = Estimator(denoiser, y, sigma, cond)
    check_direction(v, y)
    return estimator.per_chain(estimator.sigma**4) * Derivatives(estimator, y).second(v)
