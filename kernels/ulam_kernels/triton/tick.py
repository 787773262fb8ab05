"""The operations around the fused step in a tick, in Triton: the look-up of times, and the check and count of rows.

A long chain is shared among programs, which add to its ``parts`` when they have looked: one to the low half, and one to
the high half on something that is not finite. The last to add sets parts to 0 again and counts on. A program holds many
short chains, and needs no counter.
"""
# mypy: disable-error-code="assignment, no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ulam_kernels.triton.launch import LONGEST_SHORT, MAX_GRID_Y, elements_per_chain, on_device

TILE = 2048  # elements of a long chain that a program checks at once
SHORT_TILE = 1024  # and of short chains
CHAINS = 256  # of a program of the look-up
WIDTHS = (2, 16, 128, LONGEST_SHORT)  # room for a short chain in a tile
ENOUGH_PROGRAMS, MOST_TILES = 4096, 16  # a program looks at several tiles where there are programs enough
OPTIONS = {"num_warps": 4}

# Read one number at a time: slices of them, at whatever address, must not compile the kernel again.
PER_CHAIN = ["cursor", "now", "guidance"]
SIZES = ["chains", "n", "model_stride", "uncond_stride"]


@triton.jit
def magnitude(x):
    """The exponent's word of each number without its sign, in 32 bits: larger the larger the exponent is."""
    if x.dtype == tl.float64:
        bits = (x.to(tl.int64, bitcast=True) >> 32).to(tl.int32) & 0x7FFFFFFF
    elif x.dtype == tl.float32:
        bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    else:
        bits = x.to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF
    return bits


@triton.jit
def beyond(worst, like):
    """Whether such a word is of a number that is not finite; ``like`` has the type of the numbers."""
    if like.dtype.element_ty == tl.float64:
        limit = 0x7FF00000
    elif like.dtype.element_ty == tl.float32:
        limit = 0x7F800000
    elif like.dtype.element_ty == tl.bfloat16:
        limit = 0x7F80
    else:
        limit = 0x7C00
    return worst >= limit


@triton.jit
def part_fails(output, base, first, last, reads, TILE: tl.constexpr):
    """Whether something from element ``first`` to ``last`` of a chain is not finite; False where it is not read."""
    worst = tl.zeros([TILE], tl.int32)
    for start in range(first, last, TILE):
        i = start + tl.arange(0, TILE)
        x = tl.load(output + base + i, mask=(i < last) & reads, other=0.0)
        worst = tl.maximum(worst, magnitude(x))
    return beyond(tl.max(worst, 0), output)


@triton.jit
def go_on(cursor, now, c, chains, row, draw, row_advance, draw_advance, fails, writes):
    """Write what becomes of a chain, or of several."""
    stops = fails & (row != 0)
    idle = row ^ row
    tl.store(now + c, tl.where(stops, idle, row), mask=writes)
    tl.store(now + chains + c, draw, mask=writes)
    tl.store(cursor + c, tl.where(stops, idle, row + row_advance), mask=writes)
    tl.store(cursor + chains + c, tl.where(stops, draw, draw + draw_advance), mask=writes)
    tl.store(cursor + 2 * chains + c, idle, mask=writes & stops)
    tl.store(cursor + 3 * chains + c, idle, mask=writes & stops)
    tl.store(cursor + 4 * chains + c, row, mask=writes & stops)


