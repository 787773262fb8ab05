"""What each of torch's operations is on elements that depend on x."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Node

from .arithmetic import Arithmetic
from .tracing import refused

aten = torch.ops.aten

UNARY = {
    aten.silu: "silu",
    aten.relu: "relu",
    aten.tanh: "tanh",
    aten.sigmoid: "sigmoid",
    aten.mish: "mish",
}


def _sum(function: str) -> Callable[..., torch.Tensor]:
    def translate(on: Arithmetic, node: Node, a: Any, b: Any, *, alpha: float = 1) -> torch.Tensor:
        if alpha != 1:
            b = on.pair(node, "mul", b, float(alpha))
        return on.pair(node, function, a, b)

    return translate


def _layer_norm(
    on: Arithmetic, node: Node, x: Node, shape: Sequence[int], weight: Any = None, bias: Any = None,
    eps: float = 1e-5, cudnn: bool = True,
) -> torch.Tensor:  # fmt: skip
    if len(shape) != 1:
        raise refused(node, f"LayerNorm over {len(shape)} dimensions", "over the last one")
    return on.norm(node, x, weight, bias, eps)


def _linear(on: Arithmetic, node: Node, x: Node, weight: Any, bias: Any = None) -> torch.Tensor:
    b = None if bias is None else on.matrix(node, bias, "a bias")
    return on.product(node, x, on.matrix(node, weight), b)


def _matmul(on: Arithmetic, node: Node, x: Any, weight: Any) -> torch.Tensor:
    matrix = on.matrix(node, weight)
    if matrix.dim() != 2:
        raise refused(node, f"a product with {matrix.dim()} dimensions", "a matrix [in, out]")
    return on.product(node, x, matrix.t().contiguous(), None)


def _addmm(on: Arithmetic, node: Node, bias: Any, x: Any, weight: Any, **scales: float) -> torch.Tensor:
    if scales:
        raise refused(node, "addmm with scales", "beta = alpha = 1")
    return on.product(node, x, on.matrix(node, weight).t().contiguous(), on.matrix(node, bias))


def _softplus(on: Arithmetic, node: Node, x: Node, beta: float = 1, threshold: float = 20) -> torch.Tensor:
    if beta != 1 or threshold < 20:
        raise refused(node, f"Softplus of beta {beta} and threshold {threshold}", "beta = 1 and threshold = 20")
    return on.unary(node, x, "softplus")


def _elu(on: Arithmetic, node: Node, x: Node, alpha: float = 1, scale: float = 1, slope: float = 1) -> torch.Tensor:
    if slope != 1:
        raise refused(node, f"an ELU of slope {slope}", "ELU, or SELU")
    curve = on.unary(node, x, "elu", float(alpha))
    return curve if scale == 1 else on.pair(node, "mul", curve, scale)


def _batch_norm(
    on: Arithmetic, node: Node, x: Node, weight: Any, bias: Any, mean: Node, var: Node, momentum: float, eps: float
) -> tuple[torch.Tensor]:
    """In eval mode: a product and a sum by constants. Others are of training alone."""
    scale = 1 / (on.matrix(node, var) + eps).sqrt()
    if weight is not None:
        scale = scale * on.matrix(node, weight)
    shift = -on.matrix(node, mean) * scale
    if bias is not None:
        shift = shift + on.matrix(node, bias)
    channels = [len(scale)] + [1] * (x.meta["val"].dim() - 2)
    scaled = on.pair(node, "mul", x, on.constant(node, scale.reshape(channels)))
    return (on.pair(node, "add", scaled, on.constant(node, shift.reshape(channels))),)


def _total(mean: bool) -> Callable[..., torch.Tensor]:
    def translate(
        on: Arithmetic, node: Node, x: Node, dims: Any = None, keep: bool = False, **given: Any
    ) -> torch.Tensor:
        if given.get("dtype") not in (None, torch.float32):
            raise refused(node, f"a sum in {given['dtype']}", "float32 throughout")
        return on.total(node, x, [dims] if isinstance(dims, int) else dims, keep, mean)

    return translate


def _unary(function: str) -> Callable[..., torch.Tensor]:
    return lambda on, node, x: on.unary(node, x, function)


TRANSLATED: dict[Any, Callable[..., Any]] = {
    **{name: _unary(function) for name, function in UNARY.items()},
    aten.gelu: lambda on, n, x, approximate="none": on.unary(n, x, "gelu_tanh" if approximate == "tanh" else "gelu"),
    aten.leaky_relu: lambda on, n, x, slope=0.01: on.unary(n, x, "leaky_relu", float(slope)),
    aten.elu: _elu,
    aten.selu: lambda on, n, x: _elu(on, n, x, 1.6732632423543772, 1.0507009873554805),  # Klambauer et al. 2017, eq. 14
    aten.softplus: _softplus,
    aten._native_batch_norm_legit_no_training: _batch_norm,
    aten.layer_norm: _layer_norm,
    aten.linear: _linear,
    aten.addmm: _addmm,
    aten.mm: _matmul,
    aten.matmul: _matmul,
    aten.add: _sum("add"),
    aten.sub: _sum("sub"),
    aten.rsub: lambda on, n, a, b: on.pair(n, "sub", b, a),
    aten.mul: lambda on, n, a, b: on.pair(n, "mul", a, b),
    aten.div: lambda on, n, a, b: on.quotient(n, a, b),
    aten.sum: _total(mean=False),
    aten.mean: _total(mean=True),
    aten.square: lambda on, n, x: on.power(n, x, 2),
    aten.pow: lambda on, n, x, exponent: on.power(n, x, exponent),
    aten.neg: lambda on, n, a: on.pair(n, "mul", a, -1.0),
}
