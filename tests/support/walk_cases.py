"""Random walks: networks of every kind of instruction, tables, cursors and what goes with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

import ulam_kernels
from step_cases import random_table
from ulam_kernels import Table
from ulam_kernels.networks import (
    FUNCTIONS,
    Binary,
    Instruction,
    LayerNorm,
    LayerNormGradient,
    Linear,
    Network,
    Operand,
    Unary,
)
from ulam_kernels.table import LEARNED

ROWS = 40


def weights(rng: np.random.Generator, out: int, depth: int) -> torch.Tensor:
    return torch.from_numpy(rng.normal(size=(out, depth)) / np.sqrt(depth)).float()


class Builder:
    """Instructions one after another; a width is that of the value just made."""

    def __init__(self, rng: np.random.Generator, inputs: int) -> None:
        self.rng, self.widths, self.instructions = rng, [inputs], list[Instruction]()
        self.constants, self.row, self.chain = list[float](), 0, 0

    def operand(self, kind: str, width: int) -> Operand:
        """A new vector of the constants, the rows or the chains."""
        if kind == "constant":
            at = len(self.constants)
            self.constants += [float(x) for x in self.rng.normal(size=width) * 0.5]
        elif kind == "row":
            at, self.row = self.row, self.row + width
        else:
            at, self.chain = self.chain, self.chain + width
        return Operand(kind, at)

    def add(self, width: int, make: Any) -> int:
        out = len(self.widths)
        self.widths.append(width)
        self.instructions.append(make(out))
        return out

    def linear(self, width: int, inputs: list[int], kinds: tuple[str, ...] = ()) -> int:
        matrices = tuple(weights(self.rng, width, self.widths[value]) for value in inputs)
        start = tuple(self.operand(kind, width) for kind in kinds)
        return self.add(width, lambda out: Linear(out, tuple(inputs), matrices, start))

    def unary(self, value: int, function: str, parameter: float | None = None) -> int:
        return self.add(self.widths[value], lambda out: Unary(out, function, value, parameter))

    def binary(self, function: str, a: int | str, b: int | str, width: int) -> int:
        left, right = (Operand("value", o) if isinstance(o, int) else self.operand(o, width) for o in (a, b))
        return self.add(width, lambda out: Binary(out, function, left, right))

    def norm(self, value: int, weight: bool, bias: bool) -> int:
        width = self.widths[value]
        w, b = (self.operand("constant", width) if there else None for there in (weight, bias))
        return self.add(width, lambda out: LayerNorm(out, value, w, b))

    def norm_gradient(self, value: int, gradient: int | str, weight: bool) -> int:
        width = self.widths[value]
        of = Operand("value", gradient) if isinstance(gradient, int) else self.operand(gradient, width)
        w = self.operand("constant", width) if weight else None
        return self.add(width, lambda out: LayerNormGradient(out, value, of, w))

    def network(self) -> Network:
        output = len(self.widths) - 1
        return Network(self.widths[0], tuple(self.widths), tuple(self.instructions), torch.tensor(self.constants),
                       self.row, self.chain, output)  # fmt: skip


def random_network(
    rng: np.random.Generator, n: int, learned: bool = False, hidden: int = 3, gradients: bool = True
) -> Network:
    """Residual blocks with every kind of instruction (those of ``gradients`` too), of odd widths."""
    functions = FUNCTIONS if gradients else FUNCTIONS[: FUNCTIONS.index("elu") + 1]
    kinds = ((), ("row",), ("constant", "row"), ("row", "chain"), ("chain",))
    b = Builder(rng, n)
    width = int(rng.integers(1, 75))
    last = b.linear(width, [0], ("row", "constant"))
    for _ in range(hidden):
        function = functions[rng.integers(len(functions))]
        parameter = 0.25 if function.startswith(("leaky_relu", "elu")) else None
        block = b.norm(last, rng.random() < 0.5, rng.random() < 0.5) if rng.random() < 0.5 else last
        block = b.unary(block, function, parameter)
        wide = int(rng.integers(1, 75))
        inputs = [block, 0] if rng.random() < 0.5 else [block]
        block = b.unary(b.linear(wide, inputs, kinds[rng.integers(5)]), FUNCTIONS[rng.integers(9)])
        block = b.linear(width, [block], kinds[rng.integers(5)])
        if gradients and rng.random() < 0.3:
            gradient = ("constant", "row", "chain", block)[rng.integers(4)]
            block = b.norm_gradient(last, gradient, bool(rng.random() < 0.5))
        block = b.binary("mul", block, ("constant", "row", "chain")[rng.integers(3)], width)
        last = b.binary(("add", "sub")[rng.integers(2)], last, block, width)
    last = b.unary(last, "silu")
    b.linear(2 * n if learned else n, [last], ("constant",))
    return b.network()


def mlp(rng: np.random.Generator, widths: tuple[int, ...], function: str = "silu") -> Network:
    """Biases of the first layer come with the row, those of others are constants."""
    b = Builder(rng, widths[0])
    last = 0
    for place, width in enumerate(widths[1:]):
        last = b.linear(width, [last], ("constant",) if place else ("row",))
        if place < len(widths) - 2:
            last = b.unary(last, function)
    return b.network()


@dataclass(frozen=True)
class Walk:
    """The arguments of a walk: what is written is copied by `run`."""

    states: torch.Tensor
    table: Table
    cursor: torch.Tensor
    network: Network
    steps: int
    net_in: torch.Tensor | None
    given: dict[str, torch.Tensor]

    def run(self, backend: str, **other: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        states, cursor = self.states.clone(), self.cursor.clone()
        net_in = None if self.net_in is None else self.net_in.clone()
        arguments = self.given | other
        ulam_kernels.walk(states, self.table, cursor, self.network, steps=self.steps, net_in=net_in, backend=backend,
                          **arguments)  # fmt: skip
        return states, cursor, net_in

    def chains(self, these: Any) -> Walk:
        """The walk of some of the chains."""
        shared = {name for name, t in self.given.items() if name == "row_vectors" or (name == "mask" and t.dim() < 2)}
        per_chain = {name: t[these].contiguous() for name, t in self.given.items() if name not in shared}
        net_in = None if self.net_in is None else self.net_in[these].contiguous()
        return replace(self, states=self.states[:, these].contiguous(), cursor=self.cursor[:, these].contiguous(),
                       net_in=net_in, given=self.given | per_chain)  # fmt: skip

    def wide(self) -> Walk:
        """The same in float64."""
        table = Table(self.table.coef.double(), self.table.flags, self.table.registers)
        given = {k: t.double() if t.is_floating_point() and k != "guidance" else t for k, t in self.given.items()}
        net_in = None if self.net_in is None else self.net_in.double()
        return replace(self, states=self.states.double(), table=table, net_in=net_in, given=given)


def stable_table(rng: np.random.Generator, registers: int, learned: bool) -> Table:
    """Random rows whose states do not grow: terms missing, clips, `learned` noise scales."""
    table = random_table(rng, registers, ROWS)
    coef = table.coef.clone()
    coef[:, 7:] *= 0.4
    coef[:, 4:6] *= 0.3
    return Table(coef, table.flags if learned else table.flags & ~LEARNED, registers)


def random_walk(rng: np.random.Generator, chains: int, n: int, registers: int, *, network: Network | None = None,
                learned: bool = True, guided: bool = False, scaled: bool = False, together: bool = False,
                steps: int = 4, gradients: bool = True) -> Walk:  # fmt: skip
    """Chains at rows of their own, or `together`; one in five is idle, unless they are together."""
    network = network or random_network(rng, n, learned, gradients=gradients)
    table = stable_table(rng, registers, network.learned)
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 31)))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    cursor = torch.zeros(6, chains, dtype=torch.int64)
    cursor[0] = 3 if together else torch.from_numpy(rng.integers(1, 20, chains))
    cursor[1] = torch.from_numpy(rng.integers(0, 1 << 40, chains))
    cursor[2] = 2 if together else torch.from_numpy(rng.integers(1, 4, chains))
    cursor[3] = 16 if together else torch.from_numpy(rng.integers(0, 64, chains))
    if not together:
        cursor[:, torch.from_numpy(rng.random(chains) < 0.2)] = 0
    given = {
        "seed": torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, chains)),
        "chain": torch.from_numpy(rng.integers(0, 2**63 - 1, chains)),
        "row_vectors": normal(ROWS, network.row_width), "chain_vectors": normal(chains, network.chain_width),
    }  # fmt: skip
    if guided:
        given["uncond_vectors"] = normal(chains, network.chain_width)
        given["guidance"] = torch.from_numpy(rng.choice([0.0, 1.0, 2.5, -1.0], size=chains)).float()
    net_in = normal(chains, n) if scaled else None
    return Walk(normal(registers, chains, n), table, cursor, network, steps, net_in, given)
