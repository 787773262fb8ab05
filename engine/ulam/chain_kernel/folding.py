"""What depends on time alone, or on the conditioning alone: evaluated in torch, in float64, chain by chain alike.

A chain's vectors must not depend on who is in the batch. So matrices are multiplied by products and a sum in a fixed
tree, whose every operation is rounded alike anywhere; and where a function is not, as exp is whose bits torch lets
depend on an element's place, one chain, or one time, is evaluated at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.fx import Node

from ..evaluation import way_out_of, without_remarks
from .tracing import Traced, refused

aten = torch.ops.aten

MOVES = {
    aten.view, aten.reshape, aten.flatten, aten.unflatten, aten.unsqueeze, aten.squeeze, aten.expand, aten.expand_as,
    aten.slice, aten.select, aten.chunk, aten.split, aten.split_with_sizes, aten.unbind, aten.cat, aten.concat,
    aten.stack, aten.transpose, aten.permute, aten.t, aten.movedim, aten.repeat, aten.narrow, aten.contiguous,
    aten.clone, aten.alias, aten.detach, aten.lift_fresh_copy, aten.to, aten._to_copy, aten.dropout, aten.view_as,
    aten.reshape_as, aten.repeat_interleave, aten.index_select, aten.flip, aten.hstack, aten.tile,
    aten.broadcast_to, aten._unsafe_view, aten.view_copy, aten.squeeze_copy, aten.type_as, aten.alias_copy,
    aten.feature_dropout, aten.alpha_dropout, aten.concatenate, aten.copy, aten.roll, aten.index, aten.slice_scatter,
    aten.select_scatter, aten.unsqueeze_copy, aten.expand_copy,
}  # fmt: skip
EXACT = MOVES | {
    aten.linear, aten.addmm, aten.mm, aten.matmul, aten.add, aten.sub, aten.mul, aten.div, aten.rsub, aten.neg,
    aten.relu, aten.embedding, aten.full, aten.zeros, aten.ones, aten.zeros_like, aten.ones_like, aten.arange,
    aten.one_hot, aten.eq, aten.ne, aten.gt, aten.lt, aten.ge, aten.le, aten.where, aten.abs, aten.sqrt, aten.clamp,
    aten.clamp_min, aten.clamp_max, aten.hardtanh, aten.relu6, aten.masked_fill, aten.pad,
}  # fmt: skip
SHAPED = {  # constants of a tensor's shape or kind, and what they are filled with; None: the last argument says it
    aten.zeros_like: 0, aten.ones_like: 1, aten.full_like: None,
    aten.new_zeros: 0, aten.new_ones: 1, aten.new_full: None,
}  # fmt: skip


def packet(node: Node) -> Any:
    """The operation of a node, whichever overload."""
    return getattr(node.target, "overloadpacket", node.target)


def arguments(node: Node, value: Callable[[Node], Any]) -> tuple[Any, Any]:
    """The arguments of an operation, with the values of nodes."""
    args: Any = torch.fx.map_arg(node.args, value)
    kwargs: Any = torch.fx.map_arg(node.kwargs, value)
    return args, kwargs


def linear_exact(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x W^T + b in a fixed tree of sums: halves are added until one column is left, whatever the batch."""
    rows = x.reshape(-1, x.shape[-1])
    block = max(1, LARGEST_PRODUCT // max(weight.numel(), 1))
    parts = [_tree(rows[at : at + block], weight) for at in range(0, max(len(rows), 1), block)]
    out = torch.cat(parts).reshape(*x.shape[:-1], len(weight))
    return out if bias is None else out + bias


LARGEST_PRODUCT = 1 << 20  # numbers at a time


def _tree(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    products = x[:, :, None] * weight.t().contiguous()
    if not (width := products.shape[1]):
        return products.sum(1)
    while width > 1:
        half = (width + 1) // 2
        products[:, : width - half] += products[:, half:width]
        width = half
    return products[:, 0]


class Folded:
    """Evaluates nodes of a graph that do not depend on x, on the host: of weights on a GPU it has copies as of now."""

    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        copies = {id(tensor): tensor.detach().cpu() for tensor in traced.tensors.values()}
        self._tensors = {node: copies[id(tensor)] for node, tensor in traced.tensors.items()}
        self._arguments = {node: name for name, node in traced.cond.items()}
        self.shaped: set[Node] = set()  # of which the shape of x is all that they depend on
        self._order = {node: number for number, node in enumerate(traced.nodes)}

    def constant(self, node: Node) -> torch.Tensor:
        """The value of a node that depends on nothing."""
        return self.values([node], None, {}, 2)[0]

    def values(
        self, nodes: Iterable[Node], t: torch.Tensor | None, cond: dict[str, torch.Tensor], batch: int
    ) -> list[torch.Tensor]:
        """The values of these nodes in float64, for times ``[batch]`` and conditioning ``[batch, ...]``."""
        known: dict[Node, Any] = {}
        wanted = list(nodes)
        reached, waiting = set(), list(wanted)
        while waiting:
            node = waiting.pop()
            if node not in reached:
                reached.add(node)
                if not (_is_size(node) or node in self.shaped):
                    waiting += node.all_input_nodes
        for node in sorted(reached, key=self._order.__getitem__):
            try:
                known[node] = self._value(node, known, t, cond, batch)
            except (RuntimeError, IndexError) as error:  # torch.export does not look at the types of all arguments
                none = torch.zeros(batch)
                if not (way_out := way_out_of(error, none, none if t is None else t, cond)):
                    raise
                raise refused(node, without_remarks(str(error)), way_out) from error
        return [known[node] for node in wanted]

    def _value(
        self, node: Node, known: dict[Node, Any], t: torch.Tensor | None, cond: dict[str, torch.Tensor], batch: int
    ) -> Any:
        if node in self._tensors:
            return _wide(self._tensors[node])
        if node is self.traced.t:
            assert t is not None
            return _wide(t)
        if node in self._arguments:
            return _wide(cond[self._arguments[node]])
        if _is_size(node):
            return size_of(node, batch)
        if node in self.shaped:
            return _filled(node, batch)
        if _is_step(node):
            return _wide(self._as_written(node, {}, t, cond, batch))
        return computed(node, known)

    def _as_written(
        self, node: Node, found: dict[Node, Any], t: torch.Tensor | None, cond: dict[str, torch.Tensor], batch: int
    ) -> Any:
        """The value of a node in the network's own precision: which whole number, or which side, a rounding decides."""
        for needed in () if _is_size(node) else node.all_input_nodes:
            if needed not in found:
                found[needed] = self._as_written(needed, found, t, cond, batch)
        if node in self._tensors:
            return self._tensors[node]
        if node is self.traced.t:
            return t
        if node in self._arguments:
            return cond[self._arguments[node]]
        return size_of(node, batch) if _is_size(node) else computed(node, found, widened=False)


def computed(node: Node, known: dict[Node, Any], widened: bool = True) -> Any:
    """The value of an operation on values that are known, in float64 where it was in float32 unless not ``widened``."""
    args, kwargs = arguments(node, known.__getitem__)
    if packet(node) is aten._assert_tensor_metadata:
        return None
    if packet(node) is aten.linear:
        return linear_exact(args[0], args[1], args[2] if len(args) > 2 else None)
    if packet(node) in (aten.mm, aten.matmul) and args[1].dim() == 2:
        return linear_exact(args[0], args[1].t(), None)
    if packet(node) is aten.addmm:
        return linear_exact(args[1], args[2].t(), args[0])
    target = node.target
    assert callable(target)
    if not widened:
        return target(*args, **kwargs)
    wide = torch.float64
    args = tuple(wide if arg is torch.float32 else arg for arg in args)
    kwargs = {name: wide if value is torch.float32 else value for name, value in kwargs.items()}
    made = node.meta.get("val")
    if isinstance(made, torch.Tensor) and made.dtype == torch.float32 and packet(node) in FACTORIES:
        kwargs["dtype"] = wide
    elif isinstance(made, torch.Tensor) and made.dtype == torch.float32 and packet(node) not in INDEXED:
        args = tuple(arg.double() if isinstance(arg, torch.Tensor) and arg.dtype in WHOLE else arg for arg in args)
    return target(*args, **kwargs)


FACTORIES = {
    aten.full, aten.zeros, aten.ones, aten.arange, aten.linspace, aten.logspace, aten.empty, aten.scalar_tensor,
    aten.eye, aten.zeros_like, aten.ones_like, aten.full_like, aten.new_zeros, aten.new_ones, aten.new_full,
}  # fmt: skip

INDEXED = MOVES | {aten.embedding, aten.gather}  # whole numbers may be places there
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


STEPS = {
    aten.floor, aten.ceil, aten.round, aten.trunc, aten.frac, aten.sign, aten.heaviside, aten.remainder, aten.fmod,
    aten.floor_divide, aten.fix,
}  # fmt: skip


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _is_step(node: Node) -> bool:
    """Whether an operation jumps: what makes whole numbers or truth values of others, floors and the like."""
    made = node.meta.get("val")
    if not isinstance(made, torch.Tensor):
        return False
    given = [n.meta["val"] for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    if made.is_floating_point():
        return packet(node) in STEPS or node.kwargs.get("rounding_mode") is not None
    return any(value.is_floating_point() for value in given)


def _filled(node: Node, batch: int) -> torch.Tensor:
    """A constant of the shape that the node has in a batch of so many chains."""
    made = node.meta["val"]
    value = SHAPED[packet(node)]
    fill = node.args[-1] if value is None else value
    if not isinstance(fill, (int, float)):
        raise refused(node, "a constant that the number of chains gives", "one for any number")
    sizes = [batch if isinstance(size, torch.SymInt) else int(size) for size in made.shape]
    return torch.full(sizes, fill, dtype=torch.float64 if made.is_floating_point() else made.dtype)


def _is_size(node: Node) -> bool:
    return packet(node) is aten.sym_size


def size_of(node: Node, batch: int) -> int:
    """The size that a node asks for, of a batch of so many chains."""
    of, dimension = node.args
    assert isinstance(of, Node) and isinstance(dimension, int)
    size = of.meta["val"].shape[dimension]
    return batch if isinstance(size, torch.SymInt) else int(size)
