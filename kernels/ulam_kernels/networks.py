"""A small network as a list of instructions, which `ulam_kernels.walk` evaluates inside a chain's walk over rows.

Values are float32 vectors, one per chain; value 0 is the input. Every instruction writes one value, once, from values
written before. Each operation is rounded once, in a fixed order, so that a chain has the same bits in every batch:

    Linear      out_j = 0, then fma(x_k, w_jk, out_j) over its inputs in order, k ascending: one accumulator
                (precision "bf16_dot": of x rounded to bf16, in pairs, the odd k first; denormals are zeros);
                at last out_j + start_j for each operand of the start, if any: small products are not rounded at
                the size of a large start
    Unary       out_j = f(x_j), of `csrc/include/ulam/activations.h`
    Binary      out_j = a_j + b_j, a_j - b_j or a_j b_j
    LayerNorm   out_j = (x_j - mean) / sqrt(var + eps), then weight and bias: fma(out_j, weight_j, bias_j)
    LayerNormGradient   out_j = (h_j - mean(h) - y_j mean(h y)) / sqrt(var + eps): its derivative, h = gradient weight

What depends on time alone is computed once per row (operands of kind "row"), what depends on the conditioning alone
once per chain (kind "chain").
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch

from ulam_kernels.arguments import choice, described, whole
from ulam_kernels.instructions import DEFAULTS as DEFAULTS
from ulam_kernels.instructions import FUNCTIONS as FUNCTIONS
from ulam_kernels.instructions import KINDS as KINDS
from ulam_kernels.instructions import MAX_INSTRUCTIONS as MAX_INSTRUCTIONS
from ulam_kernels.instructions import MAX_VECTOR as MAX_VECTOR
from ulam_kernels.instructions import MAX_WIDTH as MAX_WIDTH
from ulam_kernels.instructions import OPERATIONS as OPERATIONS
from ulam_kernels.instructions import SLOPES as SLOPES
from ulam_kernels.instructions import Binary as Binary
from ulam_kernels.instructions import Instruction as Instruction
from ulam_kernels.instructions import LayerNorm as LayerNorm
from ulam_kernels.instructions import LayerNormGradient as LayerNormGradient
from ulam_kernels.instructions import Linear as Linear
from ulam_kernels.instructions import Operand as Operand
from ulam_kernels.instructions import Unary as Unary
from ulam_kernels.instructions import as_tuple, assign, floats, operands_of, values_of

PRECISIONS = ("float32", "bf16", "bf16_dot", "tf32x3")
TF32X3 = 3  # of them; float32 for native code
MAX_INPUTS = 256
LINEAR, UNARY, BINARY, LAYER_NORM, LAYER_NORM_GRADIENT = range(5)  # of an instruction's code
HEADER, STRIDE = 8, 12


@dataclass(frozen=True, eq=False)
class Network:
    """A network of small vectors; immutable, and checked here.

    Args:
        inputs: n, the width of value 0: 1 to 256.
        widths: that of each value, 1 to 512.
        instructions: 1 to 128, in order.
        constants: ``[K]`` float32, for operands of kind "constant"; copied.
        row_width, chain_width: those of the vectors of a row and of a chain.
        output: the number of the value that is the network's output.
        output_width: n, or 2 n with learned variances; by default the width of the output, which it must be.
        precision: "float32"; "bf16", to which matrices are rounded here, all else as before: few chains, which wait
            for weights, are then faster; or "bf16_dot", to which what they are multiplied with is rounded as well, so
            that processors with AVX512_BF16 multiply pairs: faster at many chains on AMD's, slower on Intel's and
            without. All three have the same bits on every CPU. "tf32x3" is float32, by tensor cores where Triton runs;
            Triton rounds x in "bf16" too.
            Errors, rms over that of the output, median and worst of 40 random networks of depth 1 to 4: float32 3e-7
            and 1e-6, "bf16" 1.8e-3 and 3.7e-3, "bf16_dot" 2.6e-3 and 5.2e-3.
        energy: the number of a value of width 1 that `evaluate_network` gives beside the output, or None.

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
    energy: int | None = None

    def __post_init__(self) -> None:
        choice(self.precision, "precision", PRECISIONS)
        n = whole(self.inputs, "inputs", 1, MAX_INPUTS)
        widths = tuple(whole(width, "widths", 1, MAX_WIDTH) for width in as_tuple(self, "widths"))
        instructions = as_tuple(self, "instructions")
        if not 1 <= len(instructions) <= MAX_INSTRUCTIONS:
            raise ValueError(f"instructions: got {len(instructions)}, expected 1 to {MAX_INSTRUCTIONS}")
        if not widths or widths[0] != n:
            raise ValueError(f"widths: got {list(widths[:1])} for value 0, expected [{n}] like inputs")
        if len(widths) != 1 + len(instructions):
            raise ValueError(f"widths: got {len(widths)}, expected one for the input and each instruction's value")
        assign(self, inputs=n, widths=widths, constants=floats(self.constants, "constants", 1))
        for name in ("row_width", "chain_width"):
            assign(self, **{name: whole(getattr(self, name), name, 0, MAX_VECTOR)})
        written = {0}
        for number, instruction in enumerate(instructions):
            self._check(instruction, f"instructions[{number}]", written)
            written.add(instruction.out)
        if self.precision in ("bf16", "bf16_dot"):
            assign(self, instructions=tuple(_rounded(instruction) for instruction in instructions))
        output = whole(self.output, "output", 0, len(widths) - 1)
        wide = widths[output] if self.output_width is None else whole(self.output_width, "output_width", 1, MAX_WIDTH)
        if wide not in (n, 2 * n) or widths[output] != wide:
            raise ValueError(f"output: got a value of width {widths[output]}, expected {n} or {2 * n} for {n} inputs")
        assign(self, output=output, output_width=wide)
        if self.energy is not None:
            assign(self, energy=whole(self.energy, "energy", 0, len(widths) - 1))
            if widths[self.energy] != 1:
                raise ValueError(f"energy: got a value of width {widths[self.energy]}, expected one of width 1")

    def _check(self, instruction: Any, name: str, written: set[int]) -> None:
        if not isinstance(instruction, Instruction):
            kinds = "Linear, Unary, Binary, LayerNorm or LayerNormGradient"
            raise TypeError(f"{name}: got {described(instruction)}, expected {kinds}")
        out = instruction.out
        if out in written or out >= len(self.widths):
            raise ValueError(f"{name}: got out = {out}, expected a value below {len(self.widths)} not written before")
        width = self.widths[out]
        for value in values_of(instruction):
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
        for operand in operands_of(instruction):
            if operand.kind != "value" and operand.index + width > lengths[operand.kind]:
                came = f"{operand.kind} elements {operand.index} to {operand.index + width}"
                raise ValueError(f"{name}: got {came}, expected them within {lengths[operand.kind]}")

    @property
    def learned(self) -> bool:
        """Whether the output holds m, then v."""
        return self.output_width != self.inputs

    @cached_property
    def told_by_chain(self) -> Network:
        """The same network, of which a chain's vector holds its own numbers and then those of its row.

        So one call of `evaluate_network` serves chains at rows of their own; no sum changes its order.
        """

        def moved(part: Any) -> Any:
            if isinstance(part, tuple):
                return tuple(map(moved, part))
            row = isinstance(part, Operand) and part.kind == "row"
            return Operand("chain", self.chain_width + part.index) if row else part

        def instruction(one: Any) -> Any:
            return replace(one, **{part.name: moved(getattr(one, part.name)) for part in fields(one)})

        instructions, both = tuple(map(instruction, self.instructions)), self.chain_width + self.row_width
        return replace(self, instructions=instructions, row_width=0, chain_width=both)

    @cached_property
    def code(self) -> tuple[int, ...]:
        """The network in whole numbers, for native code.

        It is inputs, row_width, chain_width, output, count of constants, count of instructions, number of the
        precision, energy or -1, the widths, and then for each instruction twelve numbers: its kind, out, and

            LINEAR       input, second input or -1, offset of the weights, of the second ones, start, second start
            UNARY        value, function, offset of its parameter
            BINARY       function, a, b
            LAYER_NORM   value, offset of eps, weight, bias
            LAYER_NORM_GRADIENT   value, offset of eps, weight, gradient

        with operands as two numbers, kind (-1: none) and index; offsets are in the data.
        """
        return _Encoder(self).code

    @cached_property
    def data(self) -> torch.Tensor:
        """The numbers that the code points to: the constants, weights and parameters, float32 ``[K]``."""
        return torch.cat(_Encoder(self).data)


