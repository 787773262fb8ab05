"""Per-chain reductions in Triton: the quantile of |D|, and the norms of D and z. One program a chain.

The order statistics are found from the top bit down. A chain of up to 16,384 elements is read once: its program holds
the bits of |D| in registers, 64 a thread at most, and settles a bit by counting the numbers below one candidate.
Triton has neither shared memory of its own nor several programs that meet, so a longer chain is made again from
global memory in each of twelve passes, by one program: a pass counts the numbers below eight candidates, which settles
three bits. The CUDA backend holds and shares such chains. Sums of squares keep the lanes of the contract, and halve
them in its order; their elements are read once at any length. The bits are those of
``csrc/include/ulam/reduce.h``.
"""
# ruff: noqa: RUF005 (Triton knows no unpacking)
# mypy: disable-error-code="assignment, no-untyped-def, no-untyped-call, untyped-decorator, var-annotated"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ulam_kernels import table
from ulam_kernels.triton.launch import EXACT, elements_per_chain, on_device
from ulam_kernels.triton.step import (
    HI,
    KM,
    KX,
    LO,
    NORMALISE,
    READS_M,
    READS_Z,
    REDUCED,
    generated_noise,
    guide,
    unclipped_x0,
)

THRESHOLD = tl.constexpr(table.THRESHOLD)
LANES = 1024  # of a sum of squares; a chain of fewer elements leaves the others at 0
FEW_LANES = 128
HELD_TILES = (1, 4, 16)  # of LANES elements, which a program can have in registers
UNROLL = 4  # tiles that are loaded before the first is used
PASSES = tl.constexpr(11)  # three bits each, and the last of 31 alone
LARGEST = tl.constexpr(0x7FFFFFFF)
INFINITY_BITS = tl.constexpr(0x7F800000)

# Read one number at a time: slices of them, at whatever address, must not compile the kernel again.
PER_CHAIN = ["row", "guidance", "seed", "chain", "draw"]


@triton.jit
def tile_of_x0(state, model, uncond, kx, km, w, reads_m, base, i, mask, HALVES: tl.constexpr):
    """D before any clip, of one chain's elements ``i``."""
    x = tl.load(state + base + i, mask=mask & (kx != 0), other=0.0).to(tl.float32)
    m = x  # not read by any row where there is no model
    if uncond is not None:
        other = tl.load(uncond + HALVES * base + i, mask=mask & reads_m & (w != 1), other=0.0).to(tl.float32)
        cond = tl.load(model + HALVES * base + i, mask=mask & reads_m & (w != 0), other=0.0).to(tl.float32)
        m = guide(cond, other, w, True)
    elif model is not None:
        m = tl.load(model + HALVES * base + i, mask=mask & reads_m, other=0.0).to(tl.float32)
    return unclipped_x0(kx, km, x, m, True)


@triton.jit
def tile_of_magnitudes(state, model, uncond, kx, km, w, reads_m, base, i, n, HALVES: tl.constexpr):
    """The bits of |D|, which order like the numbers; beyond the chain the largest there are."""
    d = tile_of_x0(state, model, uncond, kx, km, w, reads_m, base, i, i < n, HALVES)
    return tl.where(i < n, d.to(tl.int32, bitcast=True) & LARGEST, LARGEST)


@triton.jit
def counts_of_tiles(
    state, model, uncond, kx, km, w, reads_m, v, shift, base, n, HALVES: tl.constexpr, TILE: tl.constexpr
):
    """How many numbers are below v + (0, 1, ... 7) << shift, in one pass over a chain."""
    limits = v + (tl.arange(0, 8) << shift)
    below = tl.zeros([TILE, 8], tl.int32)
    for first in range(0, n, 2 * TILE):
        tiles = ()
        for u in tl.static_range(2):
            i = first + u * TILE + tl.arange(0, TILE)
            tiles = tiles + (tile_of_magnitudes(state, model, uncond, kx, km, w, reads_m, base, i, n, HALVES),)
        for u in tl.static_range(2):
            below += (tiles[u][:, None] < limits[None, :]).to(tl.int32)
    return tl.sum(below, 0)


@triton.jit
def neighbours(bits, v, inside):
    """Of a tile of magnitudes: which are up to v, those above it (others LARGEST), those of the chain (others 0)."""
    return (bits <= v).to(tl.int32), tl.where(bits > v, bits, LARGEST), tl.where(inside, bits, 0)


