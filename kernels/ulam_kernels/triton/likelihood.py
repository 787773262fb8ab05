"""Per-chain sums of a variational bound's terms in Triton, one program a chain: see :mod:`ulam_kernels.likelihood`.

The formulas are those of ``csrc/include/ulam/{special,likelihood}.h``, operation for operation, and the sums keep the
lanes of the contract: the bits are those of every other backend.

Elements are read once, four tiles of them before the first is used. Triton's programs cannot share a chain's sum in the
fixed order, so few long chains use few multiprocessors; the CUDA backend gives such a chain a cluster of blocks.
"""
# ruff: noqa: RUF005, SIM108 (Triton knows neither unpacking nor conditional expressions of tensors)
# mypy: disable-error-code="assignment, no-untyped-def, no-untyped-call, untyped-decorator, var-annotated"

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from ulam_kernels.triton.launch import elements_per_chain, on_device
from ulam_kernels.triton.noise import floats, polynomial
from ulam_kernels.triton.row import EXP, EXP_HIGH, EXP_LOW, EXP_SCALE, EXP_SHIFT, clip, exp
from ulam_kernels.triton.sums import shape_of, sum_of_lanes

LOG = floats(
    "0x1.65fd98p-4 -0x1.250fd8p-3 0x1.317f18p-3 -0x1.535ac6p-3 0x1.98d330p-3 -0x1.0004aep-2 0x1.5556f2p-2"
    " -0x1.fffffap-2"
)
TAIL = floats(
    "-0x1.9709bep-15 0x1.449caep-15 0x1.d5776ap-12 -0x1.bf45a0p-12 -0x1.9fd132p-9 0x1.a81c14p-8 0x1.1d1fd6p-6"
    " -0x1.db57d2p-4 0x1.42fef4p-2 -0x1.219152p-1 0x1.7d241ap-1"
)
LOG_2 = tl.constexpr(float.fromhex("0x1.62e43p-24"))
DENSITY = tl.constexpr(2 / math.sqrt(2 * math.pi))
TANH_SCALE = tl.constexpr(float.fromhex("0x1.988454p+0"))
TANH_CUBIC = tl.constexpr(float.fromhex("0x1.6e4e26p-5"))
LEAST = tl.constexpr(2.0**-126)
MOST = tl.constexpr(2.0**126)

# Read one number at a time: slices of them, at whatever address, must not compile the kernel again.
PER_CHAIN = ["out"]


@triton.jit
def full(x, VALUE: tl.constexpr):
    """A constant in the shape of x."""
    return tl.full(x.shape, VALUE, tl.float32)


