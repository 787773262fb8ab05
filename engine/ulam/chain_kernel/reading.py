"""A network's operations, one by one, as sources of elements: what depends on x in the end, and what does not."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from .elements import (
    BATCH,
    Activation,
    Elements,
    Input,
    Known,
    Normed,
    Pair,
    Product,
    mixes_chains,
)  # fmt: skip
from .folding import EXACT, MOVES, Folded, arguments, packet, size_of
from .tracing import DROPOUTS, Traced, refused, takes

aten = torch.ops.aten

UNARY = {
    aten.silu: "silu",
    aten.relu: "relu",
    aten.tanh: "tanh",
    aten.sigmoid: "sigmoid",
    aten.mish: "mish",
}
KNOWN = (
    "Linear, SiLU, ReLU, GELU, Tanh, Sigmoid, Mish, Softplus, LeakyReLU, ELU, LayerNorm, sums, products and "
    "concatenations of what depends on x"
)


@dataclass(frozen=True)
class Apart:
    """What a node does not depend on x by: "constant", "row" (time alone) or "chain" (conditioning alone)."""

    kind: str


@dataclass(frozen=True)
class Size:
    """A number that the batch's size gives."""


class Reading:
    """Reads a traced network; ``output`` has the numbers of the elements of what it returns."""

    def __init__(self, traced: Traced, folded: Folded) -> None:
        self.traced, self.folded, self.elements = traced, folded, Elements()
        self._read: dict[Node, Any] = dict.fromkeys(traced.tensors, Apart("constant"))
        self._read[traced.t] = Apart("row")
        self._read |= dict.fromkeys(traced.cond.values(), Apart("chain"))
        self._numbers: dict[Node, torch.Tensor] = {}
        shape = [int(size) for size in traced.x.meta["val"].shape[1:]]
        width = int(torch.Size(shape).numel())
        self.input = Input(traced.x, width, self.elements.next())
        self._read[traced.x] = self.elements.add(self.input, shape)
        for node in traced.nodes:
            if node.op == "call_function":
                self._read[node] = self._operation(node)
            elif node.op == "get_attr":
                raise refused(node, "an operation of its own kind", KNOWN)
        self.output = self._numbers_of(traced.output)
        if mixes_chains(self.output):
            raise refused(traced.output, "an output that mixes chains", "one output for each chain")

    # -------------------------------------------------------------------------------------------------- dependence

    def _operation(self, node: Node) -> Any:
        name = packet(node)
        if name is aten._assert_tensor_metadata or node.meta.get("val") is None:
            return Apart("constant")
        if name is aten.sym_size:
            return Size()
        inputs = [n for n in node.all_input_nodes if not isinstance(self._read[n], Size)]
        if not isinstance(node.meta["val"], (torch.Tensor, tuple, list)):
            return self._number(node, inputs)
        read = [self._read[n] for n in inputs]
        if all(isinstance(r, Apart) for r in read):
            kinds = {r.kind for r in read} - {"constant"}
            if len(kinds) < 2 and not (kinds == {"chain"} and self._in_kernel(node)):
                return self._apart(node, kinds.pop() if kinds else "constant")
        return self._of_x(node)

    def _number(self, node: Node, inputs: list[Node]) -> Any:
        if inputs or (
            node.target is not operator.getitem
            and not all(isinstance(self._read[n], Size) for n in node.all_input_nodes)
        ):
            raise refused(node, "a number that is read out of a tensor", KNOWN)
        return Size()

    def _apart(self, node: Node, kind: str) -> Apart:
        """What does not depend on x; one of its dimensions must be the batch if its values differ between chains."""
        if kind != "constant":
            values = node.meta["val"]
            normed = packet(node) is aten._native_batch_norm_legit_no_training  # whose other values are empty
            for value in values[:1] if normed else values if isinstance(values, (tuple, list)) else [values]:
                sizes = value.shape[:1] if kind == "row" else value.shape  # encoders may have chains second on the way
                batched = any(isinstance(size, torch.SymInt) for size in sizes)
                if not batched and (kind == "row" or not self._is_shared(node)):
                    raise refused(node, "an operation over chains", "each chain by itself")
        return Apart(kind)

    def _is_shared(self, node: Node) -> bool:
        """Whether it depends on no argument but those that all chains share."""
        own = {n for name, n in self.traced.cond.items() if name not in self.traced.shared}
        waiting, seen = [node], set()
        while waiting:
            at = waiting.pop()
            if at in own:
                return False
            if at not in seen:
                seen.add(at)
                waiting += at.all_input_nodes
        return True

    def _in_kernel(self, node: Node) -> bool:
        """Whether a function of the conditioning is one whose bits only the kernel keeps equal in any batch."""
        name = packet(node)
        return name not in EXACT and name in _TRANSLATED and not self._is_shared(node)

    # ------------------------------------------------------------------------------------------------ what x enters

    def _of_x(self, node: Node) -> Any:
        name = packet(node)
        if node.target is operator.getitem or name in MOVES:
            return self._moved(node)
        translate = _TRANSLATED.get(name)
        if translate is None or not takes(translate, self, node, *node.args, **node.kwargs):
            raise refused(node, str(name if translate is None else node.format_node()), KNOWN)
        return translate(self, node, *node.args, **node.kwargs)

    def _moved(self, node: Node) -> Any:
        known = {n: self._argument(n) for n in node.all_input_nodes}
        if packet(node) in DROPOUTS:
            if node.args[2]:
                raise refused(node, "dropout in training mode", "none in eval mode")
            return known[node.all_input_nodes[0]]
        if packet(node) in (aten.to, aten._to_copy, aten.type_as):
            if node.meta["val"].dtype != torch.float32:
                raise refused(node, f"a conversion to {node.meta['val'].dtype}", "float32 throughout")
            return known[node.all_input_nodes[0]]
        args, kwargs = arguments(node, known.__getitem__)
        assert callable(node.target)
        try:
            moved = node.target(*args, **kwargs)
        except (RuntimeError, ValueError, IndexError):  # sizes of the batch that was traced, as by len(x)
            raise refused(node, "an operation for one number of chains", "x.shape[0], not len(x)") from None
        for numbers in moved if isinstance(moved, (tuple, list)) else [moved]:
            if mixes_chains(numbers):
                what = "an operation that mixes chains, or whose first dimension is not theirs"
                raise refused(node, what, "each chain by itself, first")
        return moved

    def _argument(self, node: Node) -> Any:
        """What a node is to an operation that moves elements: their numbers; a size; the value of whole numbers."""
        read = self._read[node]
        if isinstance(read, Size):
            return self._size(node)
        value = node.meta["val"]
        if isinstance(read, Apart) and isinstance(value, torch.Tensor) and not value.is_floating_point():
            if read.kind == "constant":
                return self.folded.constant(node)
            raise refused(node, "whole numbers that differ between chains", "constant ones where x is moved about")
        return self._numbers_of(node)

    def _size(self, node: Node) -> int:
        if packet(node) is aten.sym_size:
            return size_of(node, BATCH)
        args, _ = arguments(node, self._size)
        target = node.target
        assert callable(target)
        return int(target(*args))

    def _numbers_of(self, node: Node) -> Any:
        """The numbers of the elements of a node's value."""
        read = self._read[node]
        if isinstance(read, Size):
            raise refused(node, "the number of chains", "each chain by itself")
        if not isinstance(read, Apart):
            return read
        if node not in self._numbers:
            self._numbers[node] = self._known(node, read.kind)
        return self._numbers[node]

    def _known(self, node: Node, kind: str, inverse: bool = False) -> torch.Tensor:
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

    def literal(self, node: Node, value: float) -> torch.Tensor:
        """The number of one constant."""
        known = torch.tensor([value], dtype=torch.float64)
        return self.elements.add(Known(node, 1, self.elements.next(True), "constant", known), [], True, batched=False)

    # ------------------------------------------------------------------------------------------------- translations

    def matrix(self, node: Node, of: Any, what: str = "a matrix") -> torch.Tensor:
        """A constant's value in float64."""
        read = self._read[of] if isinstance(of, Node) else None
        if not isinstance(read, Apart) or read.kind != "constant":
            raise refused(node, f"{what} that is no constant", "a constant one beside what depends on x")
        return self.folded.constant(of).double()

    def product(self, node: Node, x: Node, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """weight times each vector of x, plus the bias."""
        numbers = self._numbers_of(x)
        if mixes_chains(numbers):
            raise refused(node, "a matrix over chains", "each chain by itself")
        first = numbers[0]
        parts = []
        for vector in first.reshape(-1, first.shape[-1]) if first.dim() else [first.reshape(1)]:
            source = Product(node, len(weight), self.elements.next(), vector, weight, bias)
            parts.append(self.elements.add(source, [len(weight)]))
        return torch.stack(parts, 1).reshape(BATCH, *first.shape[:-1], len(weight))

    def unary(self, node: Node, x: Node, function: str, parameter: float | None = None) -> torch.Tensor:
        """A function of each element of x."""
        numbers = self._numbers_of(x)
        if mixes_chains(numbers):
            raise refused(node, "a function over chains", "each chain by itself")
        flat = numbers[0].reshape(-1)
        source = Activation(node, len(flat), self.elements.next(), flat, function, parameter)
        return self.elements.add(source, numbers.shape[1:])

    def pair(self, node: Node, function: str, a: Any, b: Any) -> torch.Tensor:
        """The sum, difference or product of two, broadcast."""
        both = [self._numbers_of(one) if isinstance(one, Node) else one for one in (a, b)]
        both = [self.literal(node, float(one)) if isinstance(one, (int, float)) else one for one in both]
        first, second = torch.broadcast_tensors(*both)  # type: ignore[no-untyped-call]
        if mixes_chains(first) or mixes_chains(second):
            raise refused(node, "an operation over chains", "each chain by itself")
        first, second = first[0], second[0]
        width = first.numel()
        source = Pair(node, width, self.elements.next(), function, first.reshape(-1), second.reshape(-1))
        return self.elements.add(source, first.shape)

    def norm(self, node: Node, x: Node, weight: Any, bias: Any, eps: float) -> torch.Tensor:
        """LayerNorm over the last dimension."""
        numbers = self._numbers_of(x)
        w, b = (None if v is None else self.matrix(node, v, "a weight") for v in (weight, bias))
        first, parts = numbers[0], []
        for vector in first.reshape(-1, first.shape[-1]):
            parts.append(
                self.elements.add(Normed(node, len(vector), self.elements.next(), vector, w, b, eps), [len(vector)])
            )
        return torch.stack(parts, 1).reshape(BATCH, *first.shape)

    def total(self, node: Node, x: Node, dims: Sequence[int] | None, keep: bool, mean: bool = False) -> torch.Tensor:
        """The sum of x over these dimensions, or the mean: a matrix with one row."""
        numbers = self._numbers_of(x)
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
        numbers: torch.Tensor = self._numbers_of(x)
        if exponent == 1:
            return numbers
        square = self.pair(node, "mul", x, x)
        return square if exponent == 2 else self.pair(node, "mul", square, numbers if exponent == 3 else square)

    def quotient(self, node: Node, a: Any, b: Any) -> torch.Tensor:
        """a / b for a divisor that does not depend on x."""
        if isinstance(b, (int, float)):
            return self.pair(node, "mul", a, self.literal(node, 1 / b))
        read = self._read[b]
        if not isinstance(read, Apart):
            raise refused(node, "a division by what depends on x", KNOWN)
        if read.kind == "constant":
            inverse = 1 / self.folded.constant(b).double()
            if b.meta["val"].dim() and isinstance(b.meta["val"].shape[0], torch.SymInt):
                raise refused(node, "a division by a constant of each chain", "one of all chains")
            source = Known(b, inverse.numel(), self.elements.next(True), "constant", inverse.reshape(-1))
            return self.pair(node, "mul", a, self.elements.add(source, inverse.shape, True, batched=False))
        return self.pair(node, "mul", a, self._known(b, read.kind, inverse=True))


def _sum(function: str) -> Callable[..., torch.Tensor]:
    def translate(reading: Reading, node: Node, a: Any, b: Any, *, alpha: float = 1) -> torch.Tensor:
        if alpha != 1:
            b = reading.pair(node, "mul", b, float(alpha))
        return reading.pair(node, function, a, b)

    return translate


def _layer_norm(
    reading: Reading, node: Node, x: Node, shape: Sequence[int], weight: Any = None, bias: Any = None,
    eps: float = 1e-5, cudnn: bool = True,
) -> torch.Tensor:  # fmt: skip
    if len(shape) != 1:
        raise refused(node, f"LayerNorm over {len(shape)} dimensions", "over the last one")
    return reading.norm(node, x, weight, bias, eps)


def _linear(reading: Reading, node: Node, x: Node, weight: Any, bias: Any = None) -> torch.Tensor:
    b = None if bias is None else reading.matrix(node, bias, "a bias")
    return reading.product(node, x, reading.matrix(node, weight), b)


def _matmul(reading: Reading, node: Node, x: Any, weight: Any) -> torch.Tensor:
    matrix = reading.matrix(node, weight)
    if matrix.dim() != 2:
        raise refused(node, f"a product with {matrix.dim()} dimensions", "a matrix [in, out]")
    return reading.product(node, x, matrix.t().contiguous(), None)


def _addmm(reading: Reading, node: Node, bias: Any, x: Any, weight: Any, **scales: float) -> torch.Tensor:
    if scales:
        raise refused(node, "addmm with scales", "beta = alpha = 1")
    return reading.product(node, x, reading.matrix(node, weight).t().contiguous(), reading.matrix(node, bias))


def _softplus(reading: Reading, node: Node, x: Node, beta: float = 1, threshold: float = 20) -> torch.Tensor:
    if beta != 1 or threshold < 20:
        raise refused(node, f"Softplus of beta {beta} and threshold {threshold}", "beta = 1 and threshold = 20")
    return reading.unary(node, x, "softplus")


def _elu(reading: Reading, node: Node, x: Node, alpha: float = 1, scale: float = 1, slope: float = 1) -> torch.Tensor:
    if scale != 1 or slope != 1:
        raise refused(node, "a scaled ELU", "ELU")
    return reading.unary(node, x, "elu", float(alpha))


def _total(mean: bool) -> Callable[..., torch.Tensor]:
    def translate(
        reading: Reading, node: Node, x: Node, dims: Any = None, keep: bool = False, **given: Any
    ) -> torch.Tensor:
        if given.get("dtype") not in (None, torch.float32):
            raise refused(node, f"a sum in {given['dtype']}", "float32 throughout")
        return reading.total(node, x, [dims] if isinstance(dims, int) else dims, keep, mean)

    return translate


def _unary(function: str) -> Callable[..., torch.Tensor]:
    return lambda reading, node, x: reading.unary(node, x, function)


_TRANSLATED: dict[Any, Callable[..., torch.Tensor]] = {
    **{name: _unary(function) for name, function in UNARY.items()},
    aten.gelu: lambda r, n, x, approximate="none": r.unary(n, x, "gelu_tanh" if approximate == "tanh" else "gelu"),
    aten.leaky_relu: lambda r, n, x, slope=0.01: r.unary(n, x, "leaky_relu", float(slope)),
    aten.elu: _elu,
    aten.softplus: _softplus,
    aten.layer_norm: _layer_norm,
    aten.linear: _linear,
    aten.addmm: _addmm,
    aten.mm: _matmul,
    aten.matmul: _matmul,
    aten.add: _sum("add"),
    aten.sub: _sum("sub"),
    aten.rsub: lambda r, n, a, b: r.pair(n, "sub", b, a),
    aten.mul: lambda r, n, a, b: r.pair(n, "mul", a, b),
    aten.div: lambda r, n, a, b: r.quotient(n, a, b),
    aten.sum: _total(mean=False),
    aten.mean: _total(mean=True),
    aten.square: lambda r, n, x: r.power(n, x, 2),
    aten.pow: lambda r, n, x, exponent: r.power(n, x, exponent),
    aten.neg: lambda r, n, a: r.pair(n, "mul", a, -1.0),
}
