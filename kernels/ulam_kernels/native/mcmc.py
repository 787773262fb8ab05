"""Arguments of the Langevin and Metropolis operations, as bindings/mcmc.h has them, of checked tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ulam_kernels.densities import Density
from ulam_kernels.native.addresses import address, addresses, sizes

Arguments = tuple[object, ...]


def langevin(
    x: torch.Tensor,
    score: torch.Tensor,
    step: torch.Tensor,
    noise_scale: torch.Tensor,
    scale: torch.Tensor | None,
    lo: float,
    hi: float,
    *rest: torch.Tensor | None,
) -> Arguments:
    """``rest``: seed, chain, draw, noise, out."""
    return (*sizes(x), *addresses([x, score, step, noise_scale, scale]), lo, hi, *addresses(rest))


def kick_drift(x: torch.Tensor, *tensors: torch.Tensor | None) -> Arguments:
    return (*sizes(x), *addresses([x, *tensors]))


mala_accept = squared_norm = kick_drift  # the sizes of x, then every tensor, here too


def accept(
    log_ratio: torch.Tensor, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], *rest: torch.Tensor
) -> Arguments:
    """``rest``: seed, chain, draw, accepted."""
    chains = len(log_ratio)
    flat = [
        (kept.data_ptr(), proposed.data_ptr(), kept.numel() // chains * kept.element_size()) for kept, proposed in pairs
    ]
    return (chains, log_ratio.data_ptr(), tuple(number for pair in flat for number in pair), *addresses(rest))


def evaluate(
    density: Density, params: torch.Tensor, x: torch.Tensor, energy: torch.Tensor | None, score: torch.Tensor
) -> Arguments:
    return (*_target(density, params), len(x), *addresses([x, energy, score]))


def run(
    density: Density,
    params: torch.Tensor,
    x: torch.Tensor,
    sampler: int,
    coef: torch.Tensor,
    steps: int,
    seed: torch.Tensor,
    chain: torch.Tensor,
    draw: torch.Tensor,
    v: torch.Tensor | None,
    leapfrog: int,
    scale: torch.Tensor | None,
    lo: float,
    hi: float,
    thin: int,
    *outputs: torch.Tensor | None,
) -> Arguments:
    """``outputs``: draws, energies, moments, accepted, diverged."""
    return (
        *_target(density, params),
        len(x),
        x.data_ptr(),
        sampler,
        coef.data_ptr(),
        steps,
        *addresses([seed, chain, draw, v]),
        leapfrog,
        address(scale),
        lo,
        hi,
        thin,
        *addresses(outputs),
    )


def _target(density: Density, params: torch.Tensor) -> tuple[int, int, int, int]:
    return density.kind, density.dimension, density.components, params.data_ptr()
