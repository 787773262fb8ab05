"""The negative evidence lower bound of a VAE as a loss, with a weight on the KL and free bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ulam_kernels.arguments import described, real

from ..vae import ChainIds, HierarchicalVAE


def elbo(
    vae: HierarchicalVAE,
    x: torch.Tensor,
    *,
    beta: float = 1.0,
    free_bits: float | Sequence[float] = 0.0,
    samples: int = 1,
    seed: int = 0,
    step: int,
    chains: ChainIds | None = None,
) -> torch.Tensor:
    """-E_q log p(x | z_1) + beta sum_k max(lambda_k, KL_k) of each example in nats, ``[B]`` float64.

    The bound is :meth:`ulam.vae.HierarchicalVAE.elbo`, of ``samples`` draws. To warm up, let beta rise from 0 to 1 over
    the first steps [Bowman 2016; Sonderby 2016]: ``beta=min(1.0, step / 2000)``. A constant beta is that of Higgins
    2017. For the importance-weighted bound the loss is ``-vae.importance_weighted(x, samples=K, step=step).value``.

    Args:
        x: ``[B, *x_shape]``.
        beta: the weight of the KL, at least 0.
        free_bits: lambda, nats of a level's KL that cost nothing, one number for all levels or one for each, top first
            [Kingma 2016, eq. 15]. As there, the mean of KL_k over this call's batch is compared with lambda_k, and a
            level below it gives no gradient. 0: none are free.
        seed, step, chains: number the noise; ids of the examples are by default those of :func:`ulam.noise.examples`.

    Raises:
        TypeError, ValueError: an invalid argument or network output, named in the message.
    """
    if not isinstance(vae, HierarchicalVAE):
        raise TypeError(f"vae: got {described(vae)}, expected a ulam.vae.HierarchicalVAE")
    if (beta := real(beta, "beta")) < 0:
        raise ValueError(f"beta: got {described(beta)}, expected at least 0")
    free = _free(free_bits, len(vae.levels))
    if step is None:
        raise TypeError("step: got None, expected the training step, which numbers its noise")
    bound = vae.elbo(x, samples=samples, seed=seed, step=step, chains=chains)
    if beta == 1 and not any(free):
        return -bound.value
    columns = bound.kl
    if any(free):
        least = columns.new_tensor(free)
        columns = torch.where((columns.mean(0) <= least) & (least > 0), least, columns)
    return beta * columns.sum(1) - bound.reconstruction


def _free(free_bits: float | Sequence[float], levels: int) -> list[float]:
    each = free_bits if isinstance(free_bits, (list, tuple)) else [free_bits] * levels
    if len(each) != levels:
        raise ValueError(f"free_bits: got {len(each)} numbers, expected one, or {levels}, one a level")
    free = [real(nats, "free_bits") for nats in each]
    if min(free) < 0:
        raise ValueError(f"free_bits: got {min(free):g}, expected at least 0")
    return free
