"""Arguments of the native Langevin and Metropolis operations, of tensors that `mcmc` has validated.

The order is that of bindings/mcmc.h; each backend appends one argument of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ulam_kernels.densities import Density

Arguments = tuple[object, ...]


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _addresses(tensors: Sequence[torch.Tensor | None]) -> list[int]:
    return [_address(tensor) for tensor in tensors]


def _sizes(x: torch.Tensor) -> tuple[int, int]:
    return len(x), x.numel() // len(x)


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
    return (*_sizes(x), *_addresses([x, score, step, noise_scale, scale]), lo, hi, *_addresses(rest))


def of_chains(x: torch.Tensor, *tensors: torch.Tensor | None) -> Arguments:
    """kick_drift, mala_accept and squared_norm: the sizes of x, then every tensor."""
    return (*_sizes(x), *_addresses([x, *tensors]))


def accept(
    log_ratio: torch.Tensor, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], *rest: torch.Tensor
) -> Arguments:
    """``rest``: seed, chain, draw, accepted."""
    chains = len(log_ratio)
    flat = [
        (kept.data_ptr(), proposed.data_ptr(), kept.numel() // chains * kept.element_size()) for kept, proposed in pairs
    ]
    return (chains, log_ratio.data_ptr(), tuple(number for pair in flat for number in pair), *_addresses(rest))


def evaluate(
    density: Density, params: torch.Tensor, x: torch.Tensor, energy: torch.Tensor | None, score: torch.Tensor
) -> Arguments:
    return (*_target(density, params), len(x), *_addresses([x, energy, score]))


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
        *_addresses([seed, chain, draw, v]),
        leapfrog,
        _address(scale),
        lo,
        hi,
        thin,
        *_addresses(outputs),
    )


def _target(density: Density, params: torch.Tensor) -> tuple[int, int, int, int]:
    return density.kind, density.dimension, density.components, params.data_ptr()
