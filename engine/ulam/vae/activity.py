"""Which elements of a hierarchy's latents carry information about the data."""

from __future__ import annotations

import torch

from .bound import Posterior
from .gaussians import kl_elements


def active_units(posterior: Posterior, threshold: float) -> list[torch.Tensor]:
    """See :meth:`HierarchicalVAE.active_units`.

    The products of two draws s, s' of the means, less their average over x, have expectation Var_x E_q[z_k | x]: the
    mean over s != s' is unbiased. All examples share their noise, so that draws that x does not move add nothing.
    """
    count, levels = posterior.samples, len(posterior.levels)
    total, squares, kl = ([torch.zeros(()).double()] * levels for _ in range(3))
    for latents, given in posterior:
        for k, (latent, p) in enumerate(zip(latents, given, strict=True)):
            mean = latent.q.mean.double()
            total[k] = total[k] + mean
            squares[k] = squares[k] + mean.var(0)
            kl[k] = kl[k] + kl_elements(latent.q, p).double().mean(0) / count
    active = []
    for k in range(levels):
        variance = (total[k].var(0) - squares[k]) / (count * (count - 1))
        if bool(variance.isnan().any()):
            raise ValueError(f"levels[{k}].posterior: got NaN, expected numbers")
        informs = variance > threshold
        if posterior.inference == "top-down":
            informs &= kl[k] > threshold / 2
        active.append(informs)
    return active
