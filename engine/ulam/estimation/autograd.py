"""First and second derivatives of one evaluation by automatic differentiation, in forward or reverse mode."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from ..gradients import plain

Function: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


class Graph:
    """Derivatives of a function at y along v, in one way; reverse ways keep the graph of one evaluation for all v."""

    def __init__(self, way: str, function: Function, y: torch.Tensor) -> None:
        self._way, self._function, self._y = way, function, y
        self.output: torch.Tensor | None = None
        if way == "forward":
            return
        with torch.inference_mode(False), torch.enable_grad():
            self._y = y.clone().requires_grad_()
            if way == "reverse":
                self.output = function(self._y)
                return
            with PlainAttention():
                self.output = function(self._y)
            self._u = torch.ones_like(self.output, requires_grad=True)
            self._pulled = _derivative(self.output, self._y, self._u, graph=True)

    def __call__(self, v: torch.Tensor) -> torch.Tensor:
        if self._way == "forward":
            tangent: torch.Tensor
            with torch.inference_mode(False), torch.no_grad():
                self.output, tangent = torch.func.jvp(self._function, (self._y,), (plain(v),))  # type: ignore[misc]
            return tangent
        assert self.output is not None
        with torch.inference_mode(False), torch.enable_grad():
            v = plain(v)
            if self._way == "reverse":
                return _derivative(self.output, self._y, v)
            if self._way == "double":
                return _derivative(self._pulled, self._u, v)
            along = _derivative((self._pulled * v).sum(), self._y, None, graph=True)
            return _derivative(along, self._u, v)


def _derivative(
    output: torch.Tensor, source: torch.Tensor, v: torch.Tensor | None, graph: bool = False
) -> torch.Tensor:
    """v' (d output / d source), like source; 0 where there is no path, which the comparison with differences judges."""
    if not output.requires_grad:
        return torch.zeros_like(source)
    (found,) = torch.autograd.grad(output, source, v, retain_graph=True, create_graph=graph, allow_unused=True)
    return torch.zeros_like(source) if found is None else found


class PlainAttention(TorchFunctionMode):
    """Within it, attention in this thread is its plain formula: the fused kernels have no second derivative."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _plain_attention(*args, **kwargs)
        if func is F.multi_head_attention_forward:  # runs outside this mode; with weights it uses no fused kernel
            given = inspect.signature(func).bind(*args, **kwargs)
            wanted = given.arguments.get("need_weights", True)
            given.arguments["need_weights"] = True
            output, weights = func(*given.args, **given.kwargs)
            return output, weights if wanted else None
        return func(*args, **kwargs)


def _plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> torch.Tensor:
    """The operation takes only masks to add, and misreads a bool one."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, float("-inf"))
    attend = torch.ops.aten._scaled_dot_product_attention_math
    out: torch.Tensor = attend(query, key, value, attn_mask, dropout_p, is_causal, **options)[0]
    return out
