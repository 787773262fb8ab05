"""The fused step in Triton: a kernel for long chains and one for many short ones, around the body of ``row.py``.

Tensors with their channels innermost go through the kernels of ``pixels.py``, around the same body.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ulam_kernels import table
from ulam_kernels.triton.execute import execute
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
from ulam_kernels.triton.pixels import launch_pixels
from ulam_kernels.triton.row import PER_CHAIN
from ulam_kernels.validation import channels_last


@triton.jit(do_not_specialize=["chains", "n", "rows"], do_not_specialize_on_alignment=PER_CHAIN)
def step_long(
    state, coef, flags, row, model, uncond, guidance, seed, chain, draw, noise, net_in, scales, source, squares,
    chains, n, rows,
    R: tl.constexpr, HALVES: tl.constexpr, MISSING: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of a chain, chains modulo 2^16, the rest of the chains' number)."""
    if ALIGNED:
        n = n // 8 * 8  # says to the compiler that 16-byte accesses are aligned
    b = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    exists = b < chains
    tile = tl.program_id(0)
    i = tile * TILE + tl.arange(0, TILE)
    size = n.to(tl.int64)
    execute(
        state, coef, flags, row, model, uncond, guidance, seed, chain, draw, noise, net_in, scales, source, squares,
        rows, chains * size, size, b, exists, b.to(tl.int64) * size, i, i, size, i,
        tile * (TILE // 4), exists & (i < n),
        R, HALVES, MISSING, state.dtype.element_ty.primitive_bitwidth == 16, True, False, 0,
    )  # fmt: skip


@triton.jit(do_not_specialize=["chains", "n", "rows", "shift"], do_not_specialize_on_alignment=PER_CHAIN)
def step_short(
    state, coef, flags, row, model, uncond, guidance, seed, chain, draw, noise, net_in, scales, source, squares,
    chains, n, rows, shift,
    R: tl.constexpr, HALVES: tl.constexpr, MISSING: tl.constexpr, ALIGNED: tl.constexpr, BLOCKS: tl.constexpr,
    SHIFT: tl.constexpr,
):  # fmt: skip
    """Grid (groups of chains): each chain has 2^shift of the tile's blocks of four, the last of them maybe unused.

    SHIFT: as shift, of a step that records; else 0, so that it is compiled once.
    """
    if ALIGNED:
        n = n // 8 * 8
    p = tl.arange(0, BLOCKS)[:, None]
    b = tl.program_id(0) * (BLOCKS >> shift) + (p >> shift)
    block = p & ((1 << shift) - 1)
    i = 4 * block + tl.arange(0, 4)[None, :]
    size = n.to(tl.int64)
    exists = b < chains
    execute(
        state, coef, flags, row, model, uncond, guidance, seed, chain, draw, noise, net_in, scales, source, squares,
        rows, chains * size, size, b, exists, b.to(tl.int64) * size, i, i, size, i, block, exists & (i < n),
        R, HALVES, MISSING, False, False, not ALIGNED, SHIFT,
    )  # fmt: skip


def step(
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
    net_in: torch.Tensor | None,
    scales: torch.Tensor | None = None,
    source: torch.Tensor | None = None,
    squares: torch.Tensor | None = None,
) -> None:
    """Execute one row of the table on every chain: see :func:`ulam_kernels.step`."""
    registers, chains = state.shape[:2]
    n = elements_per_chain(state[0])
    if n == 0:
        return
    if uncond is None or guidance is None:
        uncond = guidance = None
    if seed is None or chain is None or draw is None or noise is not None:
        seed = chain = draw = None
    halves = 1 if model is None else model.numel() // (chains * n)
    missing = 0 if model is not None else table.READS_M
    missing |= 0 if noise is not None or seed is not None else table.READS_Z
    missing |= 0 if halves == 2 else table.LEARNED
    missing |= 0 if scales is not None else table.THRESHOLD | table.NORMALISE
    tensors = (state, coef, flags, row, model, uncond, guidance, seed, chain, draw, noise, net_in, scales, source,
               squares)  # fmt: skip
    model_last, net_last = (x is not None and not x.is_contiguous() and channels_last(x) for x in (model, net_in))
    with on_device(state):
        if model_last or net_last:
            launch_pixels(tensors, halves, missing, model_last, net_last)
        elif n > LONGEST_SHORT:
            step_long[long_grid(chains, n)](
                *tensors, chains, n, flags.shape[0],
                R=registers, HALVES=halves, MISSING=missing, ALIGNED=n % 8 == 0, TILE=TILE, **long_options(registers),
            )  # fmt: skip
        else:
            shift = blocks_shift(n)
            step_short[short_grid(chains, shift)](
                *tensors, chains, n, flags.shape[0], shift,
                R=registers, HALVES=halves, MISSING=missing, ALIGNED=n % 8 == 0, BLOCKS=BLOCKS,
                SHIFT=shift if squares is not None else 0, **short_options(),
            )  # fmt: skip
