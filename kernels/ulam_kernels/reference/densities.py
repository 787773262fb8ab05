"""Energies and scores of the built-in densities, operation by operation as ``csrc/include/ulam/densities.h``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ulam_kernels.densities import (
    DOUBLE_WELL,
    FUNNEL,
    GAUSSIAN,
    GAUSSIAN_DIAGONAL,
    MIXTURE,
    RING,
    ROSENBROCK,
    Density,
)
from ulam_kernels.reference.arithmetic import RealArray, exp, fma, mul, polynomial, sub
from ulam_kernels.reference.noise import LOG_POLYNOMIAL, MINUS_TWO_LN2

Float64Array = npt.NDArray[np.float64]
Terms = RealArray | Float64Array  # float32 energy terms [B, d], or float64 energies [B] where they are no sum
Formula = Callable[[Density, RealArray, RealArray], tuple[Terms, RealArray]]


@np.errstate(all="ignore")
def energy_and_score(density: Density, params: RealArray, x: RealArray) -> tuple[Float64Array, RealArray]:
    """Energies ``[B]`` and scores ``[B, d]`` at x ``[B, d]``; params are the density's numbers in the type of x."""
    terms, score = FORMULAS[density.kind](density, params, x)
    wide: Float64Array = terms.astype(np.float64)
    return (halved_sum(wide) if wide.ndim == 2 else wide), score


def halved_sum(terms: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Sums ``[B]`` of ``[B, d]``: element l adds element l + w, w halved from the least power of two >= d."""
    width = 1 << (terms.shape[1] - 1).bit_length()
    lanes = np.zeros((len(terms), width), terms.dtype)
    lanes[:, : terms.shape[1]] = terms
    while (width := width // 2) > 0:
        lanes = lanes[:, :width] + lanes[:, width:]
    return lanes[:, 0]


def log(x: RealArray) -> RealArray:
    """ln x of a positive normal number, by the polynomial of noise-v1's radius; float64 gets ``numpy.log``."""
    if x.dtype == np.float64:
        return np.asarray(np.log(x))
    bits = x.view(np.uint32)
    exponent = (bits - np.uint32(0x3F2AAAAB)) & np.uint32(0xFF800000)
    fraction = sub((bits - exponent).view(np.float32), np.float32(1))
    scaled = exponent.view(np.int32).astype(np.float32)
    return mul(np.float32(-0.5), fma(scaled, MINUS_TWO_LN2, mul(polynomial(LOG_POLYNOMIAL, fraction), fraction)))


def _gaussian_diagonal(density: Density, params: RealArray, x: RealArray) -> tuple[Terms, RealArray]:
    d = density.dimension
    u = sub(x, params[:d])
    score = mul(-params[d:], u)
    return mul(mul(_number(x, -0.5), u), score), score


def _gaussian(density: Density, params: RealArray, x: RealArray) -> tuple[Terms, RealArray]:
    d = density.dimension
    u = sub(x, params[:d])
    precision = params[d:].reshape(d, d)
    score = mul(-precision[:, 0], u[:, :1])
    for j in range(1, d):
        score = fma(-precision[:, j], u[:, j : j + 1], score)
    return mul(mul(_number(x, -0.5), u), score), score


def _mixture(density: Density, params: RealArray, x: RealArray) -> tuple[Terms, RealArray]:
    count = density.components
    constant, inverse = params[:count], params[count : 2 * count]
    away = [sub(mean, x) for mean in params[2 * count :].reshape(count, -1)]
    exponents = [fma(mul(_number(x, -0.5), inverse[k]), halved_sum(mul(u, u)), constant[k]) for k, u in enumerate(away)]
    largest = exponents[0]
    for exponent in exponents[1:]:
        largest = np.where(largest < exponent, exponent, largest)
    shares = [exp(sub(exponent, largest)) for exponent in exponents]
    total = shares[0]
    for share in shares[1:]:
        total = total + share
    reciprocal = _number(x, 1) / total
    score = np.zeros_like(x)
    for k, u in enumerate(away):
        weight = mul(mul(shares[k], reciprocal), inverse[k])[:, None]
        score = fma(weight, u, score) if k else mul(weight, u)
    return -(largest.astype(np.float64) + log(total).astype(np.float64)), score


def _double_well(density: Density, params: RealArray, x: RealArray) -> tuple[Terms, RealArray]:
    height, separation = params
    t = fma(x, x, -separation)
    return mul(mul(height, t), t), mul(mul(-4 * height, x), t)


def _rosenbrock(density: Density, params: RealArray, x: RealArray) -> tuple[Terms, RealArray]:
    a, b = params
    first, second = x[:, 0::2], x[:, 1::2]
    t = fma(-first, first, second)
    one = sub(_number(x, 1), first)
    terms, score = np.empty_like(x), np.empty_like(x)
    terms[:, 0::2], terms[:, 1::2] = mul(mul(b, one), one), mul(mul(a, t), t)
    score[:, 0::2], score[:, 1::2] = fma(2 * b, one, mul(mul(4 * a, t), first)), mul(-2 * a, t)
    return terms, score


def _funnel(density: Density, params: RealArray, x: RealArray) -> tuple[Terms, RealArray]:
    precision, half_rest = params
    first = x[:, 0]
    inverse = exp(-first)
    half = mul(_number(x, 0.5), inverse)
    squares = mul(x, x)
    squares[:, 0] = 0
    terms, score = mul(mul(half[:, None], x), x), mul(-inverse[:, None], x)
    terms[:, 0] = fma(mul(mul(_number(x, 0.5), precision), first), first, mul(half_rest, first))
    score[:, 0] = fma(-precision, first, sub(mul(half, halved_sum(squares)), half_rest))
    return terms, score


def _ring(density: Density, params: RealArray, x: RealArray) -> tuple[Terms, RealArray]:
    radius, precision = params
    r = np.sqrt(halved_sum(mul(x, x)))
    inward = sub(radius, r)
    pull = mul(inward, precision)
    score = mul((pull / np.where(r == 0, _number(x, 1), r))[:, None], x)
    return mul(mul(_number(x, 0.5), inward), pull).astype(np.float64), score


def _number(like: RealArray, value: float) -> np.floating[npt.NBitBase]:
    number: np.floating[npt.NBitBase] = like.dtype.type(value)
    return number


FORMULAS: dict[int, Formula] = {
    GAUSSIAN_DIAGONAL: _gaussian_diagonal,
    GAUSSIAN: _gaussian,
    MIXTURE: _mixture,
    DOUBLE_WELL: _double_well,
    ROSENBROCK: _rosenbrock,
    FUNNEL: _funnel,
    RING: _ring,
}
