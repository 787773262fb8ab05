"""Stein's unbiased risk estimate: the error of a denoiser without the clean signal [Stein 1981; Ramani 2008].

For y = x + sigma z in R^n, the mean of |D(y) - y|^2 / n - sigma^2 + 2 sigma^2 div D(y) / n is that of |D(y) - x|^2 / n.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .denoiser import Denoiser
from .estimate import Estimator, Inputs, Sigma
from .probes import dot, probes


@dataclass(frozen=True)
class Sure:
    """SURE, an estimate of the mean squared error per element.

    value, stderr: over the whole batch; the error covers the spread over chains and so of the probes.
    per_chain, per_chain_stderr: ``[B]``; the error is that of the divergence alone (nan for one probe).
    divergence: ``[B]``, div D.
    """

    value: float
    stderr: float
    per_chain: torch.Tensor
    per_chain_stderr: torch.Tensor
    divergence: torch.Tensor


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

    The divergence is the mean of v' (dD/dy) v over ``samples`` probes [Hutchinson 1990; Ramani 2008, here with the
    exact derivative, in forward mode]. They are noise-v1's with ``seed``: a chain's estimate does not depend on its
    batch.

    Raises:
        TypeError, ValueError: an argument that cannot be, named in the message.
    """
    estimator = Estimator(denoiser, y, sigma, cond)
    at, n = y.detach(), y[0].numel()
    products = []
    with torch.no_grad():
        denoised = estimator(at)
        for v in probes(at, samples, seed=seed, kind=kind):
            products.append(dot(v, torch.func.jvp(estimator, (at,), (v,))[1]))
    divergences = torch.stack(products)
    variance = torch.from_numpy(estimator.sigma**2).to(divergences)
    divergence = divergences.mean(0)
    per_chain = dot(denoised - at, denoised - at) / n - variance + 2 * variance * divergence / n
    spread = divergences.std(0) if len(divergences) > 1 else torch.full_like(divergence, float("nan"))
    return Sure(
        value=float(per_chain.mean()),
        stderr=float(per_chain.std() / len(per_chain) ** 0.5) if len(per_chain) > 1 else float("nan"),
        per_chain=per_chain,
        per_chain_stderr=2 * variance * spread / len(divergences) ** 0.5 / n,
        divergence=divergence,
    )