@triton.jit
def threshold_of(
    state, model, uncond, kx, km, w, reads_m, level, cap, base, n,
    HALVES: tl.constexpr, TILE: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """s of dynamic thresholding: Saharia et al. 2022, section 2.3."""
    position = level.to(tl.float64) * (n - 1).to(tl.float64)
    k = position.to(tl.int32)
    t = (position - k.to(tl.float64)).to(tl.float32)

    # The order statistic k is the largest v with at most k numbers below it.
    v = k ^ k
    reached = tl.zeros([TILE], tl.int32)
    above = tl.full([TILE], LARGEST, tl.int32)
    largest = tl.zeros([TILE], tl.int32)
    if HELD > 0:
        tiles = ()
        for u in tl.static_range(HELD):
            i = u * TILE + tl.arange(0, TILE)
            tiles = tiles + (tile_of_magnitudes(state, model, uncond, kx, km, w, reads_m, base, i, n, HALVES),)
        for step in range(31):
            candidate = v | ((v ^ v) + 1 << (30 - step))
            below = tl.zeros([TILE], tl.uint32)
            for u in tl.static_range(HELD):
                # the sign of the difference: of a comparison the compiler makes a word of bits, at twice the cost
                below += (tiles[u] - candidate).to(tl.uint32, bitcast=True) >> 31
            v = tl.where(tl.sum(below.to(tl.int32, bitcast=True), 0) <= k, candidate, v)
        for u in tl.static_range(HELD):
            to, over, number = neighbours(tiles[u], v, u * TILE + tl.arange(0, TILE) < n)
            reached += to
            above = tl.minimum(above, over)
            largest = tl.maximum(largest, number)
    else:
        for step in range(PASSES):
            shift = tl.maximum(28 - 3 * step, 0)
            below = counts_of_tiles(state, model, uncond, kx, km, w, reads_m, v, shift, base, n, HALVES, TILE)
            settled = tl.sum((below <= k).to(tl.int32), 0) - 1
            v += settled << shift
        for first in range(0, n, TILE):
            i = first + tl.arange(0, TILE)
            bits = tile_of_magnitudes(state, model, uncond, kx, km, w, reads_m, base, i, n, HALVES)
            to, over, number = neighbours(bits, v, i < n)
            reached += to
            above = tl.minimum(above, over)
            largest = tl.maximum(largest, number)
    a = v.to(tl.float32, bitcast=True)
    b = a
    if (k + 1 < n) & (k + 1 >= tl.sum(reached, 0)):
        b = tl.min(above, 0).to(tl.float32, bitcast=True)
    s = a
    if (t != 0) & (a != b):
        s = tl.fma(t, b - a, a)
    s = tl.where(s < 1, 1.0, s)
    s = tl.where(s > cap, cap, s)
    return tl.where(tl.max(largest, 0) > INFINITY_BITS, float("nan"), s)


@triton.jit
def sum_of_lanes(x, LANES: tl.constexpr):
    """``x[l] += x[l + w]`` for l < w, w = LANES / 2, ... 1: sums of two each, so that their order is no question."""
    if LANES > 2:
        x = tl.sum(tl.reshape(x, [2, LANES // 2]), 0)
        total = sum_of_lanes(x, LANES // 2)
    else:
        total = tl.sum(x, 0)
    return total


@triton.jit(do_not_specialize=["n", "rows", "width"], do_not_specialize_on_alignment=PER_CHAIN)
def reduce_chain(
    state, coef, flags, row, model, uncond, guidance, seed, chain, draw, noise, out,
    n, rows, width,
    HALVES: tl.constexpr, MISSING: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr, HELD: tl.constexpr,
    UNROLL: tl.constexpr,
):  # fmt: skip
    """Grid (chains). HELD: tiles that hold any chain, 0 where none do."""
    if ALIGNED:
        n = n // 8 * 8  # says to the compiler that 16-byte accesses are aligned
    b = tl.program_id(0)
    at = tl.load(row + b)
    usable = (at >= 0) & (at < rows)
    flag = tl.load(flags + at, mask=usable, other=0)
    reduced = usable & ((flag & REDUCED) != 0)
    c = coef + at * width
    kx = tl.load(c + KX, mask=reduced, other=0.0)
    km = tl.load(c + KM, mask=reduced, other=0.0)
    reads_m = km != 0
    reads = tl.where(reads_m, READS_M, 0) | tl.where((flag & NORMALISE) != 0, READS_Z, 0)
    usable = usable & (((flag & reads) & MISSING) == 0)
    reduced = reduced & usable
    base = b.to(tl.int64) * n
    w = kx  # not read where there is no guidance
    if uncond is not None:
        w = tl.load(guidance + b)

    bound = float("inf")
    x0_scale = 1.0
    z_scale = 1.0
    if reduced & ((flag & THRESHOLD) != 0):
        bound = threshold_of(
            state, model, uncond, kx, km, w, reads_m, tl.load(c + LO), tl.load(c + HI), base, n, HALVES, TILE, HELD
        )
        x0_scale = tl.div_rn(1.0, bound)
    elif reduced:
        squares = tl.zeros([TILE], tl.float64)
        squares_z = tl.zeros([TILE], tl.float64)
        for first in range(0, n, UNROLL * TILE):
            ds = ()
            zs = ()
            for u in tl.static_range(UNROLL):
                i = first + u * TILE + tl.arange(0, TILE)
                d = tile_of_x0(state, model, uncond, kx, km, w, reads_m, base, i, i < n, HALVES)
                z = tl.zeros([TILE], tl.float32)
                if noise is not None:
                    z = tl.load(noise + base + i, mask=i < n, other=0.0)
                ds = ds + (tl.where(i < n, d, 0.0),)
                zs = zs + (z,)
            for u in tl.static_range(UNROLL):
                z = zs[u]
                if noise is None and seed is not None:
                    i = first + u * TILE + tl.arange(0, TILE)
                    quad = tl.full([], (first + u * TILE) // 4, tl.int32)
                    z = tl.where(i < n, generated_noise(seed, chain, draw, b, reduced, quad, z, False), 0.0)
                wide = ds[u].to(tl.float64)
                wide_z = z.to(tl.float64)
                squares += wide * wide
                squares_z += wide_z * wide_z
        divisor = sum_of_lanes(squares, TILE)
        g = sum_of_lanes(squares_z, TILE) / tl.where(divisor == 0, 1.0, divisor)
        g = tl.where(divisor == 0, 0.0, g)
        x0_scale = g.to(tl.float32)
        z_scale = tl.sqrt(g).to(tl.float32)
    own = out + 4 * b.to(tl.int64)
    tl.store(own, tl.where(usable, -bound, float("nan")))
    tl.store(own + 1, tl.where(usable, bound, float("nan")))
    tl.store(own + 2, tl.where(usable, x0_scale, float("nan")))
    tl.store(own + 3, tl.where(usable, z_scale, float("nan")))


def shape_of(n: int) -> dict[str, object]:
    """How a program sums over a chain: compile options that depend on its length in few ways."""
    tile, warps = (FEW_LANES, 1) if n <= FEW_LANES else (LANES, 8)
    return {"ALIGNED": n % 8 == 0, "TILE": tile, "UNROLL": UNROLL if n > tile else 1, "num_warps": warps, **EXACT}


def held_tiles(n: int) -> int:
    """The tiles that hold a chain, 0 where it is longer."""
    return next((tiles for tiles in HELD_TILES if n <= LANES * tiles), 0)


def reduce(
    state: torch.Tensor,
    coef: torch.Tensor,
    flags: torch.Tensor,
    row: torch.Tensor,
    model: torch.Tensor | None,
    uncond: torch.Tensor | None,
    guidance: torch.Tensor | None,
    seed: torch.Tensor | None,
    chain: torch.Tensor | None,
    draw: torch.Tensor | None,
    noise: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """(lo, hi, D_scale, z_scale) of every chain: see :func:`ulam_kernels.reduce`."""
    n = elements_per_chain(state[0])
    if n == 0:
        return
    chains = state.shape[1]
    if uncond is None or guidance is None:
        uncond = guidance = None
    if seed is None or chain is None or draw is None or noise is not None:
        seed = chain = draw = None
    halves = 1 if model is None else model.numel() // (chains * n)
    missing = 0 if model is not None else table.READS_M
    missing |= 0 if noise is not None or seed is not None else table.READS_Z
    tensors = (state, coef, flags, row, model, uncond, guidance, seed, chain, draw, noise, out)
    with on_device(state):
        reduce_chain[(chains,)](
            *tensors, n, flags.shape[0], coef.shape[1],
            HALVES=halves, MISSING=missing, HELD=held_tiles(n), **shape_of(n),
        )  # fmt: skip
