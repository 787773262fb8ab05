"""What the operations of this folder keep to and check of their arguments, and the backend that runs them.

Step by step, for any target whose energy E and score s = -grad E torch gives::

    langevin       x' = x + step P s + noise_scale sqrt(P) z                          ULA, SGLD, annealed, proposals
    mala_accept    the Metropolis test of a Langevin proposal, fused with what it selects
    kick_drift     v += kick s, x += drift v [, v = keep v + noise z, x += drift v]   BAOAB, leapfrog
    squared_norm   sum_i x_i^2                                                        kinetic energies
    accept         the Metropolis test of a given log ratio, and what it selects      HMC, tempering

and whole chains in one launch, for the densities of :mod:`ulam_kernels.densities`::

    evaluate       energy and score of a built-in density
    run            thousands of steps of ULA, MALA, BAOAB or HMC; on the CPU also of GHMC, MALT, MCLMC or MAMS

**Same bits.** A launch of ``run`` gives the bits of the same steps made of ``evaluate`` and the operations above, for
every sampler and on every backend. In fp32 every operation rounds once, in the order given; ``fma`` rounds once.

**Noise.** z is noise-v1 of (seed, chain, draw), tag 0, element e of the chain; draw = 16 step + stage. The
Metropolis test takes the word w_0 of block 0 of (seed, chain, draw), tag 2. With u = uniform(w_0) of the standard and
r = radius(w_0), which is sqrt(-2 ln u), it accepts where u < exp(log_ratio), decided as ``r r > -2 log_ratio`` in
float64 (r r is exact). A NaN rejects.

**Sums** over a chain's elements are float64 in the order of :func:`ulam_kernels.reduce`: lane l of 1024 adds the
elements e with e mod 1024 = l in order of e, then lane l adds lane l + w for w = 512, 256, ... 1.

**Preconditioner.** ``scale`` is the square root L of a diagonal P = L^2, one number an element, shared by the chains.
L = 1 has the bits of None. Velocities are whitened: v ~ N(0, temperature I), x += drift L v.

No operation has a derivative: RuntimeError where an argument requires grad while gradients are recorded.

What an operation reads may share memory with what it writes: it is read before anything is written. Tensors that it
writes to must not share memory with one another.

Per-chain coefficients are float32 tensors ``[B]``. Tensors are contiguous; floats are float32, except that all of them
may be float64 on the reference backend, for checking formulas.
"""

from __future__ import annotations

from typing import Any

import torch

from ulam_kernels.dispatch import select
from ulam_kernels.validation import check, check_ids


def operations_of(backend: str | None, x: torch.Tensor, dtype: torch.dtype | None = None) -> Any:
    """A backend's operations on chains like ``x``."""
    return select(backend, x.device.type, dtype or x.dtype).mcmc


def present(**tensors: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Those that are not None."""
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def check_like(x: torch.Tensor, **tensors: torch.Tensor) -> None:
    for name, tensor in tensors.items():
        check(tensor, name, x.dtype, x.device, x.shape)


def check_per_chain(x: torch.Tensor, **tensors: torch.Tensor) -> None:
    for name, tensor in tensors.items():
        check(tensor, name, x.dtype, x.device, x.shape[:1])


def check_scale(x: torch.Tensor, scale: torch.Tensor | None) -> None:
    if scale is not None:
        check(scale, "scale", x.dtype, x.device, x.shape[1:])


def check_noise(
    x: torch.Tensor,
    seed: torch.Tensor | None,
    chain: torch.Tensor | None,
    draw: torch.Tensor | None,
    noise: torch.Tensor | None,
) -> None:
    if noise is None and (seed is None or chain is None or draw is None):
        raise ValueError("seed, chain, draw: got None, expected int64 tensors [B] (or noise)")
    check_ids(seed, chain, draw, x.device, x.shape[:1])
