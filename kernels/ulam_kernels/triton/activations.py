"""The activations of small networks in Triton: the formulas of ``csrc/include/ulam/activations.h``.

FAST takes the device's approximations of exp and of divisions, a few units in the last place off, which flush numbers
below 2^-126 to 0; else all operations are correctly rounded and the bits are those of the other backends.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.target_info import is_cuda

from ulam_kernels.networks import FUNCTIONS
from ulam_kernels.triton.likelihood import TANH_CUBIC, TANH_SCALE, expm1, full, log, scaled_tail
from ulam_kernels.triton.row import exp

IDENTITY, SILU, RELU, GELU, GELU_TANH, TANH, SIGMOID, MISH, SOFTPLUS, LEAKY_RELU, ELU = (
    tl.constexpr(place)
    for place in range(FUNCTIONS.index("elu") + 1)  # the slopes behind are not here
)

PTX = tl.constexpr(not triton.knobs.runtime.interpret)
MINUS_LOG2_E = tl.constexpr(-1.4426950408889634)


@triton.jit
def exp_minus(x):
    """exp(-x), approximately. Triton's own handles numbers below 2^-126, in three more instructions."""
    if PTX and is_cuda():
        y = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=r,r", [x * MINUS_LOG2_E], tl.float32, is_pure=True, pack=1
        )
    else:
        y = tl.exp(-x)
    return y


@triton.jit
def exp_of(x, FAST: tl.constexpr):
    """exp(x); NaN passes."""
    y = exp_minus(-x) if FAST else exp(x)
    return y


@triton.jit
def quotient(a, b, FAST: tl.constexpr):
    if FAST:
        if PTX and is_cuda():
            q = a * tl.inline_asm_elementwise(
                "rcp.approx.ftz.f32 $0, $1;", "=r,r", [b], tl.float32, is_pure=True, pack=1
            )
        else:
            q = a / b
    else:
        q = tl.div_rn(a, b)
    return q


@triton.jit
def at_least(x, least):
    """x, and NaN where it is NaN."""
    return tl.where(x < least, least, x)


@triton.jit
def times_sigmoid(a, x, FAST: tl.constexpr):
    """a / (1 + exp(-x))"""
    return quotient(a, 1.0 + exp_of(-x, FAST), FAST)


@triton.jit
def gelu(x, FAST: tl.constexpr):
    """x Phi(x), by the normal tail of |x|; the square in the exponent is exact to the second order."""
    held = at_least(x, -13.0)
    a = tl.where(held > 16.0, 16.0, tl.where(held < 0, -held, held))
    square = a * a
    rest = tl.fma(a, a, -square)
    density = exp_of(square * -0.5, FAST) * tl.fma(rest, full(x, -0.5), full(x, 1.0))
    tail = density * scaled_tail(a)
    return held * tl.where(x < 0, tail, 1.0 - tail)


@triton.jit
def gelu_tanh(x, FAST: tl.constexpr):
    """x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3)"""
    held = at_least(x, -10.0)
    cubic = tl.fma(held * held, full(x, TANH_CUBIC), full(x, 1.0))
    return times_sigmoid(held, (held * TANH_SCALE) * cubic, FAST)


@triton.jit
def tanh(x, FAST: tl.constexpr):
    e = expm1(x + x)
    return quotient(e, e + 2.0, FAST)


@triton.jit
def mish(x, FAST: tl.constexpr):
    """x n / (n + 2), n = e (e + 2), e = exp(x)"""
    held = at_least(x, -86.0)
    e = exp_of(tl.where(held > 20.0, 20.0, held), FAST)
    n = tl.fma(e, e, e + e)
    return held * quotient(n, n + 2.0, FAST)


@triton.jit
def softplus(x, FAST: tl.constexpr):
    """max(x, 0) + ln(1 + exp(-|x|)), the logarithm with what its argument loses by rounding."""
    e = exp_of(tl.where(x < 0, x, -x), FAST)
    above = 1.0 + e
    lost = quotient(e - (above - 1.0), above, FAST)
    return tl.where(x < 0, 0.0, x) + (log(above) + lost)


@triton.jit
def activated(x, parameter, FUNCTION: tl.constexpr, FAST: tl.constexpr):
    """f(x); ``parameter`` is read by leaky_relu and elu."""
    y = x
    if FUNCTION == SILU:
        held = at_least(x, -88.0)
        y = times_sigmoid(held, held, FAST)
    elif FUNCTION == RELU:
        y = at_least(x, 0.0)
    elif FUNCTION == GELU:
        y = gelu(x, FAST)
    elif FUNCTION == GELU_TANH:
        y = gelu_tanh(x, FAST)
    elif FUNCTION == TANH:
        y = tanh(x, FAST)
    elif FUNCTION == SIGMOID:
        y = times_sigmoid(full(x, 1.0), x, FAST)
    elif FUNCTION == MISH:
        y = mish(x, FAST)
    elif FUNCTION == SOFTPLUS:
        y = softplus(x, FAST)
    elif FUNCTION == LEAKY_RELU:
        y = tl.where(x < 0, parameter * x, x)
    elif FUNCTION == ELU:
        y = tl.where(x < 0, parameter * expm1(x), x)
    return y