@triton.jit
def log(x):
    """ln of a normal number above 0; NaN passes."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) & -0x800000
    r = (bits - exponent).to(tl.float32, bitcast=True) - 1.0
    y = tl.fma(polynomial(r, LOG, 7) * r, r, r)
    return tl.where(x != x, x, tl.fma(exponent.to(tl.float32), full(x, LOG_2), y))


@triton.jit
def parts_of_exp(x):
    """s, r, t with exp(x) = s (1 + r + t), s a power of two, |r| <= ln(2) / 2, t of order r^2."""
    y = clip(x, -86.0, 88.0)
    shift = full(x, EXP_SHIFT)
    rounded = tl.fma(y, full(x, EXP_SCALE), shift)
    s = ((rounded.to(tl.uint32, bitcast=True) - (0x4B400000 - 127)) << 23).to(tl.float32, bitcast=True)
    k = rounded - shift
    r = tl.fma(k, full(x, EXP_LOW), tl.fma(k, full(x, EXP_HIGH), y))
    return s, r, polynomial(r, EXP, 4) * r * r


@triton.jit
def expm1(x):
    """exp(x) - 1."""
    s, r, t = parts_of_exp(x)
    return tl.where(x != x, x, tl.fma(s, r + t, s - 1.0))


@triton.jit
def exp_excess(x):
    """exp(x) - 1 - x."""
    s, r, t = parts_of_exp(x)
    return tl.where(x != x, x, tl.fma(s, t, tl.fma(s, r, s - 1.0) - x))


@triton.jit
def scaled_tail(a):
    """exp(a^2 / 2) (1 - Phi(a)) for a >= 0."""
    inverse = tl.div_rn(full(a, 1.0), a + 3.5)
    t = tl.fma(full(a, -7.0), inverse, full(a, 1.0))
    return polynomial(t, TAIL, 10) * inverse


@triton.jit
def log_bin(w, h, outermost):
    """ln of the normal probability of [w - h, w + h], w >= 0, or of [w - h, infinity) where outermost."""
    a = w - h
    b = w + h
    decay_a = (a * a) * -0.5
    tail_a = scaled_tail(tl.where(a < 0, -a, a))
    near = tl.where(a < 0, tl.fma(-exp(decay_a), tail_a, full(a, 1.0)), tail_a)
    u = w * h
    decay_b = tl.where(a < 0, (b * b) * -0.5, u * -2.0)
    beyond = exp(decay_b) * scaled_tail(tl.where(b < 0, 0.0, b))
    probability = tl.where(outermost, near, near - beyond)

    U = u * u
    v = h * h
    fourth = tl.fma(tl.fma(v, full(v, -6.0), U), U, (v * v) * 3.0)
    sixth = tl.fma(tl.fma(v, full(v, -15.0), U), U, (v * v) * 45.0)
    sixth = tl.fma(sixth, U, ((v * v) * v) * -15.0)
    series = tl.fma(U - v, full(v, 1 / 6), full(v, 1.0))
    series = tl.fma(fourth, full(v, 1 / 120), series)
    series = tl.fma(sixth, full(v, 1 / 5040), series)
    density = (h * DENSITY) * series

    narrow = (u < 0.5) & (h < 0.3) & (outermost == 0)
    taken = tl.where(narrow, (w * w) * -0.5, tl.where(a < 0, 0.0, decay_a))
    left = tl.where(narrow, density, probability)
    return taken + log(clip(left, LEAST, MOST))


@triton.jit
def log_bin_tanh(w, h, outermost):
    """The same under 1 / (1 + exp(-2 sqrt(2 / pi) (y + 0.044715 y^3))), at least ln 1e-12."""
    one = full(w, 1.0)
    cubic = full(w, TANH_CUBIC)
    a = w - h
    b = w + h
    p_a = (a * TANH_SCALE) * tl.fma(a * a, cubic, one)
    p_b = (b * TANH_SCALE) * tl.fma(b * b, cubic, one)
    above_a = tl.div_rn(one, one + exp(p_a))
    below_b = tl.div_rn(one, one + exp(-p_b))
    squares = tl.fma(w * w, full(w, 3.0), h * h)
    minus_gap = (h * (TANH_SCALE * -2.0)) * tl.fma(squares, cubic, one)
    inside = (above_a * below_b) * -expm1(minus_gap)
    return log(clip(tl.where(outermost, above_a, inside), 1e-12, 1.0))


@triton.jit
def elements_of(tensor, b, base, i, n, PER_ELEMENT: tl.constexpr):
    """One chain's elements i, or its one number for all of them."""
    if PER_ELEMENT:
        x = tl.load(tensor + base + i, mask=i < n, other=0.0)
    else:
        x = tl.full(i.shape, 0.0, tl.float32) + tl.load(tensor + b)
    return x


