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


@np.errstate(all="ignore")
def activated(function: str, parameter: float | None, x: RealArray) -> RealArray:
    """f(x) of a name of `ulam_kernels.networks.FUNCTIONS`."""
    if function in ("leaky_relu", "elu"):
        slope = x.dtype.type(parameter)
        return np.where(x < 0, mul(slope, x if function == "leaky_relu" else expm1(x)), x)
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


def _exact_gelu(x: RealArray) -> RealArray:
    return np.asarray(0.5 * x * np.vectorize(math.erfc, otypes=[float])(-x / math.sqrt(2)))


def _exact_gelu_tanh(x: RealArray) -> RealArray:
    return np.asarray(x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def _exact_softplus(x: RealArray) -> RealArray:
    return np.asarray(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))


Formulas = dict[str, Callable[[RealArray], RealArray]]
FLOAT32: Formulas = {
    "identity": np.array, "silu": _silu, "relu": _relu, "gelu": _gelu, "gelu_tanh": _gelu_tanh, "tanh": _tanh,
    "sigmoid": _sigmoid, "mish": _mish, "softplus": _softplus,
}  # fmt: skip
EXACT: Formulas = FLOAT32 | {
    "silu": lambda x: np.asarray(x / (1 + np.exp(-x))), "gelu": _exact_gelu, "gelu_tanh": _exact_gelu_tanh,
    "tanh": np.tanh, "mish": lambda x: np.asarray(x * np.tanh(_exact_softplus(x))), "softplus": _exact_softplus,
}  # fmt: skip
