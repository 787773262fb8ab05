"""The instructions of a small network, and what they read: see :mod:`ulam_kernels.networks`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from ulam_kernels.arguments import choice, described, real, whole
from ulam_kernels.validation import check_data

KINDS = ("value", "row", "chain", "constant")
# leaky_relu and elu have a parameter: the slope below 0, and alpha. NAME_slope is the derivative of NAME.
FUNCTIONS = (
    "identity",
    "silu",
    "relu",
    "gelu",
    "gelu_tanh",
    "tanh",
    "sigmoid",
    "mish",
    "softplus",
    "leaky_relu",
    "elu",
    "silu_slope",
    "relu_slope",
    "gelu_slope",
    "gelu_tanh_slope",
    "tanh_slope",
    "sigmoid_slope",
    "mish_slope",
    "leaky_relu_slope",
    "elu_slope",
)
DEFAULTS = {"leaky_relu": 0.01, "elu": 1.0, "leaky_relu_slope": 0.01, "elu_slope": 1.0}
# The derivative of each that is not constant: that of softplus is sigmoid.
SLOPES = {name: f"{name}_slope" for name in FUNCTIONS if f"{name}_slope" in FUNCTIONS} | {"softplus": "sigmoid"}
OPERATIONS = ("add", "sub", "mul")
MAX_WIDTH, MAX_INSTRUCTIONS, MAX_VECTOR = 512, 128, 1 << 16


@dataclass(frozen=True)
class Operand:
    """A vector that an instruction reads: as wide as what it computes.

    Args:
        kind: "value", "row", "chain" or "constant".
        index: the number of a value, or the offset of the first element in the row's vector, in the chain's, or in the
            constants.
    """

    kind: str
    index: int

    def __post_init__(self) -> None:
        choice(self.kind, "kind", KINDS)
        object.__setattr__(self, "index", whole(self.index, "index", 0, MAX_VECTOR))


@dataclass(frozen=True, eq=False)
class Linear:
    """out_j = sum over the inputs and k of x_k w_jk, from 0, and then + start_j.

    Args:
        inputs: one or two numbers of values.
        weights: a float32 tensor ``[width of out, width of the input]`` for each; copied.
        start: up to two operands of kind "row", "chain" or "constant", added to the sum in order; none: nothing is.
    """

    out: int
    inputs: tuple[int, ...]
    weights: tuple[torch.Tensor, ...]
    start: tuple[Operand, ...] = ()

    def __post_init__(self) -> None:
        inputs, weights, start = (as_tuple(self, name) for name in ("inputs", "weights", "start"))
        if not 1 <= len(inputs) <= 2:
            raise ValueError(f"inputs: got {len(inputs)} values, expected 1 or 2")
        if len(weights) != len(inputs):
            raise ValueError(f"weights: got {len(weights)} tensors, expected one for each of {len(inputs)} inputs")
        if len(start) > 2:
            raise ValueError(f"start: got {len(start)} operands, expected at most 2")
        for operand in start:
            if operand_of(operand, "start").kind == "value":
                raise ValueError("start: got an operand of kind 'value', expected 'row', 'chain' or 'constant'")
        assign(self, inputs=tuple(_value(v, "inputs") for v in inputs), out=_value(self.out, "out"))
        assign(self, weights=tuple(floats(w, "weights", 2) for w in weights))


@dataclass(frozen=True)
class Unary:
    """out_j = function(value_j); the parameter is the slope of leaky_relu below 0, or alpha of elu."""

    out: int
    function: str
    value: int
    parameter: float | None = None

    def __post_init__(self) -> None:
        choice(self.function, "function", FUNCTIONS)
        default = DEFAULTS.get(self.function)
        if self.parameter is not None and default is None:
            raise ValueError(f"parameter: got {described(self.parameter)}, expected None: {self.function} has none")
        given = default if self.parameter is None else real(self.parameter, "parameter")
        assign(self, out=_value(self.out, "out"), value=_value(self.value, "value"), parameter=given)


@dataclass(frozen=True)
class Binary:
    """out_j = a_j + b_j ("add"), a_j - b_j ("sub") or a_j b_j ("mul"), of operands of any kind."""

    out: int
    function: str
    a: Operand
    b: Operand

    def __post_init__(self) -> None:
        choice(self.function, "function", OPERATIONS)
        operand_of(self.a, "a"), operand_of(self.b, "b")
        assign(self, out=_value(self.out, "out"))


@dataclass(frozen=True)
class LayerNorm:
    """out_j = (x_j - mean) / sqrt(var + eps), times weight, plus bias: operands of kind "constant", or None.

    The mean is a sum by lanes k mod 16 in order of k, lane l then adds lane l + w for w = 8, 4, 2, 1, divided by the
    width; the variance is that of fma(d, d, .) of the differences d to the mean.
    """

    out: int
    value: int
    weight: Operand | None = None
    bias: Operand | None = None
    eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("weight", "bias"):
            operand = getattr(self, name)
            if operand is not None and operand_of(operand, name).kind != "constant":
                raise ValueError(f"{name}: got an operand of kind {operand.kind!r}, expected 'constant' or None")
        eps = real(self.eps, "eps")
        if eps < 0:
            raise ValueError(f"eps: got {eps}, expected a number of at least 0")
        assign(self, out=_value(self.out, "out"), value=_value(self.value, "value"), eps=eps)


@dataclass(frozen=True)
class LayerNormGradient:
    """out: the gradient in x, ``value``, of LayerNorm(x) without its bias, from the ``gradient`` in its output.

    With y and the inverse deviation r as LayerNorm has them, and h = gradient times weight:
    out_j = r (h_j - mean(h) - y_j mean(h y)), sums in the order of LayerNorm's, by mul(r, fma(-mean(h y), y_j, h_j -
    mean(h))).
    """

    out: int
    value: int
    gradient: Operand
    weight: Operand | None = None
    eps: float = 1e-5

    def __post_init__(self) -> None:
        operand_of(self.gradient, "gradient")
        if self.weight is not None and operand_of(self.weight, "weight").kind != "constant":
            raise ValueError(f"weight: got an operand of kind {self.weight.kind!r}, expected 'constant' or None")
        eps = real(self.eps, "eps")
        if eps < 0:
            raise ValueError(f"eps: got {eps}, expected a number of at least 0")
        assign(self, out=_value(self.out, "out"), value=_value(self.value, "value"), eps=eps)


Instruction = Linear | Unary | Binary | LayerNorm | LayerNormGradient


def values_of(instruction: Instruction) -> list[int]:
    """The numbers of the values that it reads."""
    if isinstance(instruction, Linear):
        return list(instruction.inputs)
    own = [] if isinstance(instruction, Binary) else [instruction.value]
    return own + [operand.index for operand in operands_of(instruction) if operand.kind == "value"]


def operands_of(instruction: Instruction) -> list[Operand]:
    if isinstance(instruction, Linear):
        return list(instruction.start)
    names = {Binary: ("a", "b"), LayerNorm: ("weight", "bias"), LayerNormGradient: ("weight", "gradient")}
    found = (getattr(instruction, name) for name in names.get(type(instruction), ()))
    return [operand for operand in found if operand is not None]


def assign(instance: Any, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(instance, name, value)


def as_tuple(instance: Any, name: str) -> tuple[Any, ...]:
    """The field as a tuple, kept there."""
    given = getattr(instance, name)
    if not isinstance(given, (tuple, list)):
        raise TypeError(f"{name}: got {described(given)}, expected a tuple")
    assign(instance, **{name: tuple(given)})
    return tuple(given)


def _value(number: object, name: str) -> int:
    return whole(number, name, 0, MAX_INSTRUCTIONS)


def operand_of(operand: object, name: str) -> Operand:
    if not isinstance(operand, Operand):
        raise TypeError(f"{name}: got {described(operand)}, expected an Operand")
    return operand


def floats(tensor: object, name: str, dimensions: int) -> torch.Tensor:
    """A copy on the CPU of finite float32 numbers."""
    if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float32 or tensor.dim() != dimensions:
        shape = "[K]" if dimensions == 1 else "[out, in]"
        raise TypeError(f"{name}: got {described(tensor)}, expected a float32 tensor {shape}")
    check_data(tensor, name)
    copied = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    if not math.isfinite(copied.double().sum().item()):
        raise ValueError(f"{name}: got numbers that are not finite, expected finite ones")
    return copied
