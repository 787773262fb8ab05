"""The gradient of an energy of small layers, as instructions: the layers' own reverse pass, written out.

From the energy back to x every value v gets g_v = dL/dv, L = scale E, as the sum over the instructions that read v:

    Linear      g_x += W^T g_out
    Unary       g_v += g_out f'(v)
    Binary      g_a += g_out, g_b += +-g_out; of a product g_a += g_out b, g_b += g_out a
    LayerNorm   g_v += `LayerNormGradient` of g_out

What is the same for all chains, such as the derivative of a last Linear, is folded into constants in float64.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from ulam_kernels.networks import (
    MAX_INSTRUCTIONS,
    SLOPES,
    Binary,
    Instruction,
    LayerNorm,
    LayerNormGradient,
    Linear,
    Network,
    Operand,
    Unary,
)

Gradient = Operand | torch.Tensor  # of a value, or a constant, float64
ADDED, PRODUCTS = 2, 2  # operands that a Linear adds to its sum, and its inputs


@dataclass
class Listing:
    """Instructions with what they read: a network but for what it is used for."""

    widths: list[int]
    instructions: list[Instruction]
    constants: list[torch.Tensor]
    row_width: int = 0
    chain_width: int = 0

    def put(self, made: Callable[[int], Instruction], width: int) -> int:
        """Add the instruction that ``made(out)`` makes; the number of its value."""
        if len(self.instructions) == MAX_INSTRUCTIONS:
            raise ValueError(f"got instruction {MAX_INSTRUCTIONS + 1}, expected at most {MAX_INSTRUCTIONS} in all")
        self.instructions.append(made(len(self.widths)))
        self.widths.append(width)
        return len(self.widths) - 1

    def constant(self, value: torch.Tensor) -> Operand:
        """A new constant of float64 numbers."""
        at = sum(map(len, self.constants))
        self.constants.append(value)
        return Operand("constant", at)

    def network(self, output: int, energy: int | None = None) -> Network:
        """The network with this output and energy, without what they do not need."""
        needed, waiting = set(), [output, *([] if energy is None else [energy])]
        made_by = {instruction.out: instruction for instruction in self.instructions}
        while waiting:
            value = waiting.pop()
            if value and value not in needed:
                needed.add(value)
                waiting += read_by(made_by[value])
        order = {0: 0} | {value: place + 1 for place, value in enumerate(sorted(needed))}
        kept = [_renumbered(one, order) for one in self.instructions if one.out in needed]
        if not kept:
            raise TypeError("net: got x as its output, expected what layers make of it")
        constants = torch.cat(self.constants) if self.constants else torch.empty(0)
        return Network(
            self.widths[0], tuple(self.widths[value] for value in order), tuple(kept), constants.float(),
            self.row_width, self.chain_width, order[output], energy=None if energy is None else order[energy],
        )  # fmt: skip


def read_by(one: Instruction) -> list[int]:
    """The numbers of the values that an instruction reads."""
    if isinstance(one, Linear):
        return list(one.inputs)
    operands = [one.a, one.b] if isinstance(one, Binary) else []
    operands += [one.gradient] if isinstance(one, LayerNormGradient) else []
    own = [] if isinstance(one, Binary) else [one.value]
    return own + [operand.index for operand in operands if operand.kind == "value"]


def _renumbered(one: Instruction, order: dict[int, int]) -> Instruction:
    def moved(operand: Operand) -> Operand:
        return Operand("value", order[operand.index]) if operand.kind == "value" else operand

    if isinstance(one, Linear):
        return replace(one, out=order[one.out], inputs=tuple(order[value] for value in one.inputs))
    if isinstance(one, Binary):
        return replace(one, out=order[one.out], a=moved(one.a), b=moved(one.b))
    if isinstance(one, LayerNormGradient):
        return replace(one, out=order[one.out], value=order[one.value], gradient=moved(one.gradient))
    return replace(one, out=order[one.out], value=order[one.value])


@dataclass
class _Sum:
    """What a value's gradient is the sum of."""

    products: list[tuple[int, torch.Tensor]] = field(default_factory=list)  # W^T times these values
    operands: list[Operand] = field(default_factory=list)
    constant: torch.Tensor | None = None

    def add(self, gradient: Gradient) -> None:
        if isinstance(gradient, Operand):
            self.operands.append(gradient)
        else:
            self.constant = gradient if self.constant is None else self.constant + gradient