class _Encoder:
    def __init__(self, network: Network) -> None:
        self.data = [network.constants]
        self.length = len(network.constants)
        head = (network.inputs, network.row_width, network.chain_width, network.output, self.length)
        energy = -1 if network.energy is None else network.energy
        code = [*head, len(network.instructions), PRECISIONS.index(network.precision) % TF32X3, energy, *network.widths]
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
        kind, last = LAYER_NORM_GRADIENT, getattr(instruction, "gradient", None)
        if isinstance(instruction, LayerNorm):
            kind, last = LAYER_NORM, instruction.bias
        eps = self._put(torch.tensor([instruction.eps]))
        return [kind, instruction.out, instruction.value, eps, *_pair(instruction.weight), *_pair(last)]

    def _put(self, tensor: torch.Tensor) -> int:
        at = self.length
        self.data.append(tensor.flatten())
        self.length += tensor.numel()
        return at


def _rounded(instruction: Instruction) -> Instruction:
    if not isinstance(instruction, Linear):
        return instruction
    return replace(instruction, weights=tuple(_to_bf16(weight) for weight in instruction.weights))


def _to_bf16(weight: torch.Tensor) -> torch.Tensor:
    """Rounded to the nearest; numbers that are denormal are 0."""
    rounded = weight.bfloat16().float()
    return torch.where(weight.abs() < torch.finfo(torch.float32).tiny, 0.0, rounded)


def _pair(operand: Operand | None) -> tuple[int, int]:
    return (-1, 0) if operand is None else (KINDS.index(operand.kind), operand.index)
