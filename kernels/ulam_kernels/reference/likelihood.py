"""Per-chain sums of a variational bound's terms, exact and readable: see :mod:`ulam_kernels.likelihood`.

Every formula is that of ``csrc/include/ulam/{special,likelihood}.h``, operation for operation. float64 arguments get
the functions of NumPy and torch in place of the polynomials.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ulam_kernels.reference.arithmetic import (
    EXP_MAX,
    EXP_MIN,
    EXP_POLYNOMIAL,
    LN2_HI,
    LN2_LO,
    LOG2_E,
    ROUNDER,
    Real,
    RealArray,
    exp,
    fma,
    mul,
    polynomial,
    sub,
)
from ulam_kernels.reference.reduce import sum_in_lanes

Mask = npt.NDArray[np.bool_]
NARROW = {4: (0.5, 0.3), 8: (0.05, 0.05)}  # w h and h below which log_bin takes the series, by the size of a number


def floats(hexadecimal: str) -> tuple[np.float32, ...]:
    return tuple(np.float32(float.fromhex(number)) for number in hexadecimal.split())


# Highest power first.
LOG_POLYNOMIAL = floats(
    "0x1.65fd98p-4 -0x1.250fd8p-3 0x1.317f18p-3 -0x1.535ac6p-3 0x1.98d330p-3 -0x1.0004aep-2 0x1.5556f2p-2"
    " -0x1.fffffap-2"
)
TAIL_POLYNOMIAL = floats(
    "-0x1.9709bep-15 0x1.449caep-15 0x1.d5776ap-12 -0x1.bf45a0p-12 -0x1.9fd132p-9 0x1.a81c14p-8 0x1.1d1fd6p-6"
    " -0x1.db57d2p-4 0x1.42fef4p-2 -0x1.219152p-1 0x1.7d241ap-1"
)


def gaussian_kl(
    mean_a: torch.Tensor,
    log_var_a: torch.Tensor,
    mean_b: torch.Tensor,
    log_var_b: torch.Tensor,
    per_element_a: bool,
    per_element_b: bool,
    out: torch.Tensor,
) -> None:
    """``out[b] = 1/2 sum (exp(d) - 1 - d + (mean_a - mean_b)^2 exp(-log_var_b))``, d = log_var_a - log_var_b."""
    a, b, log_a, log_b = (_by_chain(x) for x in (mean_a, mean_b, log_var_a, log_var_b))
    off = sub(a, b)
    terms = fma(mul(off, off), exp(sub(log_b.dtype.type(0), log_b)), exp_excess(sub(log_a, log_b)))
    out.copy_(torch.from_numpy(0.5 * sum_in_lanes(terms)))


def discretised_log_likelihood(
    x: torch.Tensor,
    mean: torch.Tensor,
    log_scale: torch.Tensor,
    per_element: bool,
    half: float,
    edge: float,
    tanh: bool,
    out: torch.Tensor,
) -> None:
    """``out[b] = sum ln P(bin of x)``: a bin is x +- half, beyond +-edge it reaches to infinity."""
    at, centre, log = (_by_chain(value) for value in (x, mean, log_scale))
    inverse = exp(sub(log.dtype.type(0), log))
    with np.errstate(all="ignore"):
        h = np.broadcast_to(mul(inverse, at.dtype.type(half)), at.shape)
        z = mul(inverse, sub(at, centre))
        upper, lower = at > at.dtype.type(edge), at < -at.dtype.type(edge)
        w = np.where(upper, z, np.where(lower, -z, np.where(z < 0, -z, z)))
        terms = (log_bin_tanh if tanh else log_bin)(w, h, upper | lower)
    out.copy_(torch.from_numpy(sum_in_lanes(terms)))


def log_bin(w: RealArray, h: RealArray, outermost: Mask) -> RealArray:
    """ln of the normal probability of [w - h, w + h], w >= 0, or of [w - h, infinity) where outermost."""
    real = w.dtype.type
    a, b = sub(w, h), _add(w, h)
    decay_a = mul(mul(a, a), real(-0.5))
    tail_a = scaled_tail(abs(a))
    near = np.where(a < 0, fma(-exp(decay_a), tail_a, real(1)), tail_a)
    u = mul(w, h)
    decay_b = np.where(a < 0, mul(mul(b, b), real(-0.5)), mul(u, real(-2)))
    beyond = mul(exp(decay_b), scaled_tail(np.where(b < 0, real(0), b)))
    probability = np.where(outermost, near, sub(near, beyond))

    U, v = mul(u, u), mul(h, h)
    v2 = mul(v, v)
    fourth = fma(fma(v, real(-6), U), U, mul(v2, real(3)))
    sixth = fma(fma(v, real(-15), U), U, mul(v2, real(45)))
    sixth = fma(sixth, U, mul(mul(v2, v), real(-15)))
    series = fma(sub(U, v), real(1 / 6), real(1))  # sum over k of h^2k He_2k(w) / (2k + 1)!
    series = fma(sixth, real(1 / 5040), fma(fourth, real(1 / 120), series))
    density = mul(mul(h, real(2 / np.sqrt(2 * np.pi))), series)

    most_u, most_h = (real(most) for most in NARROW[w.dtype.itemsize])
    narrow = (u < most_u) & (h < most_h) & ~outermost
    taken = np.where(narrow, mul(mul(w, w), real(-0.5)), np.where(a < 0, real(0), decay_a))
    return _add(taken, log(np.where(narrow, density, probability)))


def log_bin_tanh(w: RealArray, h: RealArray, outermost: Mask) -> RealArray:
    """The same under 1 / (1 + exp(-2 sqrt(2 / pi) (y + 0.044715 y^3))), at least ln 1e-12."""
    real = w.dtype.type
    one, scale, cubic = real(1), real(2 * np.sqrt(2 / np.pi)), real(0.044715)
    a, b = sub(w, h), _add(w, h)
    p_a, p_b = (mul(mul(y, scale), fma(mul(y, y), cubic, one)) for y in (a, b))
    above_a, below_b = one / _add(one, exp(p_a)), one / _add(one, exp(-p_b))
    squares = fma(mul(w, w), real(3), mul(h, h))
    minus_gap = mul(mul(h, mul(scale, real(-2))), fma(squares, cubic, one))
    inside = mul(mul(above_a, below_b), -expm1(minus_gap))
    probability = np.where(outermost, above_a, inside)
    least = real(1e-12)
    return log(np.where(probability < least, least, np.where(probability > one, one, probability)))


@np.errstate(all="ignore")
def log(x: RealArray) -> RealArray:
    """ln x for x held to the normal numbers up to 2^126; NaN passes."""
    if x.dtype == np.float64:
        return np.asarray(np.log(x))
    least, most = np.float32(2.0**-126), np.float32(2.0**126)
    x = np.where(x < least, least, np.where(x > most, most, x))
    bits = x.view(np.int32)
    exponent = (bits - np.int32(0x3F3504F3)) & np.int32(-0x800000)  # of x / sqrt(1/2)
    r = sub((bits - exponent).view(np.float32), np.float32(1))
    y = fma(mul(polynomial(LOG_POLYNOMIAL, r), r), r, r)
    value = fma(exponent.astype(np.float32), np.float32(float.fromhex("0x1.62e43p-24")), y)
    return np.where(np.isnan(x), x, value)


@np.errstate(all="ignore")
def expm1(x: RealArray) -> RealArray:
    """exp(x) - 1."""
    if x.dtype == np.float64:
        return np.asarray(np.expm1(x))
    s, r, t = _parts_of_exp(x)
    return np.where(np.isnan(x), x, fma(s, _add(r, t), sub(s, np.float32(1))))


@np.errstate(all="ignore")
def exp_excess(x: RealArray) -> RealArray:
    """exp(x) - 1 - x."""
    if x.dtype == np.float64:
        series = x**2 / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6 * (1 + x / 7 * (1 + x / 8))))))
        return np.where(abs(x) < 0.05, series, np.expm1(x) - x)
    s, r, t = _parts_of_exp(x)
    linear = sub(fma(s, r, sub(s, np.float32(1))), x)
    return np.where(np.isnan(x), x, fma(s, t, linear))


@np.errstate(all="ignore")
def scaled_tail(a: RealArray) -> RealArray:
    """exp(a^2 / 2) (1 - Phi(a)) for a >= 0: a polynomial in (a - 7/2) / (a + 7/2) over a + 7/2."""
    if a.dtype == np.float64:
        return np.asarray((torch.special.erfcx(torch.from_numpy(a / np.sqrt(2))) / 2).numpy())
    inverse = np.float32(1) / _add(a, np.float32(3.5))
    t = fma(np.float32(-7), inverse, np.float32(1))
    return mul(polynomial(TAIL_POLYNOMIAL, t), inverse)


def _parts_of_exp(x: RealArray) -> tuple[RealArray, RealArray, RealArray]:
    """s, r, t with exp(x) = s (1 + r + t), s a power of two, |r| <= ln(2) / 2, t of order r^2."""
    clamped = np.where(x < EXP_MIN, EXP_MIN, np.where(x > EXP_MAX, EXP_MAX, x))
    rounded = fma(clamped, LOG2_E, ROUNDER)
    k = sub(rounded, ROUNDER)
    s = ((rounded.view(np.int32) - np.int32(0x4B400000 - 127)) << 23).view(np.float32)
    r = fma(k, -LN2_LO, fma(k, -LN2_HI, clamped))
    return s, r, mul(mul(polynomial(EXP_POLYNOMIAL[:-2], r), r), r)


def _add(a: Real, b: Real) -> RealArray:
    """``a + b``, rounded once."""
    total: RealArray = np.add(a, b)
    return total


def _by_chain(x: torch.Tensor) -> RealArray:
    """``[B, n]``, or ``[B, 1]`` of one number a chain."""
    values: RealArray = x.detach().to("cpu").numpy()
    return values.reshape(len(values), -1)
