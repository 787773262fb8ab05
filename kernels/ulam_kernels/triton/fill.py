"""noise-v1 straight into a tensor, in Triton: one kernel for long chains, one for many short ones."""
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
from ulam_kernels.triton.noise import key_of, normals, tile_of_normals

# Read one number at a time: slices of them, at whatever address, must not compile the kernel again.
PER_CHAIN = ["seed", "chain", "draw"]


@triton.jit(do_not_specialize=["chains", "n", "offset", "tag", "scale"], do_not_specialize_on_alignment=PER_CHAIN)
def fill_long(out, seed, chain, draw, chains, n, offset, tag, scale, ALIGNED: tl.constexpr, TILE: tl.constexpr):
    """Grid of :func:`ulam_kernels.triton.launch.long_grid`; the first tile begins with offset's block of four."""
    if ALIGNED:  # says to the compiler that 16-byte accesses are aligned
        n = n // 8 * 8
        offset = offset // 8 * 8
    b = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    exists = b < chains
    first = offset // 4 + tl.program_id(0) * (TILE // 4)
    d = tl.load(draw + b, mask=exists, other=0)
    k0, k1 = key_of(tl.load(seed + b, mask=exists, other=0), d)
    ids = tl.load(chain + b, mask=exists, other=0)
    PAIRS: tl.constexpr = out.dtype.element_ty.primitive_bitwidth == 16
    z = tile_of_normals(k0, k1, ids, d, (tag << 28) | first, TILE, PAIRS)
    i = 4 * first - offset + tl.arange(0, TILE)
    values = (z * scale).to(out.dtype.element_ty)
    tl.store(out + b.to(tl.int64) * n + i, values, mask=exists & (i >= 0) & (i < n))


@triton.jit(
    do_not_specialize=["chains", "n", "offset", "tag", "scale", "shift"], do_not_specialize_on_alignment=PER_CHAIN
)
def fill_short(
    out, seed, chain, draw, chains, n, offset, tag, scale, shift, ALIGNED: tl.constexpr, BLOCKS: tl.constexpr
):
    """Grid of :func:`ulam_kernels.triton.launch.short_grid`: each chain has 2^shift of the tile's blocks of four."""
    if ALIGNED:
        n = n // 8 * 8
        offset = offset // 8 * 8
    p = tl.arange(0, BLOCKS)[:, None]
    b = tl.program_id(0) * (BLOCKS >> shift) + (p >> shift)
    exists = b < chains
    block = offset // 4 + (p & ((1 << shift) - 1))
    d = tl.load(draw + b, mask=exists, other=0)
    k0, k1 = key_of(tl.load(seed + b, mask=exists, other=0), d)
    ids = tl.load(chain + b, mask=exists, other=0)
    z = tl.reshape(normals(k0, k1, ids, d, (tag << 28) | block), [BLOCKS, 4])
    i = 4 * block - offset + tl.arange(0, 4)[None, :]
    values = (z * scale).to(out.dtype.element_ty)
    tl.store(out + b.to(tl.int64) * n + i, values, mask=exists & (i >= 0) & (i < n))


def fill_normal(
    out: torch.Tensor,
    seed: torch.Tensor,
    chain: torch.Tensor,
    draw: torch.Tensor,
    tag: int,
    scale: float,
    offset: int,
) -> None:
    """Fill ``out`` with noise-v1: see :func:`ulam_kernels.fill_normal`."""
    n = elements_per_chain(out)
    if n == 0:
        return
    chains = out.shape[0]
    tensors = (out, seed, chain, draw)
    covered = n + offset % 4  # from the beginning of the first block
    aligned = n % 8 == 0 and offset % 8 == 0
    with on_device(out):
        if covered > LONGEST_SHORT:
            fill_long[long_grid(chains, covered)](
                *tensors, chains, n, offset, tag, float(scale), ALIGNED=aligned, TILE=TILE, **long_options()
            )
        else:
            shift = blocks_shift(covered)
            fill_short[short_grid(chains, shift)](
                *tensors, chains, n, offset, tag, float(scale), shift, ALIGNED=aligned, BLOCKS=BLOCKS, **short_options()
            )
