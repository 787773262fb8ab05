"""The step where the model's output or the network's input has its channels innermost in memory, in Triton.

As in ``csrc/cuda/pixels.h``, the tile's blocks of four pixels go through the channels first, so that what a program
reads of such a tensor is one piece of it, and every byte comes from memory once. Where the pixels are no multiple of
four, blocks reach from channel to channel; the tile then follows the state's order and each element is looked up.
"""
# mypy: disable-error-code="assignment, no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ulam_kernels.triton.execute import execute
from ulam_kernels.triton.launch import (
    BLOCKS,
    LONGEST_SHORT,
    TILE,
    blocks_shift,
    elements_per_chain,
    long_grid,
    long_options,
    short_grid,
    short_options,
)
from ulam_kernels.triton.row import PER_CHAIN


@triton.jit
def places(s, pixels, CHANNELS: tl.constexpr, WHOLE: tl.constexpr):
    """(block of noise, elements, their pixels, their channels) of a tile's blocks ``s``, ``[P, 1]``."""
    k = tl.arange(0, 4)[None, :]
    if WHOLE:
        channel = s % CHANNELS
        block = channel * (pixels // 4) + s // CHANNELS
        i = 4 * block + k
        pixel = s // CHANNELS * 4 + k
    else:
        block = s
        i = 4 * s + k
        channel = i // pixels
        pixel = i - channel * pixels
    return block, i, pixel, channel


@triton.jit
def execute_at_pixels(
    state, coef, flags, row, model, uncond, guidance, seed, chain, draw, noise, net_in, scales, source, squares,
    chains, n, rows, pixels, b, exists, s,
    R: tl.constexpr, HALVES: tl.constexpr, MISSING: tl.constexpr, CHANNELS: tl.constexpr, WHOLE: tl.constexpr,
    MODEL_LAST: tl.constexpr, NET_LAST: tl.constexpr, LONG: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """Execute the row of the chain ``b`` (LONG), or of chains ``[P, 1]``, on the tile's blocks ``s``, ``[P, 1]``."""
    block, i, pixel, channel = places(s, pixels, CHANNELS, WHOLE)
    size = n.to(tl.int64)
    place = pixel * (HALVES * CHANNELS) + channel if MODEL_LAST else i
    behind = CHANNELS if MODEL_LAST else size
    net_place = pixel * CHANNELS + channel if NET_LAST else i
    execute(
        state, coef, flags, row, model, uncond, guidance, seed, chain, draw, noise, net_in, scales, source, squares,
        rows, chains * size, size, b, exists, b.to(tl.int64) * size, i, place, behind, net_place, block,
        exists & (4 * s + tl.arange(0, 4)[None, :] < n),
        R, HALVES, MISSING, False, LONG, False, SHIFT,
    )  # fmt: skip


@triton.jit(do_not_specialize=["chains", "n", "rows", "pixels"], do_not_specialize_on_alignment=PER_CHAIN)
def step_pixels_long(
    state, coef, flags, row, model, uncond, guidance, seed, chain, draw, noise, net_in, scales, source, squares,
    chains, n, rows, pixels,
    R: tl.constexpr, HALVES: tl.constexpr, MISSING: tl.constexpr, ALIGNED: tl.constexpr, CHANNELS: tl.constexpr,
    WHOLE: tl.constexpr, MODEL_LAST: tl.constexpr, NET_LAST: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Grid as :func:`ulam_kernels.triton.step.step_long`."""
    if ALIGNED:
        n = n // 8 * 8  # says to the compiler that 16-byte accesses are aligned
    b = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    exists = b < chains
    s = tl.program_id(0) * (TILE // 4) + tl.arange(0, TILE // 4)[:, None]
    execute_at_pixels(
        state, coef, flags, row, model, uncond, guidance, seed, chain, draw, noise, net_in, scales, source, squares,
        chains, n, rows, pixels, b, exists, s, R, HALVES, MISSING, CHANNELS, WHOLE, MODEL_LAST, NET_LAST, True, 0,
    )  # fmt: skip


@triton.jit(do_not_specialize=["chains", "n", "rows", "shift", "pixels"], do_not_specialize_on_alignment=PER_CHAIN)
def step_pixels_short(
    state, coef, flags, row, model, uncond, guidance, seed, chain, draw, noise, net_in, scales, source, squares,
    chains, n, rows, shift, pixels,
    R: tl.constexpr, HALVES: tl.constexpr, MISSING: tl.constexpr, ALIGNED: tl.constexpr, CHANNELS: tl.constexpr,
    WHOLE: tl.constexpr, MODEL_LAST: tl.constexpr, NET_LAST: tl.constexpr, BLOCKS: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """Grid as :func:`ulam_kernels.triton.step.step_short`."""
    if ALIGNED:
        n = n // 8 * 8
    p = tl.arange(0, BLOCKS)[:, None]
    b = tl.program_id(0) * (BLOCKS >> shift) + (p >> shift)
    s = p & ((1 << shift) - 1)
    exists = b < chains
    execute_at_pixels(
        state, coef, flags, row, model, uncond, guidance, seed, chain, draw, noise, net_in, scales, source, squares,
        chains, n, rows, pixels, b, exists, s, R, HALVES, MISSING, CHANNELS, WHOLE, MODEL_LAST, NET_LAST, False, SHIFT,
    )  # fmt: skip


def launch_pixels(
    tensors: tuple[torch.Tensor | None, ...], halves: int, missing: int, model_last: bool, net_last: bool
) -> None:
    """Launch the step of ``tensors``, in the order of its arguments."""
    state, _, flags = tensors[:3]
    assert state is not None and flags is not None
    registers, chains, channels = state.shape[:3]
    n = elements_per_chain(state[0])
    pixels = n // channels
    options = {
        "R": registers, "HALVES": halves, "MISSING": missing, "ALIGNED": n % 8 == 0, "CHANNELS": channels,
        "WHOLE": pixels % 4 == 0, "MODEL_LAST": model_last, "NET_LAST": net_last,
    }  # fmt: skip
    if torch.version.hip is None:
        options["maxnreg"] = 255  # all there are: without being told so the assembler keeps a word in local memory
    if n > LONGEST_SHORT:
        step_pixels_long[long_grid(chains, n)](
            *tensors, chains, n, flags.shape[0], pixels, TILE=TILE, **options, **long_options(registers)
        )
    else:
        shift = blocks_shift(n)
        step_pixels_short[short_grid(chains, shift)](
            *tensors,
            chains,
            n,
            flags.shape[0],
            shift,
            pixels,
            BLOCKS=BLOCKS,
            SHIFT=shift if tensors[-1] is not None else 0,
            **options,
            **short_options(),
        )
