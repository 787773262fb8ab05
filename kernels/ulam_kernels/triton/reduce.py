"""Per-chain reductions in Triton: the quantile of |D|, and the norms of D and z.

The order statistics are found from the top bit down. A chain of up to 16,384 elements is read once: its program, which
has many chains of up to 32, holds the bits of |D| in registers and settles a bit by counting those below it. Triton has
neither shared memory of its own nor programs that wait for one another, so a longer chain is read in four launches, by
a program for each 4,096 elements: a launch counts the digits of eight bits that follow those found before. The CUDA
backend holds and shares such chains. Sums of squares keep the lanes of the contract, and halve them in its order; one
program adds a chain's, and reads its elements once at any length. The bits are those of
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
from ulam_kernels.triton.quantile import (
    ABOVE,
    BINS,
    DIGITS,
    LARGEST,
    MOST,
    WORDS,
    bounds_of_rows,
    found_digits,
    rank_of,
    threshold_of,
    tile_of_magnitudes,
    tile_of_x0,
)
from ulam_kernels.triton.row import (
    HI,
    KM,
    KX,
    LO,
    NORMALISE,
    READS_M,
    READS_Z,
    REDUCED,
    any_of,
    generated_noise,
)
from ulam_kernels.triton.sums import LANES, shape_of, sum_of_lanes, sum_of_rows

THRESHOLD = tl.constexpr(table.THRESHOLD)
FEW = (4, 32)  # numbers of a chain, of which a program has many chains
NUMBERS = 1024  # of all of them
HELD_TILES = (1, 4, 16)  # of LANES elements, which a program can have in registers
SLICE = 4096  # elements of a longer one in a program that counts digits

# Read one number at a time: slices of them, at whatever address, must not compile the kernel again.
PER_CHAIN = ["row", "guidance", "seed", "chain", "draw"]


@triton.jit
def row_of(coef, flags, row, b, exists, rows, width, MISSING: tl.constexpr):
    """(usable, its reduction's flags, its coefficients, kx, km, whether it reads m) of the row that a chain is at."""
    at = tl.load(row + b, mask=exists, other=-1)
    usable = (at >= 0) & (at < rows)
    flag = tl.load(flags + at, mask=usable, other=0)
    reduced = usable & ((flag & REDUCED) != 0)
    c = coef + at * width
    kx = tl.load(c + KX, mask=reduced, other=0.0)
    km = tl.load(c + KM, mask=reduced, other=0.0)
    reads = tl.where(km != 0, READS_M, 0) | tl.where((flag & NORMALISE) != 0, READS_Z, 0)
    usable = usable & (((flag & reads) & MISSING) == 0)
    return usable, tl.where(reduced & usable, flag & REDUCED, 0), c, kx, km, km != 0


@triton.jit(do_not_specialize=["n", "rows", "width", "digit", "slices"], do_not_specialize_on_alignment=PER_CHAIN)
def count_digit(
    state, coef, flags, row, model, uncond, guidance, counted,
    n, rows, width, digit, slices,
    HALVES: tl.constexpr, MISSING: tl.constexpr, ALIGNED: tl.constexpr, SLICE: tl.constexpr, DIGITS: tl.constexpr,
):  # fmt: skip
    """Grid (chains * slices). Counts a digit of the numbers that have the digits found before it."""
    if ALIGNED:
        n = n // 8 * 8  # says to the compiler that 16-byte accesses are aligned
    b = tl.program_id(0) // slices
    _, flag, c, kx, km, reads_m = row_of(coef, flags, row, b, True, rows, width, MISSING)
    if (flag & THRESHOLD) != 0:
        w = kx  # not read where there is no guidance
        if uncond is not None:
            w = tl.load(guidance + b)
        i = tl.program_id(0) % slices * SLICE + tl.arange(0, SLICE)
        base = b.to(tl.int64) * n
        bits = tile_of_magnitudes(state, model, uncond, kx, km, w, reads_m, base, i, n, HALVES)
        own = counted + b.to(tl.int64) * WORDS
        off = bits - found_digits(own, rank_of(tl.load(c + LO), n)[0], digit)[0]
        has = (i < n) & (off.to(tl.uint32, bitcast=True) >> (31 - 8 * digit) == 0)
        counts = tl.histogram(tl.where(has, off >> tl.maximum(23 - 8 * digit, 0), 0), BINS, mask=has)
        tl.atomic_add(own + digit * BINS + tl.arange(0, BINS), counts, mask=counts > 0, sem="relaxed")
        if digit == DIGITS - 1:
            above = (i < n) & (off >= 1 << (31 - 8 * digit))
            tl.atomic_max(own + ABOVE, tl.max(tl.where(above, bits ^ LARGEST, 0), 0), sem="relaxed")
            tl.atomic_max(own + MOST, tl.max(tl.where(i < n, bits, 0), 0), sem="relaxed")


@triton.jit
def reduce_tile(
    state, coef, flags, row, model, uncond, guidance, seed, chain, draw, noise, out, b, exists, n, rows, width,
    HALVES: tl.constexpr, MISSING: tl.constexpr, CHAINS: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """CHAINS chains ``b``, of PLACES numbers each at most."""
    usable, flag, c, kx, km, reads_m = row_of(coef, flags, row, b, exists, rows, width, MISSING)
    w = kx  # not read where there is no guidance
    if uncond is not None:
        w = tl.load(guidance + b, mask=exists, other=0.0)
    i = tl.arange(0, PLACES)[None, :]
    base = b.to(tl.int64)[:, None] * n
    inside = (flag != 0)[:, None] & (i < n)
    d = tile_of_x0(
        state, model, uncond, kx[:, None], km[:, None], w[:, None], reads_m[:, None], base, i, inside, HALVES
    )
    first = (flag & THRESHOLD) != 0
    second = (flag & (THRESHOLD | NORMALISE)) == NORMALISE

    bound = tl.full([CHAINS], float("inf"), tl.float32)
    x0_scale = tl.full([CHAINS], 1.0, tl.float32)
    z_scale = tl.full([CHAINS], 1.0, tl.float32)
    if any_of(first):
        bits = tl.where(inside, d.to(tl.int32, bitcast=True) & LARGEST, LARGEST)
        level = tl.load(c + LO, mask=first, other=0.0)
        found = bounds_of_rows(bits, level, tl.load(c + HI, mask=first, other=0.0), n, inside)
        bound = tl.where(first, found, bound)
        x0_scale = tl.where(first, tl.div_rn(x0_scale, tl.where(first, found, 1.0)), x0_scale)
    if any_of(second):
        z = tl.zeros([CHAINS, PLACES], tl.float32)
        asked = inside & second[:, None]
        if noise is not None:
            z = tl.load(noise + base + i, mask=asked, other=0.0)
        elif seed is not None:
            quad = tl.arange(0, PLACES // 4)[None, :]
            z = generated_noise(seed, chain, draw, b[:, None], second[:, None], quad, z, False)
        wide = tl.where(asked, d, 0.0).to(tl.float64)
        wide_z = tl.where(asked, z, 0.0).to(tl.float64)
        divisor = sum_of_rows(wide * wide, CHAINS, PLACES)
        g = sum_of_rows(wide_z * wide_z, CHAINS, PLACES) / tl.where(divisor == 0, 1.0, divisor)
        g = tl.where(divisor == 0, 0.0, g)
        x0_scale = tl.where(second, g.to(tl.float32), x0_scale)
        z_scale = tl.where(second, tl.sqrt(g).to(tl.float32), z_scale)
    scales = tl.reshape(tl.join(tl.join(-bound, x0_scale), tl.join(bound, z_scale)), [CHAINS, 4])
    scales = tl.where(usable[:, None], scales, float("nan"))
    tl.store(out + 4 * b.to(tl.int64)[:, None] + tl.arange(0, 4)[None, :], scales, mask=exists[:, None])


@triton.jit(do_not_specialize=["chains", "n", "rows", "width"], do_not_specialize_on_alignment=PER_CHAIN)
def reduce_chains(
    state, coef, flags, row, model, uncond, guidance, seed, chain, draw, noise, out,
    chains, n, rows, width,
    HALVES: tl.constexpr, MISSING: tl.constexpr, ALIGNED: tl.constexpr, CHAINS: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """Grid (groups of CHAINS chains, PLACES numbers each, at most that many of them used)."""
    if ALIGNED:
        n = n // 8 * 8  # says to the compiler that 16-byte accesses are aligned
    b = tl.program_id(0) * CHAINS + tl.arange(0, CHAINS)
    reduce_tile(
        state, coef, flags, row, model, uncond, guidance, seed, chain, draw, noise, out, b, b < chains, n, rows, width,
        HALVES, MISSING, CHAINS, PLACES,
    )  # fmt: skip


@triton.jit(do_not_specialize=["n", "rows", "width"], do_not_specialize_on_alignment=PER_CHAIN)
def reduce_chain(
    state, coef, flags, row, model, uncond, guidance, seed, chain, draw, noise, counted, out,
    n, rows, width,
    HALVES: tl.constexpr, MISSING: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr, HELD: tl.constexpr,
    UNROLL: tl.constexpr, DIGITS: tl.constexpr,
):  # fmt: skip
    """Grid (chains). HELD: tiles that hold any chain, 0 where none do: then count_digit has counted all digits."""
    if ALIGNED:
        n = n // 8 * 8  # says to the compiler that 16-byte accesses are aligned
    b = tl.program_id(0)
    usable, flag, c, kx, km, reads_m = row_of(coef, flags, row, b, True, rows, width, MISSING)
    base = b.to(tl.int64) * n
    w = kx  # not read where there is no guidance
    if uncond is not None:
        w = tl.load(guidance + b)

    bound = float("inf")
    x0_scale = 1.0
    z_scale = 1.0
    if (flag & THRESHOLD) != 0:
        own = counted
        if counted is not None:
            own = counted + b.to(tl.int64) * WORDS
        bound = threshold_of(
            state, model, uncond, own, kx, km, w, reads_m, tl.load(c + LO), tl.load(c + HI), base, n,
            HALVES, TILE, HELD, DIGITS,
        )  # fmt: skip
        x0_scale = tl.div_rn(1.0, bound)
    elif flag != 0:
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
                    z = tl.where(i < n, generated_noise(seed, chain, draw, b, flag != 0, quad, z, False), 0.0)
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


def places_of(n: int) -> int:
    """The numbers of a chain in a program that has many chains, 0 where it is longer."""
    return next((places for places in FEW if n <= places), 0)


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
    ids, held, sizes = (seed, chain, draw, noise), held_tiles(n), (n, flags.shape[0], coef.shape[1])
    tensors, counted = (state, coef, flags, row, model, uncond, guidance), None
    options = {"HALVES": halves, "MISSING": missing}
    with on_device(state):
        if places := places_of(n):
            reduce_chains[(-(-chains * places // NUMBERS),)](
                *tensors, *ids, out, chains, *sizes, CHAINS=NUMBERS // places, PLACES=places, ALIGNED=n % 8 == 0,
                num_warps=4, **options, **EXACT,
            )  # fmt: skip
            return
        if held == 0:
            slices = -(-n // SLICE)
            counted = torch.zeros(chains, WORDS.value, dtype=torch.int32, device=state.device)
            for digit in range(DIGITS):
                count_digit[(chains * slices,)](
                    *tensors, counted, *sizes, digit, slices,
                    SLICE=SLICE, DIGITS=DIGITS, ALIGNED=n % 8 == 0, num_warps=8, **options, **EXACT,
                )  # fmt: skip
        shape = shape_of(n) | ({"num_warps": 16} if held == HELD_TILES[-1] else {})  # 32 numbers a thread
        reduce_chain[(chains,)](*tensors, *ids, counted, out, *sizes, HELD=held, DIGITS=DIGITS, **options, **shape)