def put_gradient(listing: Listing, energy: int, scale: float = 1.0) -> int:
    """Add the reverse pass of ``scale`` times a value of width 1; the number of its gradient in value 0.

    Raises ValueError where the energy does not depend on x, or an instruction has no place left.
    """
    reverse = _Reverse(listing)
    reverse.sums[energy].add(torch.full((1,), scale, dtype=torch.float64))
    for instruction in reversed(list(listing.instructions)):
        reverse.go_back(instruction)
    found = reverse.total(0)
    if found is None:
        raise ValueError("got an energy without a gradient in x, expected one that depends on it")
    if isinstance(found, torch.Tensor) or found.kind != "value":
        zeros = listing.constant(torch.zeros(listing.widths[0], dtype=torch.float64))
        return reverse.binary("add", found, zeros, listing.widths[0]).index
    return found.index


class _Reverse:
    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        self.sums: dict[int, _Sum] = defaultdict(_Sum)

    def go_back(self, one: Instruction) -> None:
        """Add what the values that an instruction reads get from its own gradient."""
        gradient = self.total(one.out)
        if gradient is None:
            return
        width = self.listing.widths[one.out]
        if isinstance(one, Linear):
            for value, matrix in zip(one.inputs, one.weights, strict=True):
                back = matrix.t().contiguous()
                if isinstance(gradient, torch.Tensor):
                    self.sums[value].add(back.double() @ gradient)
                else:
                    self.sums[value].products.append((self._value(gradient, width), back))
        elif isinstance(one, Unary):
            self.sums[one.value].add(self._through(one, gradient, width))
        elif isinstance(one, Binary):
            self._binary(one, gradient, width)
        else:
            assert isinstance(one, LayerNorm), "a gradient is not differentiated again"
            of, weight, eps = one.value, one.weight, one.eps
            operand = self._operand(gradient)
            put = self.listing.put(lambda out: LayerNormGradient(out, of, operand, weight, eps), width)
            self.sums[of].add(Operand("value", put))

    def _through(self, one: Unary, gradient: Gradient, width: int) -> Gradient:
        if one.function == "identity":
            return gradient
        function = SLOPES[one.function]
        parameter = one.parameter if function.endswith("_slope") else None
        slope = self.listing.put(lambda out: Unary(out, function, one.value, parameter), width)
        return self.binary("mul", gradient, Operand("value", slope), width)

    def _binary(self, one: Binary, gradient: Gradient, width: int) -> None:
        if one.function == "mul" and one.a == one.b:
            half = gradient
            twice = 2 * half if isinstance(half, torch.Tensor) else self.binary("add", half, half, width)
            self._give(one.a, lambda: self.binary("mul", twice, one.a, width))
        elif one.function == "mul":
            self._give(one.a, lambda: self.binary("mul", gradient, one.b, width))
            self._give(one.b, lambda: self.binary("mul", gradient, one.a, width))
        else:
            self._give(one.a, lambda: gradient)
            self._give(one.b, lambda: gradient if one.function == "add" else self._minus(gradient, width))

    def _give(self, operand: Operand, gradient: Callable[[], Gradient]) -> None:
        if operand.kind == "value":
            self.sums[operand.index].add(gradient())

    def _minus(self, gradient: Gradient, width: int) -> Gradient:
        if isinstance(gradient, torch.Tensor):
            return -gradient
        return self.binary("mul", gradient, torch.full((width,), -1.0, dtype=torch.float64), width)

    def binary(self, function: str, a: Gradient, b: Gradient, width: int) -> Operand:
        """The instruction on these two."""
        one, two = self._operand(a), self._operand(b)
        return Operand("value", self.listing.put(lambda out: Binary(out, function, one, two), width))

    def _operand(self, gradient: Gradient) -> Operand:
        return gradient if isinstance(gradient, Operand) else self.listing.constant(gradient)

    def _value(self, gradient: Operand, width: int) -> int:
        if gradient.kind == "value":
            return gradient.index
        return self.binary("add", gradient, torch.zeros(width, dtype=torch.float64), width).index

    def total(self, value: int) -> Gradient | None:
        """The gradient of a value: the sum of what it got, or None."""
        got, width = self.sums.pop(value, _Sum()), self.listing.widths[value]
        operands = list(got.operands)
        if got.constant is not None:
            if not (operands or got.products):
                return got.constant
            operands.append(self.listing.constant(got.constant))
        for at in range(0, len(got.products), PRODUCTS):
            some = got.products[at : at + PRODUCTS]
            start = [operand for operand in operands if operand.kind != "value"][:ADDED]
            operands = [operand for operand in operands if operand not in start]
            operands.append(Operand("value", self._product(some, tuple(start), width)))
        while len(operands) > 1:
            operands = [*operands[2:], self.binary("add", operands[0], operands[1], width)]
        return operands[0] if operands else None

    def _product(self, products: Sequence[tuple[int, torch.Tensor]], start: tuple[Operand, ...], width: int) -> int:
        values, weights = zip(*products, strict=True)
        return self.listing.put(lambda out: Linear(out, values, weights, start), width)
