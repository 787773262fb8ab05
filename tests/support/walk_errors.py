"""How far a row of a walk can be from the exact one, by widths, depth, weights and precision.

Roundings are taken for independent and of mean 0, as in [Higham and Mary 2019]: their squares add, a sum of K numbers
is off by sqrt(K) u of its parts' root of squares where the worst case would be gamma_K, and a result within LAMBDA
times the root of all squares. Values and these roots e go through the network together, in float64:

    Linear      e^2 = W^2 e^2 + (K s^2 + r^2) W^2 (x^2 + e^2) over the K numbers of its inputs, then (u sum)^2 for each
                operand of its start. r is what rounding factors adds: 0 in float32, 2^-8 in bf16 (x alone: the
                weights are rounded already), 2^-20 in tf32x3. s is 2^-24, but 2^-22 on tensor cores, which cut sums
                off [Fasi 2021]; u = 2^-24 here and below
    Unary       e^2 = f'(x)^2 e^2 + (4 u)^2 (f(x)^2 + 1)
    Binary      e^2 = e_a^2 + e_b^2, or (a e_b)^2 + (b e_a)^2; and (u result)^2
    LayerNorm   the derivative of (x - mean) / sqrt(var + eps) times e, with W (u x)^2 more
"""

from __future__ import annotations

import numpy as np

from ulam_kernels.networks import Binary, LayerNorm, Linear, Network, Operand, Unary
from ulam_kernels.reference.activations import activated
from ulam_kernels.reference.arithmetic import RealArray
from ulam_kernels.reference.network import Vectors, evaluate
from ulam_kernels.table import C_NEXT, KM, LV_B, LV_M, MATRIX
from walk_cases import Walk

UNIT = 2.0**-24
SUMS = {"float32": UNIT, "tf32x3": 2.0**-22, "bf16": 2.0**-22}
FACTORS = {"float32": 0.0, "tf32x3": 2.0**-20, "bf16": 2.0**-8}
PRECISIONS = tuple(FACTORS)
LAMBDA = 6.0
LARGEST_NORMAL = 7.0  # of noise-v1: sqrt(66 ln 2) at most


def mean(x: RealArray) -> RealArray:
    return np.asarray(x.mean(1, keepdims=True))


class Bounded:
    """Values of a network in float64, and the squares of their errors, one instruction after another."""

    def __init__(self, network: Network, x: RealArray, vectors: Vectors, precision: str) -> None:
        self.vectors, self.precision = vectors, precision
        self.values, self.squares = {0: x}, {0: np.zeros_like(x)}
        for one in network.instructions:
            width = network.widths[one.out]
            rule = {Linear: self.linear, Unary: self.unary, Binary: self.binary, LayerNorm: self.layer_norm}[type(one)]
            self.values[one.out], self.squares[one.out] = rule(one, width)
        self.output, self.error = self.values[network.output], np.sqrt(self.squares[network.output])
        assert np.allclose(self.output, evaluate(network, x, vectors.row, vectors.chain), rtol=1e-9, atol=1e-9)

    def read(self, operand: Operand, width: int) -> tuple[RealArray, RealArray]:
        value = self.vectors.of(operand, width, self.values)
        return value, self.squares[operand.index] if operand.kind == "value" else np.zeros_like(value)

    def linear(self, one: Linear, width: int) -> tuple[RealArray, RealArray]:
        total = np.zeros((len(self.values[0]), width))
        parts, carried, count = np.zeros_like(total), np.zeros_like(total), 0
        for value, weight in zip(one.inputs, one.weights, strict=True):
            w, x, e = weight.double().numpy(), self.values[value], self.squares[value]
            total, carried = total + x @ w.T, carried + e @ (w**2).T
            parts, count = parts + (x**2 + e) @ (w**2).T, count + x.shape[1]
        square = carried + (count * SUMS[self.precision] ** 2 + FACTORS[self.precision] ** 2) * parts
        for operand in one.start:
            total = total + self.vectors.of(operand, width, self.values)
            square = square + (UNIT * total) ** 2
        return total, square

    def unary(self, one: Unary, width: int) -> tuple[RealArray, RealArray]:
        f = lambda x: activated(one.function, one.parameter, x)  # noqa: E731
        x, h = self.values[one.value], 1e-4
        slope, value = (f(x + h) - f(x - h)) / (2 * h), f(x)
        return value, slope**2 * self.squares[one.value] + (4 * UNIT) ** 2 * (value**2 + 1)

    def binary(self, one: Binary, width: int) -> tuple[RealArray, RealArray]:
        (a, e), (b, d) = (self.read(operand, width) for operand in (one.a, one.b))
        value = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[one.function](a, b)
        return value, (a**2 * d + b**2 * e if one.function == "mul" else e + d) + (UNIT * value) ** 2

    def layer_norm(self, one: LayerNorm, width: int) -> tuple[RealArray, RealArray]:
        x = self.values[one.value]
        e = self.squares[one.value] + width * UNIT**2 * (x**2 + mean(x**2))
        scale = 1 / np.sqrt(mean((x - mean(x)) ** 2) + one.eps)
        y = (x - mean(x)) * scale
        square = scale**2 * (e + mean(e) / width + y**2 * mean(y**2 * e) / width) + (4 * UNIT * y) ** 2
        weight, bias = (None if o is None else self.read(o, width)[0] for o in (one.weight, one.bias))
        y, square = (y, square) if weight is None else (y * weight, square * weight**2)
        y = y if bias is None else y + bias
        return y, square + (UNIT * y) ** 2


def of_a_row(walk: Walk, precision: str) -> RealArray:
    """``[B, n]``: how far registers and net_in of two backends may be apart after one row of a walk.

    Errors of the outputs times the row's coefficients; clips have no slope above 1, and |z| is at most 7.
    """
    network, given, rows = walk.network, walk.given, walk.cursor[0].numpy()
    n, x = network.inputs, (walk.states[0] if walk.net_in is None else walk.net_in)
    row = given["row_vectors"].double().numpy()[rows]
    found = []
    for name in ("chain_vectors", "uncond_vectors"):
        if name in given:
            vectors = Vectors(row, given[name].double().numpy(), network.constants.double().numpy())
            found.append(Bounded(network, x.flatten(1).double().numpy(), vectors, precision))
    error = found[0].error[:, :n]
    if len(found) == 2:
        w = given["guidance"].double().numpy()[:, None]
        error = np.hypot(w * error, (1 - w) * found[1].error[:, :n])
    coef = walk.table.coef.double().numpy()[rows]
    registers = walk.table.registers
    matrix = np.abs(coef[:, MATRIX:].reshape(len(rows), registers, registers + 3, 1))
    by_output = (matrix[:, :, -3] * np.abs(coef[:, KM, None, None]) + matrix[:, :, -2]) * error[:, None]
    by_noise = np.zeros_like(by_output)
    if network.learned:
        lv_m, lv_b = np.abs(coef[:, LV_M, None]), coef[:, LV_B, None]
        scale = np.exp(coef[:, LV_M, None] * found[0].output[:, n:] + lv_b)
        by_noise = matrix[:, :, -1] * (LARGEST_NORMAL * scale * lv_m * found[0].error[:, n:])[:, None]
    each = np.hypot(by_output, by_noise).max(1)
    return np.asarray(LAMBDA * np.maximum(1, np.abs(coef[:, C_NEXT, None])) * each)
