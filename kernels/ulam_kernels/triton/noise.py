"""noise-v1 in Triton: Philox4x32-10 words, turned into normals by Box-Muller with fixed polynomials.

The counterpart of ``csrc/include/ulam/noise.h``, operation for operation: every ``fma`` is explicit, no other product
is added to anything, and only correctly rounded fp32 operations are used, so the bits are those of every other
backend. Arguments that are the same for a whole chain may be scalars; what depends on them alone stays scalar.

Sources: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (2011); Box and Muller (1958).
"""
# ruff: noqa: SIM108 (Triton knows no conditional expression of tensors)
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


def floats(hexadecimal: str) -> tl.constexpr:
    """Exact constants for a kernel."""
    return tl.constexpr(tuple(float.fromhex(number) for number in hexadecimal.split()))


REKEY_COUNTER = tl.constexpr(0xF0000000)
LOG_SCALE = tl.constexpr(float.fromhex("-0x1.62e43p-23"))  # -ln(2) 2^-23
UNIFORM_SCALE = tl.constexpr(float.fromhex("0x1.fffffep-33"))
UNIFORM_OFFSET = tl.constexpr(float.fromhex("0x1p-33"))
ANGLE_SCALE = tl.constexpr(float.fromhex("0x1p-31"))

# Polynomials, highest power first.
RADIUS = floats(
    "-0x1.1f28p-2 0x1.3b0c5cp-2 -0x1.1ea89ap-2 0x1.5038p-2 -0x1.99d3bp-2 0x1.00144ep-1 -0x1.5554fcp-1 0x1.ffffd6p-1"
    " -0x1p+1"
)
SINE = floats("0x1.3912a8p-13 -0x1.31fbf4p-8 0x1.466504p-4 -0x1.4abba2p-1 0x1.921fb4p+0")
COSINE = floats("-0x1.889fc6p-16 0x1.e0a1e2p-11 -0x1.55cd26p-6 0x1.03c1d4p-2 -0x1.3bd3ccp+0 0x1p+0")


@triton.jit
def polynomial(x, COEFFICIENTS: tl.constexpr, DEGREE: tl.constexpr):
    """Horner's rule, one fma a power."""
    p = tl.full(x.shape, COEFFICIENTS[0], tl.float32)
    for i in tl.static_range(1, DEGREE + 1):
        p = tl.fma(p, x, tl.full(x.shape, COEFFICIENTS[i], tl.float32))
    return p


@triton.jit
def philox4x32_10(c0, c1, c2, c3, k0, k1):
    """Four random words of a counter and a key, uint32 all."""
    for _ in tl.static_range(10):
        # One widening multiply gives both halves; umulhi beside a product would cost a second one.
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = p1.to(tl.uint32)
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = p0.to(tl.uint32)
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def key_of(seed, draw):
    """The two key words. Rows beyond 2^28 (where a draw has more than 32 bits) take a key made from them."""
    key = seed.to(tl.uint64) ^ 0xB7E151628AED2A6A
    k0 = key.to(tl.uint32)
    k1 = (key >> 32).to(tl.uint32)
    epoch = (draw.to(tl.uint64) >> 32).to(tl.uint32)
    if len(epoch.shape) == 0:
        rekey = epoch != 0
    else:
        rekey = tl.max((epoch != 0).to(tl.int32)) != 0
    if rekey:
        zero = epoch ^ epoch
        r0, r1, _, _ = philox4x32_10(zero + REKEY_COUNTER, epoch, zero, zero, k0, k1)
        k0 = tl.where(epoch != 0, r0, k0)
        k1 = tl.where(epoch != 0, r1, k1)
    return k0, k1


@triton.jit
def radius(x):
    """sqrt(-2 ln u) of the uniform u = (x + 1/2) 2^-32, about."""
    scale = tl.full(x.shape, UNIFORM_SCALE, tl.float32)
    u = tl.fma(x.to(tl.float32), scale, tl.full(x.shape, UNIFORM_OFFSET, tl.float32))
    i = u.to(tl.uint32, bitcast=True)
    e = (i - 0x3F2AAAAB) & 0xFF800000
    m = (i - e).to(tl.float32, bitcast=True) - 1.0
    log_m = polynomial(m, RADIUS, 8) * m
    exponent = e.to(tl.int32, bitcast=True).to(tl.float32)
    return tl.sqrt_rn(tl.fma(exponent, tl.full(x.shape, LOG_SCALE, tl.float32), log_m))


@triton.jit
def circle(x):
    """(cosine, sine) of a uniform angle."""
    scale = tl.full(x.shape, ANGLE_SCALE, tl.float32)
    v = tl.fma((x << 1).to(tl.int32, bitcast=True).to(tl.float32), scale, scale)
    w = v * v
    sine = polynomial(w, SINE, 4) * v
    cosine = polynomial(w, COSINE, 5).to(tl.uint32, bitcast=True) ^ (x & 0x80000000)
    return cosine.to(tl.float32, bitcast=True), sine


@triton.jit
def normals(k0, k1, chain, draw, counter):
    """Four normals for each ``counter = tag << 28 | block``, whose shape gets ``[2, 2]`` appended.

    In memory order: a reshape alone makes a tile of them whose threads hold neighbouring elements.
    """
    ids = chain.to(tl.uint64)
    w0, w1, w2, w3 = philox4x32_10(
        counter.to(tl.uint32), draw.to(tl.uint32), ids.to(tl.uint32), (ids >> 32).to(tl.uint32), k0, k1
    )
    r = radius(w0)
    c, s = circle(w1)
    z0 = r * c
    z1 = r * s
    r = radius(w2)
    c, s = circle(w3)
    # join puts its pair in the last axis: [..., j, k] is normal 2 j + k.
    return tl.join(tl.join(z0, r * c), tl.join(z1, r * s))


@triton.jit
def tile_of_normals(k0, k1, chain, draw, first, TILE: tl.constexpr, PAIRS: tl.constexpr):
    """``[TILE]`` normals, those of the blocks from ``first`` on.

    A thread makes one block of four at a time, or with PAIRS two neighbouring ones: 16 bytes of fp32 or of 16-bit
    values, which is what it stores at once, so nothing moves between threads.
    """
    if PAIRS:
        even = first + 2 * tl.arange(0, TILE // 8)
        z = tl.join(normals(k0, k1, chain, draw, even), normals(k0, k1, chain, draw, even + 1))
        z = tl.permute(z, 0, 3, 1, 2)
    else:
        z = normals(k0, k1, chain, draw, first + tl.arange(0, TILE // 4))
    return tl.reshape(z, [TILE])
