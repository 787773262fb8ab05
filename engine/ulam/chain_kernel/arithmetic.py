"""Operations on a traced network's elements: products with matrices, functions, sums, norms, as sources of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from .elements import BATCH, Activation, Elements, Known, Normed, Pair, Product, mixes_chains
from .folding import Folded
from .tracing import refused

KNOWN = (
    "Linear, SiLU, ReLU, GELU, Tanh, Sigmoid, Mish, Softplus, LogSigmoid, LeakyReLU, PReLU, ELU, CELU, SELU, "
    "Hardswish, abs, clamp, LayerNorm, RMSNorm, GroupNorm, BatchNorm with running averages, sums, products and "
    "concatenations of what depends on x"
)


@dataclass(frozen=True)
class Apart:
    """What a node does not depend on x by: "constant", "row" (time alone) or "chain" (conditioning alone)."""

    kind: str


@dataclass(frozen=True)
class Size:
    """A number that the batch's size gives."""


class Arithmetic:
    """What is known of each node: the numbers of its elements where it depends on x, otherwise by what it does not."""

    def __init__(self, folded: Folded) -> None:
        self.folded, self.elements = folded, Elements()
        self.read: dict[Node, Any] = {}
        self._numbers: dict[Node, torch.Tensor] = {}

    def numbers_of(self, node: Node) -> Any:
        """The numbers of the elements of a node's value."""
        read = self.read[node]
        if isinstance(read, Size):
            raise refused(node, "the number of chains", "each chain by itself")
        if not isinstance(read, Apart):
            return read
        if node not in self._numbers:
            self._numbers[node] = self.known(node, read.kind)
        return self._numbers[node]

    def known(self, node: Node, kind: str, inverse: bool = False) -> torch.Tensor:
        """The numbers of the elements of what does not depend on x, or of 1 over it."""
        value = node.meta["val"]
        batched = value.dim() > 0 and isinstance(value.shape[0], torch.SymInt)
        rest = value.shape[1:] if batched else value.shape
        if any(isinstance(size, torch.SymInt) for size in rest):
            raise refused(node, "an operation over chains", "each chain by itself, first")
        shape = [int(size) for size in rest]
        same = kind == "constant" or not batched
        width = int(torch.Size(shape).numel())
        literal = None
        if kind == "constant":
            literal = self.folded.constant(node).double()
            if batched:
                if not torch.equal(literal[0], literal[1]):
                    raise refused(node, "a constant that differs between chains", "the same for all chains")
                literal = literal[0]
            literal = literal.reshape(-1)
        source = Known(node, width, self.elements.next(same), kind, literal, inverse)
        return self.elements.add(source, shape, same, batched)

    def constant(self, node: Node, value: torch.Tensor | float) -> torch.Tensor:
        """The numbers of a constant's elements, the same for all chains."""
        known = torch.as_tensor(value, dtype=torch.float64)
        source = Known(node, known.numel(), self.elements.next(True), "constant", known.reshape(-1))
        return self.elements.add(source, known.shape, True, batched=False)

    def matrix(self, node: Node, of: Any, what: str = "a matrix") -> torch.Tensor:
        """A constant's value in float64."""
        return self.fixed(node, of, what).double()

    def fixed(self, node: Node, of: Any, what: str) -> torch.Tensor:
        """A constant's value as it is."""
        read = self.read[of] if isinstance(of, Node) else None
        if not isinstance(read, Apart) or read.kind != "constant":
            raise refused(node, f"{what} that is no constant", "a constant one beside what depends on x")
        return self.folded.constant(of)

    def product(self, node: Node, x: Node, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """weight times each vector of x, plus the bias."""
        numbers = self.numbers_of(x)
        if mixes_chains(numbers):
            raise refused(node, "a matrix over chains", "each chain by itself")
        first = numbers[0]
        parts = []
        for vector in first.reshape(-1, first.shape[-1]) if first.dim() else [first.reshape(1)]:
            source = Product(node, len(weight), self.elements.next(), vector, weight, bias)
            parts.append(self.elements.add(source, [len(weight)]))
        return torch.stack(parts, 1).reshape(BATCH, *first.shape[:-1], len(weight))

    def unary(self, node: Node, x: Any, function: str, parameter: float | None = None) -> torch.Tensor:
        """A function of each element of x, a node or numbers."""
        numbers = self.numbers_of(x) if isinstance(x, Node) else x
        if mixes_chains(numbers):
            raise refused(node, "a function over chains", "each chain by itself")
        flat = numbers[0].reshape(-1)
        source = Activation(node, len(flat), self.elements.next(), flat, function, parameter)
        return self.elements.add(source, numbers.shape[1:])

    def pair(self, node: Node, function: str, a: Any, b: Any) -> torch.Tensor:
        """The sum, difference or product of two, broadcast."""
        both = [self.numbers_of(one) if isinstance(one, Node) else one for one in (a, b)]
        both = [self.constant(node, float(one)) if isinstance(one, (int, float)) else one for one in both]
        first, second = torch.broadcast_tensors(*both)  # type: ignore[no-untyped-call]
        if mixes_chains(first) or mixes_chains(second):
            raise refused(node, "an operation over chains", "each chain by itself")
        first, second = first[0], second[0]
        width = first.numel()
        source = Pair(node, width, self.elements.next(), function, first.reshape(-1), second.reshape(-1))
        return self.elements.add(source, first.shape)

    def norm(self, node: Node, x: Node, weight: Any, bias: Any, eps: float) -> torch.Tensor:
        """LayerNorm over the last dimension."""
        first = self.numbers_of(x)[0]
        vectors = first.reshape(-1, first.shape[-1])
        w, b = (None if v is None else self.matrix(node, v, "a weight").expand(vectors.shape) for v in (weight, bias))
        return self._normed(node, vectors, w, b, eps, first.shape)

    def rms_norm(self, node: Node, x: Node, weight: Any, eps: float) -> torch.Tensor:
        """RMSNorm over the last dimension: half of the LayerNorm of a vector beside its negative, whose mean is 0."""
        both = torch.cat([self.numbers_of(x), self.pair(node, "mul", x, -1.0)], -1)
        normed = self._normed(node, both[0].reshape(-1, both.shape[-1]), None, None, eps, both.shape[1:])
        half = normed.chunk(2, -1)[0].contiguous()
        return half if weight is None else self.pair(node, "mul", half, weight)

    def group_norm(self, node: Node, x: Node, groups: int, weight: Any, bias: Any, eps: float) -> torch.Tensor:
        """LayerNorm over each group of channels, [channels, ...]; a weight and a bias for each channel."""
        first = self.numbers_of(x)[0]
        vectors = first.reshape(groups, -1)
        each = first.numel() // len(first)
        w, b = (
            None if v is None else self.matrix(node, v, "a weight").repeat_interleave(each).reshape(vectors.shape)
            for v in (weight, bias)
        )
        return self._normed(node, vectors, w, b, eps, first.shape)

    def _normed(
        self, node: Node, vectors: torch.Tensor, weights: torch.Tensor | None, biases: torch.Tensor | None, eps: float,
        shape: Sequence[int],
    ) -> torch.Tensor:  # fmt: skip
        """Each vector normed, by its own weight and bias, together of this shape."""
        parts = []
        for k, vector in enumerate(vectors):
            w, b = (None if v is None else v[k] for v in (weights, biases))
            source = Normed(node, len(vector), self.elements.next(), vector, w, b, eps)
            parts.append(self.elements.add(source, [len(vector)]))
        return torch.stack(parts, 1).reshape(BATCH, *shape)

    def total(self, node: Node, x: Node, dims: Sequence[int] | None, keep: bool, mean: bool = False) -> torch.Tensor:
        """The sum of x over these dimensions, or the mean: a matrix with one row."""
        numbers = self.numbers_of(x)
        if mixes_chains(numbers) or not dims or any(dim % numbers.dim() == 0 for dim in dims):
            raise refused(node, "a sum over chains", "each chain by itself")
        last = sorted(dim % numbers.dim() - 1 for dim in dims)
        first = numbers[0]
        rest = [dim for dim in range(first.dim()) if dim not in last]
        moved = first.permute(*rest, *last).reshape(*(first.shape[dim] for dim in rest), -1)
        weight = torch.full((1, moved.shape[-1]), 1 / moved.shape[-1] if mean else 1.0, dtype=torch.float64)
        parts = []
        for vector in moved.reshape(-1, moved.shape[-1]):
            parts.append(self.elements.add(Product(node, 1, self.elements.next(), vector, weight, None), [1]))
        shape = [1 if dim in last else first.shape[dim] for dim in range(first.dim()) if keep or dim not in last]
        return torch.stack(parts, 1).reshape(BATCH, *shape)

    def power(self, node: Node, x: Node, exponent: Any) -> torch.Tensor:
        """x to a small whole power, as products."""
        if exponent not in (1, 2, 3, 4):
            raise refused(node, f"a power of {exponent}", "1, 2, 3 or 4")
        numbers: torch.Tensor = self.numbers_of(x)
        if exponent == 1:
            return numbers
        square = self.pair(node, "mul", x, x)
        return square if exponent == 2 else self.pair(node, "mul", square, numbers if exponent == 3 else square)

    def quotient(self, node: Node, a: Any, b: Any) -> torch.Tensor:
        """a / b for a divisor that does not depend on x."""
        if isinstance(b, (int, float)):
            return self.pair(node, "mul", a, self.constant(node, 1 / b))
        read = self.read[b]
        if not isinstance(read, Apart):
            raise refused(node, "a division by what depends on x", KNOWN)
        if read.kind == "constant":
            inverse = 1 / self.folded.constant(b).double()
            if b.meta["val"].dim() and isinstance(b.meta["val"].shape[0], torch.SymInt):
                raise refused(node, "a division by a constant of each chain", "one of all chains")
            return self.pair(node, "mul", a, self.constant(b, inverse))
        return self.pair(node, "mul", a, self.known(b, read.kind, inverse=True))
