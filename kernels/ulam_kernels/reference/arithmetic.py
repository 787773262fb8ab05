"""Exact binary32 arithmetic in NumPy: every function rounds once, to nearest even, as IEEE-754 says.

The fused step and noise-v1 are defined operation by operation in ``fma``, ``mul``, ``sub`` and ``sqrt``;
these are those operations, written so that they can be believed on reading. float64 arguments are accepted
too, for checking formulas and not bits: there ``fma`` rounds its product and its sum separately.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
RealArray = npt.NDArray[np.floating[Any]]  # float32 or float64
Real = RealArray | np.floating[Any]

# exp: 1/ln 2, and ln 2 in two parts. The upper part has 15 bits, so that k * LN2_HI is exact for |k| <= 127.
LOG2_E = np.float32(float.fromhex("0x1.715476p+0"))
LN2_HI = np.float32(float.fromhex("0x1.62e4p-1"))
LN2_LO = np.float32(float.fromhex("0x1.7f7d1cp-20"))
# Adding 1.5 * 2^23 rounds to an integer, which then sits in the low bits of the sum.
ROUNDER = np.float32(float.fromhex("0x1.8p+23"))
ROUNDER_BITS = np.int32(0x4B400000)
EXP_MIN, EXP_MAX = np.float32(-86.0), np.float32(88.0)  # between them exp is a normal number
# Minimax polynomial of exp on |r| <= ln(2)/2, highest power first; the last two are exactly 1.
EXP_COEFFICIENTS = "0x1.6a4d6p-10 0x1.12398ep-7 0x1.5558bp-5 0x1.555492p-3 0x1.fffffcp-2 0x1p+0 0x1p+0"
EXP_POLYNOMIAL = tuple(np.float32(float.fromhex(c)) for c in EXP_COEFFICIENTS.split())


@np.errstate(all="ignore")
def mul(a: Real, b: Real) -> RealArray:
    """``a * b``, rounded once."""
    product: RealArray = np.multiply(a, b)
    return product


@np.errstate(all="ignore")
def sub(a: Real, b: Real) -> RealArray:
    """``a - b``, rounded once."""
    difference: RealArray = np.subtract(a, b)
    return difference


@np.errstate(all="ignore")
def fma(a: Real, b: Real, c: Real) -> RealArray:
    """``a * b + c`` with a single rounding, over all of binary32: denormals, infinities and NaN included.

    The product of two binary32 numbers is exact in binary64. Its sum with ``c`` is rounded to odd there (the
    exact sum if representable, else the neighbour whose last bit is 1), after which the rounding to binary32
    is the only one that counts, because 53 >= 24 + 2 (Boldo and Melquiond, "Emulation of FMA and correctly
    rounded sums: proved algorithms using rounding to odd", 2008).
    """
    if np.result_type(a, b, c) == np.float64:
        approximate: RealArray = np.asarray(a * b + c)
        return approximate
    product = np.multiply(a, b, dtype=np.float64)
    addend = np.asarray(c, dtype=np.float64)
    total = np.asarray(product + addend)
    # TwoSum (Knuth): total + error == product + addend exactly.
    virtual = total - product
    error = (product - (total - virtual)) + (addend - virtual)

    bits = total.view(np.int64)
    even_but_inexact = (error != 0) & np.isfinite(total) & ((bits & 1) == 0)
    away_from_zero = (error > 0) == (total > 0)
    odd = np.where(even_but_inexact, bits + np.where(away_from_zero, 1, -1), bits)
    return odd.view(np.float64).astype(np.float32)


def sqrt(a: Float32Array) -> Float32Array:
    """Correctly rounded square root (binary64 has more than 2 * 24 + 2 bits: rounding twice is harmless)."""
    return np.sqrt(a, dtype=np.float64).astype(np.float32)


def polynomial(coefficients: tuple[np.float32, ...], x: RealArray) -> RealArray:
    """Horner's rule with ``fma``, highest power first."""
    value: RealArray = np.broadcast_to(coefficients[0], np.shape(x))
    for coefficient in coefficients[1:]:
        value = fma(value, x, coefficient)
    return value


@np.errstate(all="ignore")
def exp(x: RealArray) -> RealArray:
    """``exp(x)`` as a fixed sequence of binary32 operations.

    The argument saturates at -86 and 88, between which the result is a normal number; NaN stays NaN.
    ``x = k ln 2 + r`` with an integer ``k`` and ``|r| <= ln(2)/2``; ``exp(r)`` is a polynomial, and ``k`` is
    added to the exponent bits. The error is at most 0.892 ulp (measured on every number). Every backend runs
    these operations (csrc/include/ulam/elementary.h), so rows with a learned noise scale are bit-identical too.
    float64 arguments get ``numpy.exp``.
    """
    x = np.asarray(x)
    if x.dtype == np.float64:
        return np.asarray(np.exp(x))
    clamped = np.where(x < EXP_MIN, EXP_MIN, np.where(x > EXP_MAX, EXP_MAX, x))
    rounded = fma(clamped, LOG2_E, ROUNDER)
    k = sub(rounded, ROUNDER)
    r = fma(k, -LN2_HI, clamped)
    r = fma(k, -LN2_LO, r)
    exponent = (rounded.view(np.int32) - ROUNDER_BITS) << 23
    value = (polynomial(EXP_POLYNOMIAL, r).view(np.int32) + exponent).view(np.float32)
    # A NaN's payload would leak into the exponent and could come out as a number.
    return np.where(np.isnan(x), x, value)
