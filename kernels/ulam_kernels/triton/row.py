"""The parts of a row in Triton: guidance, the x0 estimate, scaled noise and sums of terms, bit for bit as in
``csrc/include/ulam/row.h``. LONG: of a tile inside one chain, whose coefficients are scalars; see ``execute``."""
# ruff: noqa: SIM108 (Triton knows no conditional expressions of tensors)
# mypy: disable-error-code="assignment, no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from ulam_kernels import table
from ulam_kernels.triton.noise import floats, key_of, normals, polynomial, tile_of_normals

KX = tl.constexpr(table.KX)
KM = tl.constexpr(table.KM)
LO = tl.constexpr(table.LO)
HI = tl.constexpr(table.HI)
LV_M = tl.constexpr(table.LV_M)
LV_B = tl.constexpr(table.LV_B)
C_NEXT = tl.constexpr(table.C_NEXT)
MATRIX = tl.constexpr(table.MATRIX)
READS_M = tl.constexpr(table.READS_M)
READS_Z = tl.constexpr(table.READS_Z)
USES_D = tl.constexpr(table.USES_D)
LEARNED = tl.constexpr(table.LEARNED)
NORMALISE = tl.constexpr(table.NORMALISE)
REDUCED = tl.constexpr(table.THRESHOLD | table.NORMALISE)
WRITES = tl.constexpr((1 << table.MAX_REGISTERS) - 1)

EXP = floats("0x1.6a4d6p-10 0x1.12398ep-7 0x1.5558bp-5 0x1.555492p-3 0x1.fffffcp-2 0x1p+0 0x1p+0")
EXP_SCALE = tl.constexpr(float.fromhex("0x1.715476p+0"))
EXP_SHIFT = tl.constexpr(float.fromhex("0x1.8p+23"))
EXP_HIGH = tl.constexpr(float.fromhex("-0x1.62e4p-1"))
EXP_LOW = tl.constexpr(float.fromhex("-0x1.7f7d1cp-20"))

# Read one number at a time: slices of them, at whatever address, must not compile the kernel again.
PER_CHAIN = ["row", "guidance", "seed", "chain", "draw", "scales", "squares"]


@triton.jit
def splat(x, like):
    """A scalar, ``[P, 1]`` or ``[1, 4]`` tensor in the shape of ``like``."""
    return tl.broadcast_to(x, like.shape)


@triton.jit
def clip(x, lo, hi):
    """``x < lo ? lo : (x > hi ? hi : x)``, so NaN passes."""
    return tl.where(x < lo, lo, tl.where(x > hi, hi, x))


@triton.jit
def exp(x):
    """exp in correctly rounded operations: see ``csrc/include/ulam/elementary.h``."""
    y = clip(x, -86.0, 88.0)
    shift = tl.full(x.shape, EXP_SHIFT, tl.float32)
    t = tl.fma(y, tl.full(x.shape, EXP_SCALE, tl.float32), shift)
    n = t.to(tl.uint32, bitcast=True) - 0x4B400000
    k = t - shift
    r = tl.fma(k, tl.full(x.shape, EXP_HIGH, tl.float32), y)
    r = tl.fma(k, tl.full(x.shape, EXP_LOW, tl.float32), r)
    p = polynomial(r, EXP, 6).to(tl.uint32, bitcast=True) + (n << 23)
    return tl.where(x != x, x, p.to(tl.float32, bitcast=True))


@triton.jit
def any_of(present):
    """Whether one of the tile's chains has it: a uniform condition."""
    if len(present.shape) == 0:
        result = present
    else:
        result = tl.max(present.to(tl.int32)) != 0
    return result


@triton.jit
def add_term(t, a, x, LONG: tl.constexpr):
    """``fma(a, x, t)`` where the coefficient is not 0; else t, whatever x is."""
    if LONG:
        if a != 0:
            t = tl.fma(splat(a, t), x, t)
    else:
        t = tl.where(a != 0, tl.fma(splat(a, t), x, t), t)
    return t


