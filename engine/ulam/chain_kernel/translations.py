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


def _group_norm(
    on: Arithmetic, node: Node, x: Node, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5,
    cudnn: bool = True,
) -> torch.Tensor:  # fmt: skip
    return on.group_norm(node, x, groups, weight, bias, eps)


def _rms_norm(
    on: Arithmetic, node: Node, x: Node, shape: Sequence[int], weight: Any = None, eps: float | None = None
) -> torch.Tensor:
    if len(shape) != 1:
        raise refused(node, f"RMSNorm over {len(shape)} dimensions", "over the last one")
    return on.rms_norm(node, x, weight, torch.finfo(torch.float32).eps if eps is None else eps)


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


def _softplus(on: Arithmetic, node: Node, x: Any, beta: float = 1, threshold: float = 20) -> torch.Tensor:
    if threshold < 20 or beta == 0:
        raise refused(
            node, f"Softplus of beta {beta} and threshold {threshold}", "beta not 0 and threshold at least 20"
        )
    return _scaled(on, node, x, "softplus", beta)


def _scaled(on: Arithmetic, node: Node, x: Any, function: str, scale: float, *given: float) -> torch.Tensor:
    """function(scale x) / scale."""
    if scale == 1:
        return on.unary(node, x, function, *given)
    curve = on.unary(node, on.pair(node, "mul", x, float(scale)), function, *given)
    return on.pair(node, "mul", curve, 1 / scale)


def _prelu(on: Arithmetic, node: Node, x: Node, weight: Any) -> torch.Tensor:
    """relu(x) + w (-relu(-x)), a slope for each channel or one for all."""
    slopes = on.matrix(node, weight, "a slope")
    slopes = slopes.reshape([-1] + [1] * (x.meta["val"].dim() - 2)) if slopes.numel() > 1 else slopes.reshape(())
    below = on.pair(node, "mul", _scaled(on, node, x, "relu", -1), on.constant(node, slopes))
    return on.pair(node, "add", on.unary(node, x, "relu"), below)


def _abs(on: Arithmetic, node: Node, x: Node) -> torch.Tensor:
    return on.pair(node, "sub", on.unary(node, x, "relu"), _scaled(on, node, x, "relu", -1))


# A clamp is off by a rounding of its bounds, whatever x is: at 6, by 8 times what torch's network is.
LARGEST_BOUND = 2.0


def _clamp(on: Arithmetic, node: Node, x: Any, low: float | None = None, high: float | None = None) -> torch.Tensor:
    for bound in (low, high):
        if bound is not None and not (isinstance(bound, (int, float)) and abs(bound) <= LARGEST_BOUND):
            raise refused(node, f"a clamp at {bound}", f"numbers from {-LARGEST_BOUND} to {LARGEST_BOUND}")
    return _between(on, node, x, low, high)


def _between(on: Arithmetic, node: Node, x: Any, low: float | None, high: float | None) -> torch.Tensor:
    """high - relu(high - (low + relu(x - low)))."""
    if low is not None:
        x = on.pair(node, "add", on.unary(node, on.pair(node, "sub", x, float(low)), "relu"), float(low))
    if high is not None:
        x = on.pair(node, "sub", float(high), on.unary(node, on.pair(node, "sub", float(high), x), "relu"))
    numbers: torch.Tensor = on.numbers_of(x) if isinstance(x, Node) else x
    return numbers


def _hardswish(on: Arithmetic, node: Node, x: Node) -> torch.Tensor:
    """x relu6(x + 3) / 6 [Howard et al. 2019]."""
    gate = _between(on, node, on.pair(node, "add", x, 3.0), 0, 6)
    return on.pair(node, "mul", x, on.pair(node, "mul", gate, 1 / 6))


def _where(on: Arithmetic, node: Node, mask: Node, a: Any, b: Any) -> torch.Tensor:
    chosen = on.fixed(node, mask, "a mask")
    both = [on.numbers_of(one) if isinstance(one, Node) else on.constant(node, float(one)) for one in (a, b)]
    return torch.where(chosen, both[0], both[1])


def _pad(
    on: Arithmetic, node: Node, x: Node, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> torch.Tensor:
    """Constants beside x."""
    numbers: torch.Tensor = on.numbers_of(x)
    if mode != "constant" or len(pad) >= 2 * numbers.dim() or any(not isinstance(n, int) for n in pad):
        raise refused(node, f"a padding {mode} by {list(pad)}", "one by constants, of dimensions behind the chains'")
    return torch.nn.functional.pad(numbers, list(pad), value=int(on.constant(node, float(value or 0))))


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


# Of many instructions: of the conditioning alone, torch evaluates them, chain by chain.
COMPOSED = {aten.celu, aten.prelu, aten.log_sigmoid, aten.hardswish, aten.group_norm, aten.rms_norm}
TRANSLATED: dict[Any, Callable[..., Any]] = {
    **{name: _unary(function) for name, function in UNARY.items()},
    aten.gelu: lambda on, n, x, approximate="none": on.unary(n, x, "gelu_tanh" if approximate == "tanh" else "gelu"),
    aten.leaky_relu: lambda on, n, x, slope=0.01: on.unary(n, x, "leaky_relu", float(slope)),
    aten.elu: _elu,
    aten.selu: lambda on, n, x: _elu(on, n, x, 1.6732632423543772, 1.0507009873554805),  # Klambauer et al. 2017, eq. 14
    aten.softplus: _softplus,
    aten.celu: lambda on, n, x, alpha=1: _scaled(on, n, x, "elu", 1 / alpha, 1.0),  # Barron 2017, eq. 2
    aten.prelu: _prelu,
    aten.log_sigmoid: lambda on, n, x: _scaled(on, n, x, "softplus", -1),  # -softplus(-x)
    aten.hardswish: _hardswish,
    aten.clamp: _clamp,
    aten.clamp_min: _clamp,
    aten.clamp_max: lambda on, n, x, high: _clamp(on, n, x, None, high),
    aten.hardtanh: lambda on, n, x, low=-1.0, high=1.0: _clamp(on, n, x, low, high),
    aten.abs: _abs,
    aten.where: _where,
    aten.masked_fill: lambda on, n, x, mask, value: _where(on, n, mask, value, x),
    aten.pad: _pad,
    aten._native_batch_norm_legit_no_training: _batch_norm,
    aten.layer_norm: _layer_norm,
    aten.group_norm: _group_norm,
    aten.rms_norm: _rms_norm,
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
