"""Mask blending with a known image in Triton: one kernel for long chains, one for many short ones."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ulam_kernels.triton.launch import (
    BLOCKS,
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
from ulam_kernels.triton.row import add_term, any_of, empty_sum, generated_noise, splat

# Read one number at a time: slices of them, at whatever address, must not compile the kernel again.
PER_CHAIN = ["a", "b", "seed", "chain", "draw", "c_next", "row"]
SIZES = ["chains", "n", "rows", "stage"]


@triton.jit
def blend_tile(
    x, known, mask, a, b, seed, chain, draw, noise, net_in, c_next, row,  # as ulam_kernels.blend has them
    rows, stage, c, exists, base, i, block, inside,
    LONG: tl.constexpr,
):  # fmt: skip
    """Blend one tile: of chain ``c`` (LONG) or of the chains ``[P, 1]``; the rest as in ``execute``."""
    at = c
    known_row = exists
    if row is not None:
        at = tl.load(row + c, mask=exists, other=0)
        known_row = exists & (at >= 0) & (at < rows)
    a = tl.load(a + at, mask=known_row, other=float("nan"))
    b = tl.load(b + at, mask=known_row, other=0.0)
    inside = inside & ((a != 0) | (b != 0))
    old = tl.load(x + base + i, mask=inside)
    image = tl.load(known + base + i, mask=inside & (a != 0))
    weight = tl.load(mask + base + i, mask=inside)
    z = tl.zeros(inside.shape, tl.float32)
    if noise is not None:
        z = tl.load(noise + base + i, mask=inside & (b != 0))
    else:
        if any_of(b != 0):
            z = generated_noise(seed, chain, draw, c, exists & (b != 0), block, z, False, stage)
    k = empty_sum((a != 0) | (b != 0), z)
    k = add_term(k, a, image, LONG)
    k = add_term(k, b, z, LONG)
    wide = old.to(tl.float32)
    blended = tl.fma(weight, k - wide, wide)
    blended = tl.where(weight == 1, k, tl.where(weight == 0, wide, blended))
    if row is not None:
        blended = tl.where(known_row, blended, float("nan"))
    blended = blended.to(x.dtype.element_ty)
    tl.store(x + base + i, blended, mask=inside)
    if net_in is not None:
        scale = tl.load(c_next + at, mask=known_row, other=0.0)
        wide = blended.to(tl.float32)
        tl.store(net_in + base + i, (splat(scale, wide) * wide).to(net_in.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=PER_CHAIN)
def blend_long(
    x, known, mask, a, b, seed, chain, draw, noise, net_in, c_next, row,
    chains, n, rows, stage,
    ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Grid of :func:`ulam_kernels.triton.launch.long_grid`."""
    if ALIGNED:
        n = n // 8 * 8  # says to the compiler that 16-byte accesses are aligned
    c = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    exists = c < chains
    tile = tl.program_id(0)
    i = tile * TILE + tl.arange(0, TILE)
    blend_tile(
        x, known, mask, a, b, seed, chain, draw, noise, net_in, c_next, row,
        rows, stage, c, exists, c.to(tl.int64) * n, i, tile * (TILE // 4), exists & (i < n), True,
    )  # fmt: skip


@triton.jit(do_not_specialize=[*SIZES, "shift"], do_not_specialize_on_alignment=PER_CHAIN)
def blend_short(
    x, known, mask, a, b, seed, chain, draw, noise, net_in, c_next, row,
    chains, n, rows, stage, shift,
    ALIGNED: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Grid of :func:`ulam_kernels.triton.launch.short_grid`: each chain has 2^shift of the tile's blocks of four."""
    if ALIGNED:
        n = n // 8 * 8
    p = tl.arange(0, BLOCKS)[:, None]
    c = tl.program_id(0) * (BLOCKS >> shift) + (p >> shift)
    block = p & ((1 << shift) - 1)
    i = 4 * block + tl.arange(0, 4)[None, :]
    exists = c < chains
    blend_tile(
        x, known, mask, a, b, seed, chain, draw, noise, net_in, c_next, row,
        rows, stage, c, exists, c.to(tl.int64) * n, i, block, exists & (i < n), False,
    )  # fmt: skip


def blend(
    x: torch.Tensor,
    known: torch.Tensor,
    mask: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    seed: torch.Tensor | None,
    chain: torch.Tensor | None,
    draw: torch.Tensor | None,
    noise: torch.Tensor | None,
    net_in: torch.Tensor | None,
    c_next: torch.Tensor | None,
    row: torch.Tensor | None = None,
    stage: int = 0,
) -> None:
    """Blend r_0 with a known image: see :func:`ulam_kernels.blend`."""
    n = elements_per_chain(x)
    if n == 0:
        return
    chains = x.shape[0]
    if noise is not None:
        seed = chain = draw = None
    arguments = (x, known, mask, a, b, seed, chain, draw, noise, net_in, c_next, row, chains, n, a.shape[0], stage)
    with on_device(x):
        if n > LONGEST_SHORT:
            blend_long[long_grid(chains, n)](*arguments, ALIGNED=n % 8 == 0, TILE=TILE, **long_options(2))
        else:
            shift = blocks_shift(n)
            blend_short[short_grid(chains, shift)](
                *arguments, shift, ALIGNED=n % 8 == 0, BLOCKS=BLOCKS, **short_options()
            )
