"""Stein's unbiased risk estimate: the error of a denoiser without the clean signal [Stein 1981; Ramani 2008].

For y = x + sigma z in R^n, the mean of |D(y) - y|^2 / n - sigma^2 + 2 sigma^2 div D(y) / n is that of |D(y) - x|^2 / n.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ulam_kernels.tracing import outside_graphs

from .denoiser import Denoiser
from .estimation.derivatives import Derivatives
from .estimation.estimator import Estimator, Inputs, Sigma
from .estimation.probes import dot, probes
from .estimation.uncertainty import BatchEstimate, batch_mean
from .gradients import check_no_gradient


@dataclass(frozen=True)
class Sure(BatchEstimate):
    """SURE, an estimate of the mean squared error per element.

    value, stderr: over the whole batch; the error covers the spread over chains and so of the probes (nan for one
    chain). per_chain, per_chain_stderr: ``[B]``; the error is that of the divergence alone (nan for one probe).
    divergence: ``[B]``, div D. derivatives: the mode of automatic differentiation that ran, forward or reverse.
    """

    divergence: torch.Tensor
    derivatives: str


@outside_graphs
def estimate(
    denoiser: Denoiser,
    y: torch.Tensor,
    sigma: Sigma,
    cond: Inputs | None = None,
    *,
    samples: int = 1,
    seed: int = 0,
    kind: str = "rademacher",
) -> Sure:
    """SURE of ``denoiser`` at y ``[B, *shape]`` with noise ``sigma``, one number or one a chain.

    The divergence is the mean of v' (dD/dy) v over ``samples`` probes v of a ``kind``, rademacher or gaussian
    [Hutchinson 1990; Ramani 2008, here with the exact derivative, see :mod:`ulam.estimation.derivatives`]. Probes are
    noise-v1 of ``seed``: a chain's estimate does not depend on its batch. No gradient flows through the result.

    Raises:
        TypeError, ValueError: an invalid argument, named in the message; a network that hides its dependence on x or
            has no derivative.
        RuntimeError: y, sigma or cond requires grad while gradients are recorded.
    """
    check_no_gradient("sure.estimate", cond, y=y, sigma=sigma)
    estimator = Estimator(denoiser, y, sigma, cond)
    derivatives = Derivatives(estimator, y)
    at, n = y.detach(), y[0].numel()
    divergences = torch.stack([dot(v, derivatives.image(v)) for v in probes(at, samples, seed=seed, kind=kind)])
    denoised = derivatives.value()
    variance = torch.from_numpy(estimator.sigma**2).to(divergences)
    divergence = divergences.mean(0)
    per_chain = dot(denoised - at, denoised - at) / n - variance + 2 * variance * divergence / n
    spread = divergences.std(0) if len(divergences) > 1 else torch.full_like(divergence, float("nan"))
    return Sure(
        **batch_mean(per_chain),
        per_chain=per_chain,
        per_chain_stderr=2 * variance * spread / len(divergences) ** 0.5 / n,
        divergence=divergence,
        derivatives=derivatives.mode,
    )
