"""D before any clip, and its order statistics, found from the top bit down: see ``reduce``."""
# ruff: noqa: RUF005 (Triton knows no unpacking)
# mypy: disable-error-code="assignment, no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from ulam_kernels.triton.row import guide, unclipped_x0

DIGITS = 4  # of 31 bits: three of eight, and the last seven
BINS = tl.constexpr(256)
# What is counted of a chain, from 0 on: the bins of each digit, then the least number above those that have all digits
# but the last, its 31 bits inverted, then the largest number.
ABOVE = tl.constexpr(DIGITS * 256)
MOST = tl.constexpr(DIGITS * 256 + 1)
WORDS = tl.constexpr(DIGITS * 256 + 2)
LARGEST = tl.constexpr(0x7FFFFFFF)
INFINITY_BITS = tl.constexpr(0x7F800000)


@triton.jit
def tile_of_x0(state, model, uncond, kx, km, w, reads_m, base, i, mask, HALVES: tl.constexpr):
    """D before any clip: of one chain's elements ``i``, or of a tile ``[chains, i]`` where kx has that shape."""
    LONG: tl.constexpr = len(kx.shape) == 0
    x = tl.load(state + base + i, mask=mask & (kx != 0), other=0.0).to(tl.float32)
    m = x  # not read by any row where there is no model
    if uncond is not None:
        other = tl.load(uncond + HALVES * base + i, mask=mask & reads_m & (w != 1), other=0.0).to(tl.float32)
        cond = tl.load(model + HALVES * base + i, mask=mask & reads_m & (w != 0), other=0.0).to(tl.float32)
        m = guide(cond, other, w, LONG)
    elif model is not None:
        m = tl.load(model + HALVES * base + i, mask=mask & reads_m, other=0.0).to(tl.float32)
    return unclipped_x0(kx, km, x, m, LONG)


@triton.jit
def tile_of_magnitudes(state, model, uncond, kx, km, w, reads_m, base, i, n, HALVES: tl.constexpr):
    """The bits of |D|, which order like the numbers; beyond the chain the largest there are."""
    d = tile_of_x0(state, model, uncond, kx, km, w, reads_m, base, i, i < n, HALVES)
    return tl.where(i < n, d.to(tl.int32, bitcast=True) & LARGEST, LARGEST)


@triton.jit
def rank_of(level, n):
    """Where the quantile lies: a fraction t from order statistic k to the next."""
    position = level.to(tl.float64) * (n - 1).to(tl.float64)
    k = position.to(tl.int32)
    return k, (position - k.to(tl.float64)).to(tl.float32)


@triton.jit
def found_digits(counted, k, digits):
    """(number, rank, count, least) after so many digits: the order statistic's bits so far, its rank among the numbers
    that have them, how many these are; after the last, also the least greater number that differs in it alone."""
    bin = tl.arange(0, BINS)
    number = k ^ k
    count = number
    least = number + LARGEST
    for digit in range(digits):
        counts = tl.load(counted + digit * BINS + bin)
        upto = tl.cumsum(counts, 0)
        found = tl.sum((upto <= k).to(tl.int32), 0)
        shift = tl.maximum(23 - 8 * digit, 0)
        number += found << shift
        k -= tl.max(tl.where(upto <= k, upto, 0), 0)
        count = tl.sum(tl.where(bin == found, counts, 0), 0)
        least = number + tl.min(tl.where((bin > found) & (counts > 0), bin - found, number ^ LARGEST), 0)
    return number, k, count, least


@triton.jit
def bound_of(v, above, repeated, most, t, cap):
    """The bound of a chain with the order statistic ``v``, of the bits of its numbers; ``most``: the largest."""
    a = v.to(tl.float32, bitcast=True)
    b = tl.where(repeated, v, above).to(tl.float32, bitcast=True)
    between = tl.fma(t, b - a, a)
    s = tl.where((t != 0) & (a != b), between, a)
    s = tl.where(s < 1, 1.0, s)
    s = tl.where(s > cap, cap, s)
    return tl.where(most > INFINITY_BITS, float("nan"), s)


@triton.jit
def threshold_of(
    state, model, uncond, counted, kx, km, w, reads_m, level, cap, base, n,
    HALVES: tl.constexpr, TILE: tl.constexpr, HELD: tl.constexpr, DIGITS: tl.constexpr,
):  # fmt: skip
    """s of dynamic thresholding: Saharia et al. 2022, section 2.3."""
    k, t = rank_of(level, n)
    if HELD > 0:
        # The order statistic k is the largest v with at most k numbers below it.
        v = k ^ k
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
        reached = tl.zeros([TILE], tl.int32)
        over = tl.full([TILE], LARGEST, tl.int32)
        number = tl.zeros([TILE], tl.int32)
        for u in tl.static_range(HELD):
            inside = u * TILE + tl.arange(0, TILE) < n
            reached += (tiles[u] <= v).to(tl.int32)
            over = tl.minimum(over, tl.where(tiles[u] > v, tiles[u], LARGEST))
            number = tl.maximum(number, tl.where(inside, tiles[u], 0))
        repeated = k + 1 < tl.sum(reached, 0)
        above = tl.min(over, 0)
        most = tl.max(number, 0)
    else:
        v, rank, count, least = found_digits(counted, k, DIGITS)
        repeated = rank + 1 < count
        above = tl.minimum(least, tl.load(counted + ABOVE) ^ LARGEST)
        most = tl.load(counted + MOST)
    return bound_of(v, above, repeated | (k + 1 >= n), most, t, cap)


@triton.jit
def bounds_of_rows(bits, level, cap, n, inside):
    """:func:`threshold_of` of each chain of a tile of magnitudes ``[chains, numbers]``."""
    k, t = rank_of(level, n)
    v = k ^ k
    for step in range(31):
        candidate = v | ((v ^ v) + 1 << (30 - step))
        below = (bits - candidate[:, None]).to(tl.uint32, bitcast=True) >> 31
        v = tl.where(tl.sum(below.to(tl.int32, bitcast=True), 1) <= k, candidate, v)
    reached = tl.sum((bits <= v[:, None]).to(tl.int32), 1)
    above = tl.min(tl.where(bits > v[:, None], bits, LARGEST), 1)
    most = tl.max(tl.where(inside, bits, 0), 1)
    return bound_of(v, above, (k + 1 < reached) | (k + 1 >= n), most, t, cap)