@triton.jit
def empty_sum(some, like):
    """What a sum starts from: -0, since fma(a, x, -0) is mul(a, x) to the sign of zero; +0 if it gets no term."""
    sign = some.to(tl.uint32) << 31  # the literal -0.0 would lose its sign
    return splat(sign.to(tl.float32, bitcast=True), like)


@triton.jit
def guide(cond, uncond, w, LONG: tl.constexpr):
    """``fma(w, cond - uncond, uncond)``, but w = 1 and w = 0 take their side untouched."""
    if LONG:
        m = cond
        if w != 1:
            m = uncond
            if w != 0:
                m = tl.fma(splat(w, cond), cond - uncond, uncond)
    else:
        m = tl.fma(splat(w, cond), cond - uncond, uncond)
        m = tl.where(w == 1, cond, tl.where(w == 0, uncond, m))
    return m


@triton.jit
def unclipped_x0(kx, km, x, m, LONG: tl.constexpr):
    """``fma(km, m, mul(kx, x))``."""
    d = empty_sum((kx != 0) | (km != 0), x)
    d = add_term(d, kx, x, LONG)
    return add_term(d, km, m, LONG)


@triton.jit
def column(c, held, K: tl.constexpr, mask, other):
    """A number of the row: where all of it was asked for at once it is held."""
    if len(held) == 0:
        number = tl.load(c + K, mask=mask, other=other)
    else:
        number = held[K]
    return number


@triton.jit
def bounded_x0(c, columns, chain_scales, kx, flag, x, m, LONG: tl.constexpr):
    """``clip(fma(km, m, mul(kx, x)), lo, hi)``; on a row with a reduction by the chain's own bounds, and scaled."""
    uses = (flag & USES_D) != 0
    d = unclipped_x0(kx, column(c, columns, KM, uses, 0.0), x, m, LONG)
    lo = column(c, columns, LO, uses, 0.0)
    hi = column(c, columns, HI, uses, 0.0)
    if chain_scales is not None:
        reduced = (flag & REDUCED) != 0
        lo = tl.where(reduced, tl.load(chain_scales, mask=reduced, other=0.0), lo)
        hi = tl.where(reduced, tl.load(chain_scales + 1, mask=reduced, other=0.0), hi)
    d = clip(d, splat(lo, d), splat(hi, d))
    if chain_scales is not None:
        d = d * splat(tl.load(chain_scales + 2, mask=reduced, other=1.0), d)
    return d


@triton.jit
def add_x0(t, a, c, columns, chain_scales, kx, flag, x, m, LONG: tl.constexpr):
    """``fma(a, D, t)`` with D of :func:`bounded_x0`, where the coefficient is not 0."""
    if LONG:
        if a != 0:
            t = tl.fma(splat(a, t), bounded_x0(c, columns, chain_scales, kx, flag, x, m, LONG), t)
    else:
        t = add_term(t, a, bounded_x0(c, columns, chain_scales, kx, flag, x, m, LONG), LONG)
    return t


@triton.jit
def scaled_noise(z, c, learned, v):
    """``exp(lv_m v + lv_b) z``."""
    lv_m = tl.load(c + LV_M, mask=learned, other=0.0)
    lv_b = tl.load(c + LV_B, mask=learned, other=0.0)
    return exp(tl.fma(splat(lv_m, z), v, splat(lv_b, z))) * z


@triton.jit
def generated_noise(seed, chain, draw, b, reads, block, like, PAIRS: tl.constexpr, stage=0):
    """noise-v1 in the shape of ``like``. block: ``[P, 1]``, or the first of a long tile's blocks."""
    d = tl.load(draw + b, mask=reads, other=0) + stage
    k0, k1 = key_of(tl.load(seed + b, mask=reads, other=0), d)
    ids = tl.load(chain + b, mask=reads, other=0)
    if len(block.shape) == 0:
        z = tile_of_normals(k0, k1, ids, d, block, like.shape[0], PAIRS)
    else:
        z = normals(k0, k1, ids, d, block)
    return tl.reshape(z, like.shape)
