"""Langevin and Metropolis operations in Triton: see :mod:`ulam_kernels.mcmc.checks`.

The updates are made like :mod:`ulam_kernels.triton.blend`: one kernel for long chains, one for many short ones. Sums
are made like in :mod:`ulam_kernels.triton.reduce`: one program a chain. Whole chains are in ``mcmc_run``.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from ulam_kernels.triton.launch import (
    BLOCKS,
    EXACT,
    LONGEST_SHORT,
    TILE,
    blocks_shift,
    elements_per_chain,
    long_grid,
    long_options,
    on_device,
    short_grid,
    short_options,
)
from ulam_kernels.triton.mcmc_run import evaluate as evaluate
from ulam_kernels.triton.mcmc_run import radius_of_test
from ulam_kernels.triton.mcmc_run import run as run
from ulam_kernels.triton.row import clip, generated_noise, splat
from ulam_kernels.triton.sums import FEW_LANES, LANES, sum_of_lanes

IDS = ["seed", "chain", "draw"]
CHAINS = 128  # of a program of the Metropolis test


@triton.jit
def noise_of(noise, seed, chain, draw, c, exists, base, i, block, inside):
    z = tl.zeros(inside.shape, tl.float32)
    if noise is not None:
        z = tl.load(noise + base + i, mask=inside, other=0.0)
    else:
        z = generated_noise(seed, chain, draw, c, exists, block, z, False)
    return z


@triton.jit
def langevin_tile(
    x, score, step, noise_scale, scale, lo, hi, seed, chain, draw, noise, out,  # as ulam_kernels.mcmc has them
    c, exists, base, i, block, inside,
):  # fmt: skip
    """Update one tile: of chain ``c`` or of the chains ``[P, 1]``; the rest as in ``execute``."""
    position = tl.load(x + base + i, mask=inside)
    force = tl.load(score + base + i, mask=inside)
    a = splat(tl.load(step + c, mask=exists, other=0.0), position)
    s = splat(tl.load(noise_scale + c, mask=exists, other=0.0), position)
    if scale is not None:
        factor = tl.load(scale + splat(i, inside), mask=inside)
        a = a * factor
        s = s * factor
        force = factor * force
    z = noise_of(noise, seed, chain, draw, c, exists, base, i, block, inside)
    t = tl.fma(s, z, tl.fma(a, force, position))
    tl.store(out + base + i, clip(t, lo, hi), mask=inside)


@triton.jit
def kick_drift_tile(
    x, v, score, kick, drift, keep, noise_scale, scale, seed, chain, draw, noise,  # as ulam_kernels.mcmc has them
    c, exists, base, i, block, inside,
):  # fmt: skip
    velocity = tl.load(v + base + i, mask=inside)
    force = tl.load(score + base + i, mask=inside)
    by = splat(tl.load(kick + c, mask=exists, other=0.0), velocity)
    if scale is not None:
        factor = tl.load(scale + splat(i, inside), mask=inside)
        by = by * factor
    velocity = tl.fma(by, force, velocity)
    if drift is not None:
        along = splat(tl.load(drift + c, mask=exists, other=0.0), velocity)
        if scale is not None:
            along = along * factor
        position = tl.fma(along, velocity, tl.load(x + base + i, mask=inside))
        if keep is not None:
            kept = splat(tl.load(keep + c, mask=exists, other=0.0), velocity)
            heat = splat(tl.load(noise_scale + c, mask=exists, other=0.0), velocity)
            z = noise_of(noise, seed, chain, draw, c, exists, base, i, block, inside)
            velocity = tl.fma(heat, z, kept * velocity)
            position = tl.fma(along, velocity, position)
        tl.store(x + base + i, position, mask=inside)
    tl.store(v + base + i, velocity, mask=inside)


@triton.jit
def long_place(chains, n, TILE: tl.constexpr, ALIGNED: tl.constexpr):
    """(chain, whether it exists, its first element, elements, first block, which are inside) of a program."""
    if ALIGNED:
        n = n // 8 * 8  # says to the compiler that 16-byte accesses are aligned
    c = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    exists = c < chains
    tile = tl.program_id(0)
    i = tile * TILE + tl.arange(0, TILE)
    return c, exists, c.to(tl.int64) * n, i, tile * (TILE // 4), exists & (i < n)


@triton.jit
def short_place(chains, n, shift, BLOCKS: tl.constexpr, ALIGNED: tl.constexpr):
    """The same for many chains, each of which has 2^shift of the tile's blocks of four."""
    if ALIGNED:
        n = n // 8 * 8
    p = tl.arange(0, BLOCKS)[:, None]
    c = tl.program_id(0) * (BLOCKS >> shift) + (p >> shift)
    block = p & ((1 << shift) - 1)
    i = 4 * block + tl.arange(0, 4)[None, :]
    exists = c < chains
    return c, exists, c.to(tl.int64) * n, i, block, exists & (i < n)


