"""A network's operations, one by one, as sources of elements: what depends on x in the end, and what does not."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

from .arithmetic import KNOWN, Apart, Arithmetic, Size
from .elements import BATCH, Input, mixes_chains
from .folding import EXACT, MOVES, SHAPED, Folded, arguments, packet, size_of
from .tracing import DROPOUTS, Traced, refused, takes
from .translations import COMPOSED, TRANSLATED

aten = torch.ops.aten


class Reading(Arithmetic):
    """Reads a traced network; ``output`` has the numbers of the elements of what it returns."""

    def __init__(self, traced: Traced, folded: Folded) -> None:
        super().__init__(folded)
        self.traced = traced
        self.read |= dict.fromkeys(traced.tensors, Apart("constant"))
        self.read[traced.t] = Apart("row")
        self.read |= dict.fromkeys(traced.cond.values(), Apart("chain"))
        shape = [int(size) for size in traced.x.meta["val"].shape[1:]]
        width = int(torch.Size(shape).numel())
        self.input = Input(traced.x, width, self.elements.next())
        self.read[traced.x] = self.elements.add(self.input, shape)
        for node in traced.nodes:
            if node.op == "call_function":
                self.read[node] = self._operation(node)
            elif node.op == "get_attr":
                raise refused(node, "an operation of its own kind", KNOWN)
        self.output = self.numbers_of(traced.output)
        if mixes_chains(self.output):
            raise refused(traced.output, "an output that mixes chains", "one output for each chain")

    # -------------------------------------------------------------------------------------------------- dependence

    def _operation(self, node: Node) -> Any:
        name = packet(node)
        if name is aten._assert_tensor_metadata or node.meta.get("val") is None:
            return Apart("constant")
        if name is aten.sym_size:
            return Size()
        inputs = [n for n in node.all_input_nodes if not isinstance(self.read[n], Size)]
        if name in SHAPED and not isinstance(self.read[inputs[0]], Apart):
            self.folded.shaped.add(node)
            return Apart("constant")
        if not isinstance(node.meta["val"], (torch.Tensor, tuple, list)):
            return self._number(node, inputs)
        read = [self.read[n] for n in inputs]
        if all(isinstance(r, Apart) for r in read):
            kinds = {r.kind for r in read} - {"constant"}
            if len(kinds) < 2 and not (kinds == {"chain"} and self._in_kernel(node)):
                return self._apart(node, kinds.pop() if kinds else "constant")
        return self._of_x(node)

    def _number(self, node: Node, inputs: list[Node]) -> Any:
        if inputs or (
            node.target is not operator.getitem
            and not all(isinstance(self.read[n], Size) for n in node.all_input_nodes)
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
        return name not in EXACT | COMPOSED and name in TRANSLATED and not self._is_shared(node)

    # ------------------------------------------------------------------------------------------------ what x enters

    def _of_x(self, node: Node) -> Any:
        name = packet(node)
        if node.target is operator.getitem or name in MOVES:
            return self._moved(node)
        translate = TRANSLATED.get(name)
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
        read = self.read[node]
        if isinstance(read, Size):
            return self._size(node)
        value = node.meta["val"]
        if isinstance(read, Apart) and isinstance(value, torch.Tensor) and not value.is_floating_point():
            if read.kind == "constant":
                return self.folded.constant(node)
            raise refused(node, "whole numbers that differ between chains", "constant ones where x is moved about")
        return self.numbers_of(node)

    def _size(self, node: Node) -> int:
        if packet(node) is aten.sym_size:
            return size_of(node, BATCH)
        args, _ = arguments(node, self._size)
        target = node.target
        assert callable(target)
        return int(target(*args))