@triton.jit(do_not_specialize=["n"], do_not_specialize_on_alignment=PER_CHAIN)
def gaussian_kl_chain(
    mean_a, log_var_a, mean_b, log_var_b, out, n,
    PER_ELEMENT_A: tl.constexpr, PER_ELEMENT_B: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
    UNROLL: tl.constexpr,
):  # fmt: skip
    """Grid (chains)."""
    if ALIGNED:
        n = n // 8 * 8  # says to the compiler that 16-byte accesses are aligned
    b = tl.program_id(0).to(tl.int64)
    base = b * n
    total = tl.zeros([TILE], tl.float64)
    for first in range(0, n, UNROLL * TILE):
        loaded = ()
        for u in tl.static_range(UNROLL):
            i = first + u * TILE + tl.arange(0, TILE)
            off = elements_of(mean_a, b, base, i, n, True) - elements_of(mean_b, b, base, i, n, True)
            va = elements_of(log_var_a, b, base, i, n, PER_ELEMENT_A)
            loaded = loaded + (off, va, elements_of(log_var_b, b, base, i, n, PER_ELEMENT_B))
        for u in tl.static_range(UNROLL):
            off = loaded[3 * u]
            vb = loaded[3 * u + 2]
            term = tl.fma(off * off, exp(0.0 - vb), exp_excess(loaded[3 * u + 1] - vb))
            total += tl.where(first + u * TILE + tl.arange(0, TILE) < n, term, 0.0).to(tl.float64)
    tl.store(out + b, 0.5 * sum_of_lanes(total, TILE))


@triton.jit(do_not_specialize=["n", "half", "edge"], do_not_specialize_on_alignment=PER_CHAIN)
def discretised_chain(
    x, mean, log_scale, out, n, half, edge,
    PER_ELEMENT: tl.constexpr, TANH: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
    UNROLL: tl.constexpr,
):  # fmt: skip
    """Grid (chains)."""
    if ALIGNED:
        n = n // 8 * 8
    b = tl.program_id(0).to(tl.int64)
    base = b * n
    total = tl.zeros([TILE], tl.float64)
    for first in range(0, n, UNROLL * TILE):
        loaded = ()
        for u in tl.static_range(UNROLL):
            i = first + u * TILE + tl.arange(0, TILE)
            at = elements_of(x, b, base, i, n, True)
            off = at - elements_of(mean, b, base, i, n, True)
            loaded = loaded + (at, off, elements_of(log_scale, b, base, i, n, PER_ELEMENT))
        for u in tl.static_range(UNROLL):
            at = loaded[3 * u]
            inverse = exp(0.0 - loaded[3 * u + 2])
            z = inverse * loaded[3 * u + 1]
            h = inverse * half
            w = tl.where(at > edge, z, tl.where(at < -edge, -z, tl.where(z < 0, -z, z)))
            outermost = (at > edge) | (at < -edge)
            if TANH:
                term = log_bin_tanh(w, h, outermost)
            else:
                term = log_bin(w, h, outermost)
            total += tl.where(first + u * TILE + tl.arange(0, TILE) < n, term, 0.0).to(tl.float64)
    tl.store(out + b, sum_of_lanes(total, TILE))


def gaussian_kl(
    mean_a: torch.Tensor,
    log_var_a: torch.Tensor,
    mean_b: torch.Tensor,
    log_var_b: torch.Tensor,
    per_element_a: bool,
    per_element_b: bool,
    out: torch.Tensor,
) -> None:
    """KL of every chain: see :func:`ulam_kernels.likelihood.gaussian_kl`."""
    n = elements_per_chain(mean_a)
    with on_device(mean_a):
        gaussian_kl_chain[(len(mean_a),)](
            mean_a,
            log_var_a,
            mean_b,
            log_var_b,
            out,
            n,
            PER_ELEMENT_A=per_element_a,
            PER_ELEMENT_B=per_element_b,
            **shape_of(n),
        )


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
    """ln P of every chain: see :func:`ulam_kernels.likelihood.discretised_log_likelihood`."""
    n = elements_per_chain(x)
    with on_device(x):
        discretised_chain[(len(x),)](
            x, mean, log_scale, out, n, half, edge, PER_ELEMENT=per_element, TANH=tanh, **shape_of(n)
        )
