"""A small network as a list of instructions, which `ulam_kernels.walk` evaluates inside a chain's walk over rows.

Values are float32 vectors, one per chain; value 0 is the input. Every instruction writes one value, once, from values
written before. Each operation is rounded once, in a fixed order, so that a chain has the same bits in every batch:

    Linear      out_j = start_j, then fma(x_k, w_jk, out_j) over its inputs in order, k ascending: one accumulator
    Unary       out_j = f(x_j), of `csrc/include/ulam/activations.h`
    Binary      out_j = a_j + b_j, a_j - b_j or a_j b_j
    LayerNorm   out_j = (x_j - mean) / sqrt(var + eps), then weight and bias: fma(out_j, weight_j, bias_j)

What depends on time alone is computed once per row (operands of kind "row"), what depends on the conditioning alone
once per chain (kind "chain").
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from ulam_kernels.arguments import choice, described, real, whole
from ulam_kernels.validation import check_data

KINDS = ("value", "row", "chain", "constant")
# leaky_relu and elu have a parameter: the slope below 0, and alpha.
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
)
DEFAULTS = {"leaky_relu": 0.01, "elu": 1.0}
PRECISIONS = ("float32", "bf16")
OPERATIONS = ("add", "sub", "mul")
MAX_WIDTH, MAX_INPUTS, MAX_INSTRUCTIONS, MAX_VECTOR = 512, 256, 64, 1 << 16
LINEAR, UNARY, BINARY, LAYER_NORM = range(4)  # of an instruction's code


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
    """out_j = start_j + sum over the inputs and k of x_k w_jk.

    Args:
        inputs: one or two numbers of values.
        weights: a float32 tensor ``[width of out, width of the input]`` for each; copied.
        start: up to two operands of kind "row", "chain" or "constant", added in order; none: 0.
    """

    out: int
    inputs: tuple[int, ...]
    weights: tuple[torch.Tensor, ...]
    start: tuple[Operand, ...] = ()

    def __post_init__(self) -> None:
        inputs, weights, start = (_tuple(self, name) for name in ("inputs", "weights", "start"))
        if not 1 <= len(inputs) <= 2:
            raise ValueError(f"inputs: got {len(inputs)} values, expected 1 or 2")
        if len(weights) != len(inputs):
            raise ValueError(f"weights: got {len(weights)} tensors, expected one for each of {len(inputs)} inputs")
        if len(start) > 2:
            raise ValueError(f"start: got {len(start)} operands, expected at most 2")
        for operand in start:
            if _operand(operand, "start").kind == "value":
                raise ValueError("start: got an operand of kind 'value', expected 'row', 'chain' or 'constant'")
        _set(self, inputs=tuple(_value(v, "inputs") for v in inputs), out=_value(self.out, "out"))
        _set(self, weights=tuple(_floats(w, "weights", 2) for w in weights))


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
        _set(self, out=_value(self.out, "out"), value=_value(self.value, "value"), parameter=given)


@dataclass(frozen=True)
class Binary:
    """out_j = a_j + b_j ("add"), a_j - b_j ("sub") or a_j b_j ("mul"), of operands of any kind."""

    out: int
    function: str
    a: Operand
    b: Operand

    def __post_init__(self) -> None:
        choice(self.function, "function", OPERATIONS)
        _operand(self.a, "a"), _operand(self.b, "b")
        _set(self, out=_value(self.out, "out"))


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
            if operand is not None and _operand(operand, name).kind != "constant":
                raise ValueError(f"{name}: got an operand of kind {operand.kind!r}, expected 'constant' or None")
        eps = real(self.eps, "eps")
        if eps < 0:
            raise ValueError(f"eps: got {eps}, expected a number of at least 0")
        _set(self, out=_value(self.out, "out"), value=_value(self.value, "value"), eps=eps)


Instruction = Linear | Unary | Binary | LayerNorm


@dataclass(frozen=True, eq=False)
class Network:
    """A network of small vectors; immutable, and checked here.

    Args:
        inputs: n, the width of value 0: 1 to 256.
        widths: that of each value, 1 to 512.
        instructions: 1 to 64, in order.
        constants: ``[K]`` float32, for operands of kind "constant"; copied.
        row_width, chain_width: those of the vectors of a row and of a chain.
        output: the number of the value that is the network's output.
        output_width: n, or 2 n with learned variances; by default the width of the output, which it must be.
        precision: of the matrices: "float32", or "bf16", to which they are rounded here. All else is float32 in either
            case, with bits as well defined; few chains, which wait for weights, are then faster.

    Raises:
        TypeError, ValueError: what does not fit, in one line that names it.
    """

    inputs: int
    widths: tuple[int, ...]
    instructions: tuple[Instruction, ...]
    constants: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    row_width: int = 0
    chain_width: int = 0
    output: int = 1
    output_width: int | None = None
    precision: str = "float32"

    def __post_init__(self) -> None:
        choice(self.precision, "precision", PRECISIONS)
        n = whole(self.inputs, "inputs", 1, MAX_INPUTS)
        widths = tuple(whole(width, "widths", 1, MAX_WIDTH) for width in _tuple(self, "widths"))
        instructions = _tuple(self, "instructions")
        if not 1 <= len(instructions) <= MAX_INSTRUCTIONS:
            raise ValueError(f"instructions: got {len(instructions)}, expected 1 to {MAX_INSTRUCTIONS}")
        if not widths or widths[0] != n:
            raise ValueError(f"widths: got {list(widths[:1])} for value 0, expected [{n}] like inputs")
        if len(widths) != 1 + len(instructions):
            raise ValueError(f"widths: got {len(widths)}, expected one for the input and each instruction's value")
        _set(self, inputs=n, widths=widths, constants=_floats(self.constants, "constants", 1))
        for name in ("row_width", "chain_width"):
            _set(self, **{name: whole(getattr(self, name), name, 0, MAX_VECTOR)})
        written = {0}
        for number, instruction in enumerate(instructions):
            self._check(instruction, f"instructions[{number}]", written)
            written.add(instruction.out)
        if self.precision == "bf16":
            _set(self, instructions=tuple(_rounded(instruction) for instruction in instructions))
        output = whole(self.output, "output", 0, len(widths) - 1)
        wide = widths[output] if self.output_width is None else whole(self.output_width, "output_width", 1, MAX_WIDTH)
        if wide not in (n, 2 * n) or widths[output] != wide:
            raise ValueError(f"output: got a value of width {widths[output]}, expected {n} or {2 * n} for {n} inputs")
        _set(self, output=output, output_width=wide)

    def _check(self, instruction: Any, name: str, written: set[int]) -> None:
        if not isinstance(instruction, Instruction):
            raise TypeError(f"{name}: got {described(instruction)}, expected Linear, Unary, Binary or LayerNorm")
        out = instruction.out
        if out in written or out >= len(self.widths):
            raise ValueError(f"{name}: got out = {out}, expected a value below {len(self.widths)} not written before")
        width = self.widths[out]
        for value in _values(instruction):
            if value not in written:
                raise ValueError(f"{name}: got value {value}, expected one that is written before")
            if not isinstance(instruction, Linear) and self.widths[value] != width:
                raise ValueError(f"{name}: got a value of width {self.widths[value]}, expected {width} like its out")
        if isinstance(instruction, Linear):
            for value, weight in zip(instruction.inputs, instruction.weights, strict=True):
                expected = [width, self.widths[value]]
                if list(weight.shape) != expected:
                    raise ValueError(f"{name}: got weights of shape {list(weight.shape)}, expected {expected}")
        lengths = {"row": self.row_width, "chain": self.chain_width, "constant": len(self.constants)}
        for operand in _operands(instruction):
            if operand.kind != "value" and operand.index + width > lengths[operand.kind]:
                came = f"{operand.kind} elements {operand.index} to {operand.index + width}"
                raise ValueError(f"{name}: got {came}, expected them within {lengths[operand.kind]}")

    @property
    def learned(self) -> bool:
        """Whether the output holds m, then v."""
        return self.output_width != self.inputs

    @cached_property
    def code(self) -> tuple[int, ...]:
        """The network in whole numbers, for native code.

        It is inputs, row_width, chain_width, output, count of constants, count of instructions, 1 for weights of
        bf16 or 0, the widths, and then for each instruction twelve numbers: its kind, out, and

            LINEAR       input, second input or -1, offset of the weights, of the second ones, start, second start
            UNARY        value, function, offset of its parameter
            BINARY       function, a, b
            LAYER_NORM   value, offset of eps, weight, bias

        with operands as two numbers, kind (-1: none) and index; offsets are in the data.
        """
        return _Encoder(self).code

    @cached_property
    def data(self) -> torch.Tensor:
        """The numbers that the code points to: the constants, weights and parameters, float32 ``[K]``."""
        return torch.cat(_Encoder(self).data)


HEADER, STRIDE = 7, 12


class _Encoder:
    def __init__(self, network: Network) -> None:
        self.data = [network.constants]
        self.length = len(network.constants)
        head = (network.inputs, network.row_width, network.chain_width, network.output, self.length)
        code = [*head, len(network.instructions), PRECISIONS.index(network.precision), *network.widths]
        for instruction in network.instructions:
            words = self._words(instruction)
            code += [*words, *[0] * (STRIDE - len(words))]
        self.code = tuple(code)

    def _words(self, instruction: Instruction) -> list[int]:
        if isinstance(instruction, Linear):
            inputs = [*instruction.inputs, -1][:2]
            offsets = [*(self._put(weight) for weight in instruction.weights), 0][:2]
            start = [number for operand in [*instruction.start, None, None][:2] for number in _pair(operand)]
            return [LINEAR, instruction.out, *inputs, *offsets, *start]
        if isinstance(instruction, Unary):
            parameter = self._put(torch.tensor([instruction.parameter or 0.0]))
            return [UNARY, instruction.out, instruction.value, FUNCTIONS.index(instruction.function), parameter]
        if isinstance(instruction, Binary):
            function = OPERATIONS.index(instruction.function)
            return [BINARY, instruction.out, function, *_pair(instruction.a), *_pair(instruction.b)]
        eps = self._put(torch.tensor([instruction.eps]))
        return [
            LAYER_NORM,
            instruction.out,
            instruction.value,
            eps,
            *_pair(instruction.weight),
            *_pair(instruction.bias),
        ]

    def _put(self, tensor: torch.Tensor) -> int:
        at = self.length
        self.data.append(tensor.flatten())
        self.length += tensor.numel()
        return at


def _rounded(instruction: Instruction) -> Instruction:
    if not isinstance(instruction, Linear):
        return instruction
    return replace(instruction, weights=tuple(weight.bfloat16().float() for weight in instruction.weights))


def _pair(operand: Operand | None) -> tuple[int, int]:
    return (-1, 0) if operand is None else (KINDS.index(operand.kind), operand.index)


def _values(instruction: Instruction) -> list[int]:
    """The numbers of the values that it reads."""
    if isinstance(instruction, Linear):
        return list(instruction.inputs)
    if isinstance(instruction, Binary):
        return [operand.index for operand in (instruction.a, instruction.b) if operand.kind == "value"]
    return [instruction.value]


def _operands(instruction: Instruction) -> list[Operand]:
    if isinstance(instruction, Linear):
        return list(instruction.start)
    a_and_b = {Binary: ("a", "b"), LayerNorm: ("weight", "bias")}.get(type(instruction), ())
    return [operand for name in a_and_b if (operand := getattr(instruction, name)) is not None]


def _set(instance: Any, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(instance, name, value)


def _tuple(instance: Any, name: str) -> tuple[Any, ...]:
    """The field as a tuple, kept there."""
    given = getattr(instance, name)
    if not isinstance(given, (tuple, list)):
        raise TypeError(f"{name}: got {described(given)}, expected a tuple")
    _set(instance, **{name: tuple(given)})
    return tuple(given)


def _value(number: object, name: str) -> int:
    return whole(number, name, 0, MAX_INSTRUCTIONS)


def _operand(operand: object, name: str) -> Operand:
    if not isinstance(operand, Operand):
        raise TypeError(f"{name}: got {described(operand)}, expected an Operand")
    return operand


def _floats(tensor: object, name: str, dimensions: int) -> torch.Tensor:
    """A copy on the CPU of finite float32 numbers."""
    if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float32 or tensor.dim() != dimensions:
        shape = "[K]" if dimensions == 1 else "[out, in]"
        raise TypeError(f"{name}: got {described(tensor)}, expected a float32 tensor {shape}")
    check_data(tensor, name)
    copied = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    if not math.isfinite(copied.double().sum().item()):
        raise ValueError(f"{name}: got numbers that are not finite, expected finite ones")
    return copied
