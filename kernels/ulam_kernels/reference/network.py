"""A small network on the host, operation by operation, for all chains at once: see :mod:`ulam_kernels.networks`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ulam_kernels.networks import Binary, LayerNorm, LayerNormGradient, Linear, Network, Operand, Unary
from ulam_kernels.reference.activations import activated
from ulam_kernels.reference.arithmetic import RealArray, fma, mul, sub

LANES = 16  # of the sums of LayerNorm


@dataclass(frozen=True)
class Vectors:
    """What instructions read beside values: ``[B, row_width]`` and ``[B, chain_width]``, or None."""

    row: RealArray | None
    chain: RealArray | None
    constants: RealArray

    def of(self, operand: Operand, width: int, values: dict[int, RealArray]) -> RealArray:
        """``[B, width]``, or ``[1, width]`` of constants."""
        if operand.kind == "value":
            return values[operand.index]
        if operand.kind == "constant":
            return self.constants[None, operand.index : operand.index + width]
        vectors = self.row if operand.kind == "row" else self.chain
        assert vectors is not None, "checked above the backends"
        return vectors[:, operand.index : operand.index + width]


def evaluate(network: Network, x: RealArray, row: RealArray | None, chain: RealArray | None) -> RealArray:
    """The output ``[B, output_width]`` at ``x`` ``[B, n]``, in the type of x."""
    return values_of(network, x, row, chain)[network.output]


def values_of(network: Network, x: RealArray, row: RealArray | None, chain: RealArray | None) -> dict[int, RealArray]:
    """All values ``[B, width]`` at ``x`` ``[B, n]``, by their numbers."""
    vectors = Vectors(row, chain, network.constants.numpy().astype(x.dtype))
    values = {0: x}
    for instruction in network.instructions:
        width = network.widths[instruction.out]
        if isinstance(instruction, Linear):
            product = _dots if network.precision == "bf16_dot" else _products
            value = _linear(instruction, width, values, vectors, product)
        elif isinstance(instruction, Unary):
            value = activated(instruction.function, instruction.parameter, values[instruction.value])
        elif isinstance(instruction, Binary):
            a, b = (vectors.of(operand, width, values) for operand in (instruction.a, instruction.b))
            value = np.broadcast_to({"add": _add, "sub": sub, "mul": mul}[instruction.function](a, b), (len(x), width))
        elif isinstance(instruction, LayerNormGradient):
            value = _layer_norm_gradient(instruction, width, values, vectors)
        else:
            value = _layer_norm(instruction, width, values, vectors)
        values[instruction.out] = value
    return values


Product = Callable[[RealArray, RealArray, RealArray], RealArray]


def _linear(linear: Linear, width: int, values: dict[int, RealArray], vectors: Vectors, product: Product) -> RealArray:
    x = values[linear.inputs[0]]
    total: RealArray = np.zeros((len(x), width), dtype=x.dtype)
    for value, weight in zip(linear.inputs, linear.weights, strict=True):
        total = product(values[value], weight.numpy().astype(total.dtype), total)
    for operand in linear.start:
        total = _add(total, vectors.of(operand, width, values))
    return total


def _products(x: RealArray, w: RealArray, total: RealArray) -> RealArray:
    for k in range(x.shape[1]):
        total = fma(x[:, k, None], w[None, :, k], total)
    return total


def _dots(x: RealArray, w: RealArray, total: RealArray) -> RealArray:
    """Products of pairs of bf16 numbers: k = 1, 0, 3, 2, ..., with a zero where their number is odd."""
    odd = x.shape[1] % 2
    x, w = (np.pad(to_bf16(side), ((0, 0), (0, odd))) for side in (x, w))
    for k in range(x.shape[1]):
        total = without_denormals(fma(x[:, k ^ 1, None], w[None, :, k ^ 1], total))
    return total


def without_denormals(x: RealArray) -> RealArray:
    """Zeros of their sign in place of float32's denormal numbers."""
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(x.dtype.type(0), x), x)


@np.errstate(all="ignore")
def to_bf16(x: RealArray) -> RealArray:
    """The nearest bf16 number, with an even last bit where two are as near; denormals are zeros."""
    bits = without_denormals(x.astype(np.float32)).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000).view(np.float32)
    return np.where(x != x, x, rounded).astype(x.dtype)


@np.errstate(all="ignore")
def _normalised(x: RealArray, eps: float) -> tuple[RealArray, RealArray]:
    """x less its mean, times the inverse of its deviation, and that inverse ``[B, 1]``."""
    real = x.dtype.type
    d = sub(x, (_sum(x, np.ones_like(x)) / real(x.shape[1]))[:, None])
    variance = _sum(d, d) / real(x.shape[1])
    inverse = (real(1) / np.sqrt(_add(variance, real(eps))))[:, None]
    return mul(d, inverse), inverse


def _layer_norm(norm: LayerNorm, width: int, values: dict[int, RealArray], vectors: Vectors) -> RealArray:
    y, _ = _normalised(values[norm.value], norm.eps)
    weight, bias = (None if o is None else vectors.of(o, width, values) for o in (norm.weight, norm.bias))
    if weight is None:
        return y if bias is None else _add(y, bias)
    return mul(y, weight) if bias is None else fma(y, weight, bias)


@np.errstate(all="ignore")
def _layer_norm_gradient(
    norm: LayerNormGradient, width: int, values: dict[int, RealArray], vectors: Vectors
) -> RealArray:
    y, inverse = _normalised(values[norm.value], norm.eps)
    h = np.broadcast_to(vectors.of(norm.gradient, width, values), y.shape)
    if norm.weight is not None:
        h = mul(h, vectors.of(norm.weight, width, values))
    real = y.dtype.type
    mean, along = ((_sum(h, other) / real(width))[:, None] for other in (np.ones_like(h), y))
    return mul(inverse, fma(-along, y, sub(h, mean)))


def _sum(x: RealArray, y: RealArray) -> RealArray:
    """``[B]``: the sum of x y, by lanes k mod 16, then lane l adds lane l + w for w = 8, 4, 2, 1."""
    lanes: RealArray = np.zeros((len(x), LANES), dtype=x.dtype)
    for first in range(0, x.shape[1], LANES):
        part = slice(first, min(first + LANES, x.shape[1]))
        here = slice(0, part.stop - part.start)
        lanes[:, here] = fma(x[:, part], y[:, part], lanes[:, here])
    for w in (8, 4, 2, 1):
        lanes = _add(lanes[:, :w], lanes[:, w : 2 * w])
    return lanes[:, 0]


@np.errstate(all="ignore")
def _add(a: RealArray, b: RealArray | np.floating[np._typing.NBitBase]) -> RealArray:
    total: RealArray = np.add(a, b)
    return total