SIZES = ["chains", "n", "shift", "lo", "hi"]
PER_CHAIN = ["step", "noise_scale", "kick", "drift", "keep", *IDS]


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=PER_CHAIN)
def langevin_kernel(
    x, score, step, noise_scale, scale, lo, hi, seed, chain, draw, noise, out,
    chains, n, shift,
    LONG: tl.constexpr, ALIGNED: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    if LONG:
        c, exists, base, i, block, inside = long_place(chains, n, SIZE, ALIGNED)
    else:
        c, exists, base, i, block, inside = short_place(chains, n, shift, SIZE, ALIGNED)
    langevin_tile(
        x, score, step, noise_scale, scale, lo, hi, seed, chain, draw, noise, out,
        c, exists, base, i, block, inside,
    )  # fmt: skip


@triton.jit(do_not_specialize=SIZES[:3], do_not_specialize_on_alignment=PER_CHAIN)
def kick_drift_kernel(
    x, v, score, kick, drift, keep, noise_scale, scale, seed, chain, draw, noise,
    chains, n, shift,
    LONG: tl.constexpr, ALIGNED: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    if LONG:
        c, exists, base, i, block, inside = long_place(chains, n, SIZE, ALIGNED)
    else:
        c, exists, base, i, block, inside = short_place(chains, n, shift, SIZE, ALIGNED)
    kick_drift_tile(
        x, v, score, kick, drift, keep, noise_scale, scale, seed, chain, draw, noise,
        c, exists, base, i, block, inside,
    )  # fmt: skip


@triton.jit(do_not_specialize=["n"], do_not_specialize_on_alignment=["step", "inverse_temperature", *IDS])
def mala_accept_chain(
    x, proposal, score, proposal_score, energy, proposal_energy, step, inverse_temperature, scale,
    seed, chain, draw, accepted, log_ratio,
    n, ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Grid (chains)."""
    if ALIGNED:
        n = n // 8 * 8
    b = tl.program_id(0)
    base = b.to(tl.int64) * n
    half = 0.5 * tl.load(step + b).to(tl.float64)
    lanes = tl.zeros([TILE], tl.float64)
    for first in range(0, n, TILE):
        i = first + tl.arange(0, TILE)
        inside = i < n
        old = tl.load(x + base + i, mask=inside, other=0.0).to(tl.float64)
        new = tl.load(proposal + base + i, mask=inside, other=0.0).to(tl.float64)
        s = tl.load(score + base + i, mask=inside, other=0.0).to(tl.float64)
        t = tl.load(proposal_score + base + i, mask=inside, other=0.0).to(tl.float64)
        size = tl.zeros([TILE], tl.float64) + half
        if scale is not None:
            factor = tl.load(scale + i, mask=inside, other=0.0).to(tl.float64)
            size = (size * factor) * factor
        lanes += (s + t) * ((new - old) + size * (t - s))
    beta = 1.0
    if inverse_temperature is not None:
        beta = tl.load(inverse_temperature + b).to(tl.float64)
    proposed = tl.load(proposal_energy + b)
    ratio = ((tl.load(energy + b) - proposed) - 0.5 * sum_of_lanes(lanes, TILE)) * beta
    r = radius_of_test(tl.load(seed + b), tl.load(chain + b), tl.load(draw + b)).to(tl.float64)
    yes = r * r > -2.0 * ratio
    tl.store(log_ratio + b, ratio)
    tl.store(accepted + b, yes.to(tl.uint8))
    if yes:
        tl.store(energy + b, proposed)
        for first in range(0, n, TILE):
            i = first + tl.arange(0, TILE)
            tl.store(x + base + i, tl.load(proposal + base + i, mask=i < n), mask=i < n)
            tl.store(score + base + i, tl.load(proposal_score + base + i, mask=i < n), mask=i < n)


@triton.jit(do_not_specialize=["n"])
def squared_norm_chain(x, out, n, ALIGNED: tl.constexpr, TILE: tl.constexpr):
    """Grid (chains)."""
    if ALIGNED:
        n = n // 8 * 8
    b = tl.program_id(0)
    lanes = tl.zeros([TILE], tl.float64)
    for first in range(0, n, TILE):
        i = first + tl.arange(0, TILE)
        wide = tl.load(x + b.to(tl.int64) * n + i, mask=i < n, other=0.0).to(tl.float64)
        lanes += wide * wide
    tl.store(out + b, sum_of_lanes(lanes, TILE))


@triton.jit(do_not_specialize=["chains"], do_not_specialize_on_alignment=["log_ratio", *IDS])
def metropolis_kernel(log_ratio, seed, chain, draw, accepted, chains, CHAINS: tl.constexpr):
    """Grid (groups of chains)."""
    b = tl.program_id(0) * CHAINS + tl.arange(0, CHAINS)
    exists = b < chains
    ids = tl.load(chain + b, mask=exists, other=0)
    r = radius_of_test(tl.load(seed + b, mask=exists, other=0), ids, tl.load(draw + b, mask=exists, other=0))
    wide = r.to(tl.float64)
    yes = wide * wide > -2.0 * tl.load(log_ratio + b, mask=exists, other=0.0)
    tl.store(accepted + b, yes.to(tl.uint8), mask=exists)


@triton.jit(do_not_specialize=["size", "words"])
def select_kernel(kept, proposed, accepted, size, words, TILE: tl.constexpr):
    """Grid (tiles of the whole batch of ``size`` words of 32 bits), ``words`` a chain."""
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    taken = (i < size) & (tl.load(accepted + i // words, mask=i < size, other=0) != 0)
    tl.store(kept + i, tl.load(proposed + i, mask=taken), mask=taken)


def langevin(
    x: torch.Tensor,
    score: torch.Tensor,
    step: torch.Tensor,
    noise_scale: torch.Tensor,
    scale: torch.Tensor | None,
    lo: float,
    hi: float,
    seed: torch.Tensor | None,
    chain: torch.Tensor | None,
    draw: torch.Tensor | None,
    noise: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    if noise is not None:
        seed = chain = draw = None
    _update(
        langevin_kernel, x, (x, score, step, noise_scale, scale, float(lo), float(hi), seed, chain, draw, noise, out)
    )


def kick_drift(x: torch.Tensor, *tensors: torch.Tensor | None) -> None:
    """``tensors``: v, score, kick, drift, keep, noise_scale, scale, seed, chain, draw, noise."""
    *rest, keep, noise_scale, scale, seed, chain, draw, noise = tensors
    if keep is None or noise is not None:
        seed = chain = draw = None
    if keep is None:
        noise = None
    _update(kick_drift_kernel, x, (x, *rest, keep, noise_scale, scale, seed, chain, draw, noise))


def _update(kernel: object, x: torch.Tensor, arguments: tuple[object, ...]) -> None:
    n, chains = elements_per_chain(x), x.shape[0]
    with on_device(x):
        if n > LONGEST_SHORT:
            kernel[long_grid(chains, n)](  # type: ignore[index]
                *arguments, chains, n, 0, LONG=True, ALIGNED=n % 8 == 0, SIZE=TILE, **long_options(2)
            )
        else:
            shift = blocks_shift(n)
            kernel[short_grid(chains, shift)](  # type: ignore[index]
                *arguments, chains, n, shift, LONG=False, ALIGNED=n % 8 == 0, SIZE=BLOCKS, **short_options()
            )


def mala_accept(x: torch.Tensor, *tensors: torch.Tensor | None) -> None:
    """``tensors``: as the arguments of the kernel."""
    *rest, accepted, log_ratio = tensors
    assert accepted is not None
    n = elements_per_chain(x)
    with on_device(x):
        mala_accept_chain[(x.shape[0],)](
            x, *rest, accepted.view(torch.uint8), log_ratio, n, ALIGNED=n % 8 == 0, **_lanes(n)
        )


def squared_norm(x: torch.Tensor, out: torch.Tensor) -> None:
    n = elements_per_chain(x)
    with on_device(x):
        squared_norm_chain[(x.shape[0],)](x, out, n, ALIGNED=n % 8 == 0, **_lanes(n))


def _lanes(n: int) -> dict[str, object]:
    tile, warps = (FEW_LANES, 1) if n <= FEW_LANES else (LANES, 8)
    return {"TILE": tile, "num_warps": warps, **EXACT}


def accept(
    log_ratio: torch.Tensor,
    pairs: Sequence[tuple[torch.Tensor, torch.Tensor]],
    seed: torch.Tensor,
    chain: torch.Tensor,
    draw: torch.Tensor,
    accepted: torch.Tensor,
) -> None:
    chains, flags = len(log_ratio), accepted.view(torch.uint8)
    with on_device(log_ratio):
        metropolis_kernel[(-(-chains // CHAINS),)](
            log_ratio, seed, chain, draw, flags, chains, CHAINS=CHAINS, num_warps=4, **EXACT
        )
        for pair in pairs:
            kept, proposed = (tensor.reshape(chains, -1).view(torch.int32) for tensor in pair)
            if kept.numel():
                select_kernel[(-(-kept.numel() // TILE),)](
                    kept, proposed, flags, kept.numel(), kept.numel() // chains, TILE=TILE, num_warps=4, **EXACT
                )
