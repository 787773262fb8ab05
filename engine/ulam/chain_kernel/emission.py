"""Instructions for the elements that a network returns: only those that are asked for, slices of a Linear as such."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from ulam_kernels.networks import (
    MAX_INPUTS,
    MAX_INSTRUCTIONS,
    MAX_WIDTH,
    Binary,
    Instruction,
    LayerNorm,
    Linear,
    Network,
    Operand,
    Unary,
)  # fmt: skip

from .elements import Activation, Elements, Input, Known, Normed, Pair, Product, Source
from .gradients import Listing, put_gradient
from .reading import Reading
from .tracing import OfValues, refused

MOST_INPUTS = 2  # of a Linear
KINDS = ("row", "chain")


@dataclass(frozen=True, eq=False)
class Part:
    """A piece of the vectors of a row or a chain: elements of what is known, or a matrix times them, plus a bias."""

    elements: tuple[tuple[Known, torch.Tensor, torch.Tensor], ...]  # with their columns and places
    columns: int
    weight: torch.Tensor | None
    bias: torch.Tensor | None


class Emission:
    """The instructions of a network, and what its row and chain vectors are made of."""

    network: Network
    score: Network | None = None

    def __init__(self, reading: Reading) -> None:
        self._elements: Elements = reading.elements
        self._node: Node = reading.traced.output
        self.instructions: list[Instruction] = []
        self.widths = [reading.input.width]
        self.parts: dict[str, list[Part]] = {kind: [] for kind in KINDS}
        self.vector_widths = dict.fromkeys(KINDS, 0)
        self._constants: list[torch.Tensor] = []
        self._length = 0
        self._placed: dict[tuple[object, ...], Operand] = {}
        self._values: dict[tuple[int, ...], int] = {}
        width = reading.input.width
        if width > MAX_INPUTS:
            raise refused(reading.traced.x, f"x of {width} elements", f"at most {MAX_INPUTS}")
        self._output_shape = tuple(reading.output.shape)  # of two chains
        self._shape = tuple(int(size) for size in reading.traced.x.meta["val"].shape[1:])
        self._finish(self.value(reading.output[0].reshape(-1)))

    def _finish(self, output: int) -> None:
        """Make the network, this value its output."""
        width, own = self.widths[0], self._shape
        if self._output_shape[1:] not in (own, (2 * own[0], *own[1:])):
            what = f"an output [{', '.join(['chains', *map(str, self._output_shape[1:])])}]"
            raise refused(self._node, what, f"{['chains', *own]} as x is, or twice as many first with variances")
        if self.widths[output] not in (width, 2 * width):
            what = f"an output of {self.widths[output]} elements"
            raise refused(self._node, what, f"{width} as x has, or {2 * width} with learned variances")
        try:
            self.network = self._listing().network(output)
        except ValueError as error:
            raise TypeError(f"net: {error}") from error

    def _listing(self) -> Listing:
        widths = self.vector_widths
        return Listing(self.widths, self.instructions, self._constants, widths["row"], widths["chain"])

    # ------------------------------------------------------------------------------------------------------- values

    def value(self, numbers: torch.Tensor) -> int:
        """The number of the value that holds these elements."""
        key = tuple(numbers.tolist())
        if key not in self._values:
            self._values[key] = self._value(numbers)
        return self._values[key]

    def _value(self, numbers: torch.Tensor) -> int:
        groups = self._elements.groups(numbers)
        source, _, places = groups[0]
        if all(isinstance(source, Known) for source, *_ in groups):
            return self._known_value(groups, len(numbers))
        if len(groups) > 1:
            return self._chosen(numbers)
        self._node = source.node
        whole = len(places) == source.width and torch.equal(places, torch.arange(source.width))
        if isinstance(source, Input):
            return 0 if whole else self._chosen(numbers)
        if isinstance(source, Normed):
            return self._normed(source) if whole else self._chosen(numbers)
        if isinstance(source, Product):
            bias = None if source.bias is None else source.bias.expand(source.width)[places]
            return self._linear(source.node, source.of, source.weight[places], bias)
        if isinstance(source, Activation):
            value = self.value(source.of[places])
            self._node = source.node
            return self._put(lambda out: Unary(out, source.function, value, source.parameter), len(places))
        assert isinstance(source, Pair)
        a, b = self.operand(source.a[places]), self.operand(source.b[places])
        self._node = source.node
        return self._put(lambda out: Binary(out, source.function, a, b), len(places))

    def _known_value(self, groups: list[tuple[Source, torch.Tensor, torch.Tensor]], width: int) -> int:
        """What does not depend on x as a value: kinds are added, each 0 where another is."""
        kinds = {source.kind for source, *_ in groups if isinstance(source, Known)}
        zeros = self._constant(torch.zeros(width, dtype=torch.float64))
        operands = [self._start(kind, groups, width, None, None) for kind in sorted(kinds)]
        first, *others = operands
        for other in others or [zeros]:
            first = self._added(first, other, width)
        return first.index

    def operand(self, numbers: torch.Tensor) -> Operand:
        """These elements as an operand."""
        groups = self._elements.groups(numbers)
        kinds = {source.kind if isinstance(source, Known) else "value" for source, *_ in groups}
        if len(kinds) == 1 and kinds != {"value"}:
            return self._start(kinds.pop(), groups, len(numbers), None, None)
        return Operand("value", self.value(numbers))

    def _normed(self, source: Normed) -> int:
        value = self.value(source.of)
        weight, bias = (None if v is None else self._constant(v) for v in (source.weight, source.bias))
        self._node = source.node
        return self._put(lambda out: LayerNorm(out, value, weight, bias, source.eps), source.width)

    def _chosen(self, numbers: torch.Tensor) -> int:
        """Elements of several sources side by side: a Linear with ones, which is exact."""
        return self._linear(self._node, numbers, torch.eye(len(numbers), dtype=torch.float64), None)

    # ------------------------------------------------------------------------------------------------------- Linear

    def _linear(self, node: Node, numbers: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> int:
        """weight times these elements, plus bias: what does not depend on x is added to its sum at last."""
        groups = self._elements.groups(numbers)
        known = [group for group in groups if isinstance(group[0], Known)]
        start = self._starts(known, weight, bias)
        inputs: list[tuple[int, torch.Tensor]] = []
        for source, columns, places in groups:
            if isinstance(source, Known):
                continue
            whole = isinstance(source, (Input, Normed))
            if whole and source.width > MAX_WIDTH:
                raise refused(source.node, f"a vector of {source.width} elements", f"at most {MAX_WIDTH}")
            used = torch.arange(source.width) if whole else torch.unique(places)
            of = torch.zeros(len(weight), len(used), dtype=torch.float64)
            of.index_add_(1, torch.searchsorted(used, places), weight[:, columns])
            for some, part in zip(torch.split(used, MAX_WIDTH), torch.split(of.float(), MAX_WIDTH, 1), strict=True):
                inputs.append((self.value(source.begin + some), part))
        self._node = node
        if not inputs:
            return self._sum(start, len(weight))
        result: Operand | None = None
        for at in range(0, len(inputs), MOST_INPUTS):
            values, weights = zip(*inputs[at : at + MOST_INPUTS], strict=True)
            more = self._product(values, weights, tuple(start) if at == 0 else ())
            result = more if result is None else self._added(result, more, len(weight))
        assert result is not None
        return result.index

    def _product(
        self, values: tuple[int, ...], weights: tuple[torch.Tensor, ...], start: tuple[Operand, ...]
    ) -> Operand:
        return Operand("value", self._put(lambda out: Linear(out, values, weights, start), len(weights[0])))

    def _added(self, one: Operand, two: Operand, width: int) -> Operand:
        return Operand("value", self._put(lambda out: Binary(out, "add", one, two), width))

    def _sum(self, start: list[Operand], width: int) -> int:
        """A Linear without inputs."""
        zeros = self._constant(torch.zeros(width, dtype=torch.float64))
        one, two = [*start, zeros, zeros][:2]
        return self._put(lambda out: Binary(out, "add", one, two), width)

    def _starts(
        self,
        known: list[tuple[Source, torch.Tensor, torch.Tensor]],
        weight: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> list[Operand]:
        """At most two operands: of the row, of the chain, with the bias in the first of them, else a constant."""
        for source, columns, places in known:
            assert isinstance(source, Known)
            if source.kind == "constant":
                assert source.literal is not None
                more = weight[:, columns] @ source.literal[places]
                bias = more if bias is None else bias + more
        starts = []
        for kind in KINDS:
            if any(isinstance(source, Known) and source.kind == kind for source, *_ in known):
                starts.append(self._start(kind, known, weight.shape[1], weight, bias))
                bias = None
        return starts if bias is None else [*starts, self._constant(bias.expand(len(weight)))]

    def _start(
        self,
        kind: str,
        groups: Sequence[tuple[Source, torch.Tensor, torch.Tensor]],
        columns: int,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
    ) -> Operand:
        """The elements of this kind among the groups, 0 for the others, or a matrix times them, as an operand."""
        own = tuple((s, c, p) for s, c, p in groups if isinstance(s, Known) and s.kind == kind)
        if kind == "constant":
            value = torch.zeros(columns, dtype=torch.float64)
            for source, at, places in own:
                assert source.literal is not None
                value[at] = source.literal[places]
            return self._constant(value)
        width = columns if weight is None else len(weight)
        described = tuple((id(s), *c.tolist(), -1, *p.tolist()) for s, c, p in own)
        numbers = tuple(() if v is None else tuple(v.reshape(-1).tolist()) for v in (weight, bias))
        key = (kind, width, described, numbers)
        if key not in self._placed:
            self._placed[key] = Operand(kind, self.vector_widths[kind])
            self.parts[kind].append(Part(own, columns, weight, bias))
            self.vector_widths[kind] += width
        return self._placed[key]

    def _constant(self, value: torch.Tensor) -> Operand:
        key = ("constant", *value.tolist())
        if key not in self._placed:
            self._placed[key] = Operand("constant", self._length)
            self._constants.append(value)
            self._length += len(value)
        return self._placed[key]

    def _put(self, made: object, width: int) -> int:
        """Add the instruction that ``made(out)`` makes; return the number of its value."""
        node = self._node
        if width > MAX_WIDTH:
            raise refused(node, f"a vector of {width} elements", f"at most {MAX_WIDTH}")
        if len(self.instructions) == MAX_INSTRUCTIONS:
            raise refused(node, f"instruction {MAX_INSTRUCTIONS + 1}", f"at most {MAX_INSTRUCTIONS} in a network")
        assert callable(made)
        try:
            self.instructions.append(made(len(self.widths)))
        except ValueError as error:
            raise OfValues(str(refused(node, str(error), "finite float32 weights"))) from error
        self.widths.append(width)
        return len(self.widths) - 1


class EnergyEmission(Emission):
    """The instructions of an energy, one number a chain, and of the score -grad E.

    network: the score, and the energy beside it. score: the score alone.
    """

    def _finish(self, output: int) -> None:
        if self.widths[output] != 1 or len(self._output_shape) != 1:
            sizes = ", ".join(["chains", *map(str, self._output_shape[1:])])
            what = f"energies [{sizes}]"
            raise refused(self._node, what, "one number a chain, [chains]")
        listing = self._listing()
        try:
            score = put_gradient(listing, output, -1.0)
            self.network, self.score = listing.network(score, output), listing.network(score)
        except ValueError as error:
            raise TypeError(f"net: the gradient of its energy: {error}") from error
