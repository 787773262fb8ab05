"""The activations of small networks: the operations of ``csrc/include/ulam/activations.h``, one for one.

float64 arguments get their formulas with the functions of NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ulam_kernels.reference.arithmetic import RealArray, exp, fma, mul, sub
from ulam_kernels.reference.likelihood import expm1, log, scaled_tail

ROOT = float.fromhex("0x1.988454p+0")  # 2 sqrt(2 / pi) in float32
CUBIC = float.fromhex("0x1.6e4e26p-5")  # 0.044715 in float32
THRICE = float.fromhex("0x1.12ba9ep-3")  # 3 times that
DENSITY = float.fromhex("0x1.988454p-2")  # 1 / sqrt(2 pi)


@np.errstate(all="ignore")
def activated(function: str, parameter: float | None, x: RealArray) -> RealArray:
    """f(x) of a name of `ulam_kernels.networks.FUNCTIONS`."""
    if function in ("leaky_relu", "elu"):
        slope = x.dtype.type(parameter)
        return np.where(x < 0, mul(slope, x if function == "leaky_relu" else expm1(x)), x)
    if function in ("leaky_relu_slope", "elu_slope"):
        slope = x.dtype.type(parameter)
        below = np.where(x != x, x, slope) if function == "leaky_relu_slope" else mul(slope, exp(x))
        return np.where(x > 0, x.dtype.type(1), below)
    formulas = EXACT if x.dtype == np.float64 else FLOAT32
    return np.asarray(formulas[function](x))


def _sigmoid(x: RealArray) -> RealArray:
    one = x.dtype.type(1)
    return np.asarray(one / (one + exp(-x)))


def _at_least(x: RealArray, least: float) -> RealArray:
    return np.where(x < x.dtype.type(least), x.dtype.type(least), x)


def _silu(x: RealArray) -> RealArray:
    x = _at_least(x, -88)
    return np.asarray(x / (np.float32(1) + exp(-x)))


def _gelu(x: RealArray) -> RealArray:
    held, half, one = _at_least(x, -13), np.float32(-0.5), np.float32(1)
    a = np.where(held > 16, np.float32(16), np.where(held < 0, -held, held))
    square = mul(a, a)
    rest = fma(a, a, -square)
    tail = mul(mul(exp(mul(square, half)), fma(rest, half, one)), scaled_tail(a))
    return mul(held, np.where(x < 0, tail, sub(one, tail)))


def _gelu_tanh(x: RealArray) -> RealArray:
    x = _at_least(x, -10)
    cubic = fma(mul(x, x), np.float32(CUBIC), np.float32(1))
    return np.asarray(x / (np.float32(1) + exp(-mul(mul(x, np.float32(ROOT)), cubic))))


def _tanh(x: RealArray) -> RealArray:
    e = expm1(x + x)
    return np.asarray(e / (e + np.float32(2)))


def _mish(x: RealArray) -> RealArray:
    x = _at_least(x, -86)
    e = exp(np.where(x > 20, np.float32(20), x))
    n = fma(e, e, e + e)
    return mul(x, n / (n + np.float32(2)))


def _softplus(x: RealArray) -> RealArray:
    one = np.float32(1)
    e = exp(np.where(x < 0, x, -x))
    above = one + e
    lost = sub(e, sub(above, one)) / above
    return np.where(x < 0, np.float32(0), x) + (log(above) + lost)


def _relu(x: RealArray) -> RealArray:
    return np.where(x < 0, x.dtype.type(0), x)


def _held(x: RealArray, lo: float, hi: float) -> RealArray:
    real = x.dtype.type
    return np.where(x < real(lo), real(lo), np.where(x > real(hi), real(hi), x))


def _nan_or(x: RealArray, y: RealArray) -> RealArray:
    return np.where(x != x, x, y)


def _gated_slope(y: RealArray, w: RealArray) -> RealArray:
    one = y.dtype.type(1)
    e = exp(np.where(y < 0, y, -y))
    above = e + one
    return np.asarray(np.where(y < 0, mul(e, above + w), fma(e, one + w, one)) / mul(above, above))


def _silu_slope(x: RealArray) -> RealArray:
    held = _held(x, -86, 86)
    return _gated_slope(held, held)


def _relu_slope(x: RealArray) -> RealArray:
    return _nan_or(x, np.where(x > 0, x.dtype.type(1), x.dtype.type(0)))


def _gelu_slope(x: RealArray) -> RealArray:
    held, one = _held(x, -13, 13), np.float32(1)
    a = np.where(held < 0, -held, held)
    square = mul(a, a)
    rest = fma(a, a, -square)
    density = mul(exp(mul(square, np.float32(-0.5))), fma(rest, np.float32(-0.5), one))
    below = mul(density, fma(a, np.float32(-DENSITY), scaled_tail(a)))
    return np.where(x < 0, below, sub(one, below))


def _gelu_tanh_slope(x: RealArray) -> RealArray:
    held, one = _held(x, -10, 10), np.float32(1)
    square, scaled = mul(held, held), mul(held, np.float32(ROOT))
    y = mul(scaled, fma(square, np.float32(CUBIC), one))
    return _gated_slope(_held(y, -86, 86), mul(scaled, fma(square, np.float32(THRICE), one)))


def _bell(x: RealArray) -> RealArray:
    """e / (1 + e)^2, e = exp(-|x|), for x in [-86, 86]."""
    e = exp(np.where(x < 0, x, -x))
    above = e + x.dtype.type(1)
    return np.asarray(e / mul(above, above))


def _sigmoid_slope(x: RealArray) -> RealArray:
    return _nan_or(x, _bell(_held(x, -86, 86)))


def _tanh_slope(x: RealArray) -> RealArray:
    held = _held(x, -43, 43)
    return _nan_or(x, mul(_bell(held + held), x.dtype.type(4)))


def _mish_slope(x: RealArray) -> RealArray:
    held = _held(x, -86, 20)
    e = exp(held)
    n = fma(e, e, e + e)
    below = n + np.float32(2)
    return np.asarray(fma(n, below, mul(mul(held, np.float32(4)), fma(e, e, e))) / mul(below, below))


def _exact_gelu(x: RealArray) -> RealArray:
    return np.asarray(0.5 * x * np.vectorize(math.erfc, otypes=[float])(-x / math.sqrt(2)))


def _exact_gelu_tanh(x: RealArray) -> RealArray:
    return np.asarray(x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def _exact_softplus(x: RealArray) -> RealArray:
    return np.asarray(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))


def _exact_silu_slope(x: RealArray) -> RealArray:
    s = _sigmoid(x)
    return np.asarray(s * (1 + x * _sigmoid(-x)))


def _exact_gelu_slope(x: RealArray) -> RealArray:
    normal = 0.5 * np.vectorize(math.erfc, otypes=[float])(-x / math.sqrt(2))
    return np.asarray(normal + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi))


def _exact_gelu_tanh_slope(x: RealArray) -> RealArray:
    root, s = 2 * math.sqrt(2 / math.pi), 0.044715
    y = root * (x + s * x**3)
    return np.asarray(_sigmoid(y) * (1 + x * root * (1 + 3 * s * x * x) * _sigmoid(-y)))


def _exact_mish_slope(x: RealArray) -> RealArray:
    t = np.tanh(_exact_softplus(x))
    return np.asarray(t + x * (1 - t * t) * _sigmoid(x))


Formulas = dict[str, Callable[[RealArray], RealArray]]
FLOAT32: Formulas = {
    "identity": np.array, "silu": _silu, "relu": _relu, "gelu": _gelu, "gelu_tanh": _gelu_tanh, "tanh": _tanh,
    "sigmoid": _sigmoid, "mish": _mish, "softplus": _softplus,
    "silu_slope": _silu_slope, "relu_slope": _relu_slope, "gelu_slope": _gelu_slope,
    "gelu_tanh_slope": _gelu_tanh_slope, "tanh_slope": _tanh_slope, "sigmoid_slope": _sigmoid_slope,
    "mish_slope": _mish_slope,
}  # fmt: skip
EXACT: Formulas = FLOAT32 | {
    "silu": lambda x: np.asarray(x / (1 + np.exp(-x))), "gelu": _exact_gelu, "gelu_tanh": _exact_gelu_tanh,
    "tanh": np.tanh, "mish": lambda x: np.asarray(x * np.tanh(_exact_softplus(x))), "softplus": _exact_softplus,
    "silu_slope": _exact_silu_slope, "gelu_slope": _exact_gelu_slope, "gelu_tanh_slope": _exact_gelu_tanh_slope,
    "tanh_slope": lambda x: np.asarray(1 / np.cosh(x) ** 2),
    "sigmoid_slope": lambda x: np.asarray(_sigmoid(x) * _sigmoid(-x)), "mish_slope": _exact_mish_slope,
}  # fmt: skip