@triton.jit(do_not_specialize=[*SIZES, "span"], do_not_specialize_on_alignment=PER_CHAIN)
def advance_long(
    cursor, now, model, uncond, guidance,  # as ulam_kernels.advance has them, the chains' elements together
    chains, n, model_stride, uncond_stride, span,
    ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Grid (parts of ``span`` elements, chains in y, y slices)."""
    if ALIGNED:  # says to the compiler that 16-byte accesses are aligned
        model_stride = model_stride // 8 * 8
        uncond_stride = uncond_stride // 8 * 8
        span = span // 8 * 8
        n = n // 8 * 8
    c = tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    exists = c < chains
    chains = chains.to(tl.int64)
    row = tl.load(cursor + c, mask=exists, other=0)
    draw = tl.load(cursor + chains + c, mask=exists, other=0)
    row_advance = tl.load(cursor + 2 * chains + c, mask=exists, other=0)
    draw_advance = tl.load(cursor + 3 * chains + c, mask=exists, other=0)
    first = tl.program_id(0).to(tl.int64) * span
    last = tl.minimum(first + span, n)
    fails = part_fails(model, c * model_stride, first, last, exists, TILE)
    if uncond is not None:
        w = tl.load(guidance + c, mask=exists, other=1.0)
        other = part_fails(uncond, c * uncond_stride, first, last, exists & (w != 1), TILE)
        fails = (fails & (w != 0)) | other
    writes = exists
    if tl.num_programs(0) > 1:
        parts = cursor + 5 * chains + c
        # Those that add later see what this program did before, and it sees what earlier ones did.
        before = tl.atomic_add(parts, (fails.to(tl.int64) << 32) + 1, mask=exists, sem="acq_rel", scope="gpu")
        writes = exists & (before.to(tl.int32) == tl.num_programs(0) - 1)
        fails = fails | ((before >> 32) != 0)
        tl.store(parts, row ^ row, mask=writes)
    go_on(cursor, now, c, chains, row, draw, row_advance, draw_advance, fails, writes)


@triton.jit
def advance_tile(
    cursor, now, model, uncond, guidance, c, chains, n, model_stride, uncond_stride, WIDTH: tl.constexpr
):  # fmt: skip
    """Short chains ``c``, in a row, WIDTH elements each at most."""
    exists = c < chains
    chains = chains.to(tl.int64)
    row = tl.load(cursor + c, mask=exists, other=0)
    draw = tl.load(cursor + chains + c, mask=exists, other=0)
    row_advance = tl.load(cursor + 2 * chains + c, mask=exists, other=0)
    draw_advance = tl.load(cursor + 3 * chains + c, mask=exists, other=0)
    fails = row != row
    if model is not None:
        i = tl.arange(0, WIDTH)[None, :]
        inside = exists[:, None] & (i < n)
        x = tl.load(model + c[:, None] * model_stride + i, mask=inside, other=0.0)
        fails = beyond(tl.max(magnitude(x), 1), model)
        if uncond is not None:
            w = tl.load(guidance + c, mask=exists, other=1.0)
            x = tl.load(uncond + c[:, None] * uncond_stride + i, mask=inside, other=0.0)
            other = beyond(tl.max(magnitude(x), 1), uncond)
            fails = (fails & (w != 0)) | (other & (w != 1))
    go_on(cursor, now, c, chains, row, draw, row_advance, draw_advance, fails, exists)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=PER_CHAIN)
def advance_short(
    cursor, now, model, uncond, guidance,
    chains, n, model_stride, uncond_stride,
    ALIGNED: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of TILE / WIDTH chains)."""
    if ALIGNED:
        model_stride = model_stride // 8 * 8
        uncond_stride = uncond_stride // 8 * 8
        n = n // 8 * 8
    c = tl.program_id(0).to(tl.int64) * (TILE // WIDTH) + tl.arange(0, TILE // WIDTH)
    advance_tile(cursor, now, model, uncond, guidance, c, chains, n, model_stride, uncond_stride, WIDTH)


@triton.jit(do_not_specialize=["chains", "rows"],
            do_not_specialize_on_alignment=["times", "row", "out", "guidance", "interval", "weight"])  # fmt: skip
def look_up_times(times, row, out, guidance, interval, weight, chains, rows, CHAINS: tl.constexpr):
    """Grid (CHAINS chains each)."""
    c = tl.program_id(0).to(tl.int64) * CHAINS + tl.arange(0, CHAINS)
    exists = c < chains
    index = tl.load(row + c, mask=exists, other=0)
    inside = exists & (index >= 0) & (index < rows)
    if times.dtype.element_ty == tl.int64:
        t = tl.load(times + index, mask=inside, other=-1)
    else:
        t = tl.load(times + index, mask=inside, other=float("nan"))
    tl.store(out + c, t, mask=exists)
    if weight is not None:
        first = tl.load(interval + c, mask=exists, other=0.0)
        last = tl.load(interval + chains.to(tl.int64) + c, mask=exists, other=0.0)
        w = tl.load(guidance + c, mask=exists, other=1.0)
        told = t.to(tl.float32)
        tl.store(weight + c, tl.where(inside & (told >= first) & (told <= last), w, 1.0), mask=exists)


def long_parts(chains: int, n: int) -> tuple[int, int]:
    """(parts of a long chain, elements of each): enough parts for a GPU, and no more."""
    tiles = -(-n // TILE)
    each = min(-(-chains * tiles // ENOUGH_PROGRAMS), MOST_TILES)
    parts = -(-tiles // each)
    return parts, -(-tiles // parts) * TILE


def advance(
    cursor: torch.Tensor,
    now: torch.Tensor,
    model: torch.Tensor | None,
    uncond: torch.Tensor | None,
    guidance: torch.Tensor | None,
) -> None:
    """Stop the chains whose outputs are not finite, and let the others go on: see :func:`ulam_kernels.advance`."""
    chains = cursor.shape[1]
    n = 0 if model is None else elements_per_chain(model)
    strides = [n if output is None or chains < 2 else output.stride(0) for output in (model, uncond)]
    aligned = not any(size % 8 for size in (n, *strides))
    arguments = (cursor, now, model, uncond, guidance, chains, n, *strides)
    with on_device(cursor):
        if n > LONGEST_SHORT:
            parts, span = long_parts(chains, n)
            slices = -(-chains // MAX_GRID_Y)
            grid = (parts, -(-chains // slices), slices)
            advance_long[grid](*arguments, span, ALIGNED=aligned, TILE=TILE, **OPTIONS)
        else:
            width = next(width for width in WIDTHS if n <= width)
            grid = (-(-chains // (SHORT_TILE // width)),)
            advance_short[grid](*arguments, ALIGNED=aligned, WIDTH=width, TILE=SHORT_TILE, **OPTIONS)


def look_up(
    times: torch.Tensor,
    row: torch.Tensor,
    out: torch.Tensor,
    guidance: torch.Tensor | None,
    interval: torch.Tensor | None,
    weight: torch.Tensor | None,
) -> None:
    """``out[b] = times[row[b]]``, and ``weight`` where it is given: see :func:`ulam_kernels.look_up`."""
    chains = row.shape[0]
    with on_device(times):
        look_up_times[(-(-chains // CHAINS),)](
            times, row, out, guidance, interval, weight, chains, times.shape[0], CHAINS=CHAINS, **OPTIONS
        )
