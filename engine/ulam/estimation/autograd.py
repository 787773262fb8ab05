"""Derivatives of one evaluation by automatic differentiation, of any order, in forward or reverse mode."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from ..gradients import plain

Function: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


ORDERS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")


def order_of(way: str) -> int:
    """Of which derivative a way is: 1 for forward, reverse and double."""
    return ORDERS.index(way) + 1 if way in ORDERS else 1


class Graph:
    """Derivatives of a function at y, in one way; all but forward keep the graph of one evaluation for all directions.

    forward: J v. reverse: J' u. double: J v as the derivative in u of J' u. One of ORDERS from second on: the n-th
    derivative along v_1, ..., v_n, in reverse mode over reverse mode.
    """

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
            with PlainFormulas():
                self.output = function(self._y)

    def __call__(self, *along: torch.Tensor) -> torch.Tensor:
        """The derivative along these directions (reverse: J' u for the only one), like the function or like y."""
        if self._way == "forward":
            tangent: torch.Tensor
            with torch.inference_mode(False), torch.no_grad():
                self.output, tangent = torch.func.jvp(  # type: ignore[misc]
                    self._function, (self._y,), (plain(along[0]),)
                )
            return tangent
        assert self.output is not None
        with torch.inference_mode(False), torch.enable_grad():
            if self._way == "reverse":
                return derivative(self.output, self._y, plain(along[0]))
            u, pulled = self._pulled
            return derivative(_nested(pulled, self._y, along).sum(), u)

    def contracted(self, u: torch.Tensor, *along: torch.Tensor) -> torch.Tensor:
        """The inner products ``[B]`` of u with the derivative along n directions, in n passes."""
        assert self.output is not None
        with torch.inference_mode(False), torch.enable_grad():
            pulled = derivative(self.output, self._y, plain(u), graph=len(along) > 1)
            return _nested(pulled, self._y, along).detach()

    @cached_property
    def _pulled(self) -> tuple[torch.Tensor, torch.Tensor]:
        """u and J' u, which is linear in u."""
        assert self.output is not None
        u = torch.ones_like(self.output, requires_grad=True)
        return u, derivative(self.output, self._y, u, graph=True)


def _nested(pulled: torch.Tensor, y: torch.Tensor, along: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """``[B]``, from a gradient in y its product with the last direction, after its derivatives along the others."""
    *others, last = along
    for v in others:
        pulled = derivative((pulled * plain(v)).sum(), y, graph=True)
    return (pulled * plain(last)).reshape(len(y), -1).sum(1)


def derivative(
    output: torch.Tensor, source: torch.Tensor, v: torch.Tensor | None = None, graph: bool = False
) -> torch.Tensor:
    """v' (d output / d source), like source; 0 where there is no path, which the comparison with differences judges."""
    if not output.requires_grad:
        return torch.zeros_like(source)
    (found,) = torch.autograd.grad(output, source, v, retain_graph=True, create_graph=graph, allow_unused=True)
    return torch.zeros_like(source) if found is None else found


class PlainFormulas(TorchFunctionMode):
    """Within it, some operations in this thread are their plain formulas, which have derivatives of every order.

    The fused kernels of attention have no second derivative. Torch's third ones of layer_norm and instance_norm are
    wrong (they treat the saved mean and standard deviation as constants), those of gelu and mish overflow.
    """

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
        if func in (F.layer_norm, torch.layer_norm):
            return _plain_layer_norm(*args, **kwargs)
        if func is F.gelu and "tanh" in (*args[1:], kwargs.get("approximate")):
            x = args[0] if args else kwargs["input"]
            return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        if func is F.mish:
            x = args[0] if args else kwargs["input"]
            return x * torch.tanh(F.softplus(x))
        if func is F.instance_norm:
            return _plain_instance_norm(*args, **kwargs)
        return func(*args, **kwargs)


def _plain_layer_norm(
    input: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> torch.Tensor:
    return _normalised(input, len(normalized_shape), weight, bias, eps)


def _plain_instance_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    if not use_input_stats:
        return F.instance_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    places = input.dim() - 2
    weight, bias = (part if part is None else part.view(-1, *[1] * places) for part in (weight, bias))
    return _normalised(input, places, weight, bias, eps)


def _normalised(
    x: torch.Tensor, last: int, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """x less its mean over the last dimensions, over its standard deviation there; in at least float32."""
    over = tuple(range(-last, 0))
    centred = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = centred - centred.mean(over, keepdim=True)
    out = centred * (centred.square().mean(over, keepdim=True) + eps).rsqrt()
    out = out if weight is None else out * weight
    return (out if bias is None else out + bias).to(x.dtype)


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
