"""Sums of the squares of a tile's noise, in Triton: see :mod:`ulam_kernels.squares`.

A float is rounded to a whole number, halves to even ones, by adding 2^23, where its neighbours are whole numbers, and
taking it away; from 2^23 on it is one already.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from ulam_kernels.squares import LIMIT as _LIMIT
from ulam_kernels.squares import SQUARES_PER_UNIT
from ulam_kernels.triton.noise import key_of, normals
from ulam_kernels.triton.row import any_of

SCALE = tl.constexpr(float(SQUARES_PER_UNIT))
LIMIT = tl.constexpr(_LIMIT)
WHOLE = tl.constexpr(float(2**23))


@triton.jit
def square_terms(z):
    """``rint(2^20 z^2)``, of z^2 rounded to fp32, as uint32; for z below LIMIT in size."""
    x = z * (z * SCALE)
    rounded = (x + WHOLE) - WHOLE
    return tl.where(x < WHOLE, rounded, x).to(tl.uint32)


@triton.jit
def with_squares(k0, k1, chain, draw, block, size):
    """The normals of blocks, as of :func:`ulam_kernels.triton.noise.normals`, and the sum of each block's terms.

    size: of the chain, whose last block may have fewer than four elements.
    """
    z = normals(k0, k1, chain, draw, block)
    even, odd = tl.split(z)  # of the pairs in its last axis; then of those in the one before
    z0, z2 = tl.split(even)
    z1, z3 = tl.split(odd)
    i = 4 * block
    sums = tl.where(i < size, square_terms(z0), 0) + tl.where(i + 1 < size, square_terms(z1), 0)
    sums += tl.where(i + 2 < size, square_terms(z2), 0) + tl.where(i + 3 < size, square_terms(z3), 0)
    return z, sums


@triton.jit
def noise_with_squares(ids, block, size, mask, PAIRS: tl.constexpr):
    """Generated noise in the shape of ``mask``, and sums of terms that hold 32 bits. block, PAIRS: as `execute` has.

    In one dimension the terms are made beside the noise: a reshaped tile's would be dealt out anew to be added.
    """
    k0, k1 = key_of(ids[0], ids[2])
    if len(block.shape) != 0:
        z = tl.reshape(normals(k0, k1, ids[1], ids[2], block), mask.shape)
        sums = tl.sum(tl.where(mask, square_terms(z), 0), 1, keep_dims=True)
    elif PAIRS:
        even = block + 2 * tl.arange(0, mask.shape[0] // 8)
        first, sums = with_squares(k0, k1, ids[1], ids[2], even, size)
        second, others = with_squares(k0, k1, ids[1], ids[2], even + 1, size)
        z = tl.reshape(tl.permute(tl.join(first, second), 0, 3, 1, 2), mask.shape)
        sums += others
    else:
        z, sums = with_squares(k0, k1, ids[1], ids[2], block + tl.arange(0, mask.shape[0] // 4), size)
        z = tl.reshape(z, mask.shape)
    return z, sums


@triton.jit
def add_to_chain(total, sums, failed):
    """Add the sums of a tile, each below 2^32, to one chain's number, which other tiles may add to.

    Halves of them go through reductions of 32 bits: one of 64 would move twice as much.
    """
    low = tl.sum(sums & 0xFFFF).to(tl.int64)
    tl.atomic_add(total, low + (tl.sum(sums >> 16).to(tl.int64) << 16), sem="relaxed")
    if failed is not None:
        tl.atomic_or(total, (low * 0 + 1) << 63, mask=tl.max(failed) != 0, sem="relaxed")


@triton.jit
def add_to_chains(squares, sums, failed, b, reads, SHIFT: tl.constexpr):
    """Add the sums of each line of a tile of short chains ``b``, 2^SHIFT lines each, to their numbers. ``[P, 1]``."""
    EACH: tl.constexpr = 1 << SHIFT
    CHAINS: tl.constexpr = b.shape[0] >> SHIFT
    read = tl.max(tl.reshape(reads.to(tl.int32), [CHAINS, EACH]), 1) != 0
    at = squares + tl.max(tl.reshape(b, [CHAINS, EACH]), 1)
    total = tl.load(at, mask=read, other=0) + tl.sum(tl.reshape(sums.to(tl.int64), [CHAINS, EACH]), 1)
    if failed is not None:
        bad = tl.max(tl.reshape(failed, [CHAINS, EACH]), 1) != 0
        total = tl.where(bad, total | ((total * 0 + 1) << 63), total)
    tl.store(at, total, mask=read)


@triton.jit
def recorded_noise(
    squares, noise, ids, b, at, block, size, mask, reads, PAIRS: tl.constexpr, LONG: tl.constexpr, SHIFT: tl.constexpr
):  # fmt: skip
    """A tile's z, whose squares are added to the numbers of its chains.

    ids: seed, chain and draw of the noise, where it is not given. mask: which elements there are of those chains whose
    rows read noise, ``reads``; the rest as :func:`ulam_kernels.triton.execute.execute` has.
    """
    z = tl.zeros(mask.shape, tl.float32)
    if any_of(reads):
        failed = None
        if noise is not None:
            z = tl.load(noise + at, mask=mask)
            inside = mask & (tl.abs(z) < LIMIT)  # NaN is not
            sums = tl.where(inside, square_terms(tl.where(inside, z, 0.0)), 0)
            failed = (mask != inside).to(tl.int32)
            if not LONG:
                sums = tl.sum(sums, 1, keep_dims=True)
                failed = tl.max(failed, 1, keep_dims=True)
        else:
            z, sums = noise_with_squares(ids, block, size, mask, PAIRS)
        if LONG:
            add_to_chain(squares + b, sums, failed)
        else:
            add_to_chains(squares, sums, failed, b, reads, SHIFT)
    return z
