"""Derivatives compared with finite differences: whether a function hides its dependence on x.

A function may hide it wholly or in one branch (`detach`, `.data`, `no_grad`, numpy), and a mode of automatic
differentiation may silently lack a formula. Central differences along one direction show both, in two further
evaluations, and a few more where those cannot decide. Their error bar is measured, from the second difference, from the
next step and from how the derivative itself changes over a step, so a correct function is never refused because of
rounding in any precision, curvature, kinks or changes on a shorter length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ulam_kernels.tracing import recorder

from ..arguments import per_chain
from ..evaluation import autocast_state, in_eval_mode, modules_in, without_collectives
from ..gradients import plain, without_graph
from ..schedules import Array
from .autograd import ORDERS, Function, Graph, order_of


@dataclass(frozen=True)
class Differences:
    """How a derivative is compared with differences, at one precision of the network.

    steps: in units of :func:`direction_at`. off: the relative error that the derivative's own rounding may cause.
    coarse: a relative error bar above which nothing is proved. rounding: the least relative rounding of the output.
    """

    steps: tuple[float, ...]
    off: float
    coarse: float
    rounding: float


DOUBLE = Differences((1e-4, 1e-3, 1e-2, 5e-2), 1e-4, 1e-3, 2**-48)
SINGLE = Differences((3e-3, 1e-2, 3e-2, 1e-1), 3e-3, 3e-2, 2**-19)
HALF = Differences((5e-2, 0.1, 0.2, 0.4), 5e-2, 0.3, 2**-8)  # bfloat16, float16 and autocast
BAR = 3.0  # error bars within which a derivative may lie
EXAMPLES = 8  # of the data, on which a score is checked
DERIVED = 8  # by which every derivative multiplies the output's rounding

_checked_kinds: WeakKeyDictionary[torch.nn.Module, set[Any]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Refusal:
    """Why a way does not serve: torch's error, or its relative distance ``hidden`` from finite differences."""

    way: str
    reason: str
    hidden: float | None = None


def held(
    output: Function,
    y: torch.Tensor,
    way: str,
    direction: torch.Tensor,
    reduced: bool,
    lower: Function | None = None,
) -> bool | Refusal | None:
    """Whether derivatives of the output agree with differences, or differences cannot tell; None where all are 0.

    lower: for a derivative of order n, that of order n - 1 along the direction, whose differences it is compared with.
    They disagree where two central differences are much closer to each other than to the derivative, and so are the two
    sides of the finer one (not so at a kink), and the derivatives half a step and a step to either side (not so where a
    step is longer than the length on which the function changes).
    """
    claim = _Claim(way, output, y, direction)

    def function(at: torch.Tensor) -> torch.Tensor:
        return without_graph(output, at) if lower is None else lower(at)

    centre = claim.output if lower is None else lower(y)
    rules = precision_rules(claim.output, reduced)
    before, sides = None, 0.0
    for step in rules.steps:
        ahead, behind = function(y + step * direction), function(y - step * direction)
        slope = (ahead.double() - behind.double()) / (2 * step)
        size = max(claim.size, float(slope.norm()))
        if not size:
            return None if lower is None else True  # a network that is 0 before training shows nothing
        gap = claim.gap(slope)
        rounding = rules.rounding * float(centre.double().norm()) / step * DERIVED ** (order_of(way) - 1)
        curved = float((ahead.double() - 2 * centre.double() + behind.double()).norm()) / step
        if gap <= max(rules.off, min((curved + rounding) / size, rules.coarse)) * size:
            return True
        if not slope.any():  # the step was lost in rounding
            continue
        if before is not None:
            limit = BAR * (float((slope - before).norm()) + rounding) + sides + rules.off * size
            least = min(gap, claim.gap(before))
            if least > limit and least > BAR * claim.change(step, slope):
                return Refusal(way, "", gap / size)
        before, sides = slope, curved
    return True


class _Claim:
    """The derivative of a function at y along a direction, as one way computes it."""

    def __init__(self, way: str, function: Function, y: torch.Tensor, direction: torch.Tensor) -> None:
        self._at: Callable[[float], _Claim] = lambda step: _Claim(way, function, y + step * direction, direction)
        self._direction, self._along, self._pull = direction, None, None
        graph = Graph(way, function, y)
        if way == "reverse":
            self._pull = graph
            with suppress(RuntimeError):  # J v by a double product shows more, where there is one
                twice = Graph("double", function, y)(direction).double()
                u = fixed_signs(twice).to(y.dtype)
                off = abs(float((u * twice).sum() - (graph(u).double() * direction.double()).sum()))
                self._along = twice if off <= HALF.off * float(u.norm() * twice.norm()) else None
        else:
            self._along = graph(*[direction] * order_of(way)).double()
        assert graph.output is not None
        self.output = graph.output.detach()
        self.size = 0.0 if self._along is None else float(self._along.norm())

    def gap(self, slope: torch.Tensor) -> float:
        """Its distance from the slope found by differences."""
        gap = 0.0 if self._along is None else float((self._along - slope).norm())
        return max(gap, abs(float(slope.norm()) - self._pulled(slope)))

    def change(self, step: float, slope: torch.Tensor) -> float:
        """The most that it changes within a step to either side."""
        return max(self._off(self._at(part * step), slope) for part in (-1.0, -0.5, 0.5, 1.0))

    def _off(self, other: _Claim, slope: torch.Tensor) -> float:
        along = 0.0
        if self._along is not None and other._along is not None:
            along = float((self._along - other._along).norm())
        return max(along, abs(self._pulled(slope) - other._pulled(slope)))

    def _pulled(self, slope: torch.Tensor) -> float:
        """The component along the slope of the derivative in the direction, by J' u where only that is known."""
        length = float(slope.norm())
        if self._pull is None or not length:
            return length
        u = (slope / length).to(self._direction.dtype)
        return float((self._pull(u).double() * self._direction.double()).sum())


def precision_rules(output: torch.Tensor, reduced: bool) -> Differences:
    """The rules for the precision that the network appears to compute in."""
    halves = any(torch.equal(output, output.to(half).to(output.dtype)) for half in (torch.bfloat16, torch.float16))
    if halves or reduced:
        return HALF
    single = output.dtype == torch.float32 or torch.equal(output, output.float().double())
    return SINGLE if single else DOUBLE


def direction_at(y: torch.Tensor, sigma: Array | None = None) -> torch.Tensor:
    """Random signs times the length on which the function changes: that of the noise, or of y if shorter."""
    length = y.reshape(len(y), -1).double().pow(2).mean(1).sqrt()
    noise = torch.full_like(length, math.inf) if sigma is None else torch.tensor(sigma).to(length)
    length = torch.where(length > 0, torch.minimum(length, noise), 1.0 if sigma is None else noise)
    return (fixed_signs(y) * per_chain(length, y)).to(y.dtype)


def fixed_signs(like: torch.Tensor) -> torch.Tensor:
    """The same random signs at every call, like ``like``."""
    return (torch.randint(0, 2, like.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(like)


def refused(argument: str, function: object, refusals: list[Refusal], mode: str = "auto") -> str:
    """One line: the function, what is wrong with its derivatives, and the way out."""
    name = f"{argument}: got {getattr(function, '__name__', type(function).__name__)}"
    way_out = "" if mode == "auto" else f", or derivatives='auto' in place of {mode!r}"
    one = next((refusal for refusal in refusals if refusal.way != "forward"), refusals[0])
    if one.hidden is None:
        reasons = "; ".join(f"{refusal.way}: {refusal.reason:.160}" for refusal in refusals if refusal.hidden is None)
        return f"{name} without the derivative in x ({reasons}), expected torch operations that have one{way_out}"
    order = f"{one.way} derivative" if one.way in ORDERS else "derivative"
    return (
        f"{name}, whose {order} in x by automatic differentiation is {one.hidden:.0%} off finite "
        "differences, expected differentiable torch operations all the way from x (no detach, .data, no_grad, "
        "inference_mode, numpy or once_differentiable in between; create_graph=True where autograd.grad is called)"
        f"{way_out}"
    )


def check_derivative(
    checked: Function,
    x: torch.Tensor,
    function: Callable[..., object],
    name: str = "score",
    direction: torch.Tensor | None = None,
    order: int = 1,
) -> None:
    """Raises TypeError if a function hides its dependence on x or has no derivative, up to this order.

    ``name``: the argument's, if it is another function.

    A function of a module is checked once, in eval mode and on a few examples; random numbers it draws are drawn again.

    Args:
        checked: the function with its shape checked. name: the function's in errors.
        direction: along which it is compared, like x; :func:`direction_at` by default.
    """
    if torch.compiler.is_compiling() or recorder() is not None:
        return  # there are no numbers to compare
    modules = modules_in(function)
    module = modules[0] if modules else None
    code = getattr(getattr(function, "__func__", function), "__code__", type(function))
    kind = code, x.dtype, x.shape[1:], order
    if module is not None and kind in _checked_kinds.get(module, ()):
        return
    y = plain(x)[:EXAMPLES]
    along = direction_at(y) if direction is None else direction[:EXAMPLES]
    reduced = reduced_precision(y, modules)
    devices = [] if y.device.type == "cpu" else [y.device]
    with (
        in_eval_mode(modules),
        without_collectives(modules),
        torch.random.fork_rng(devices=devices, device_type=y.device.type),
    ):
        for way in ("reverse", *ORDERS[1:order]):
            try:
                known = held(checked, y, way, along, reduced, _lower(checked, way, along))
            except RuntimeError as error:
                without_graph(checked, y)  # a broken function raises its own error
                known = Refusal(way, " ".join(str(error).split()))
            if isinstance(known, Refusal):
                raise TypeError(refused(name, function, [known]))
    if known and module is not None:
        _checked_kinds.setdefault(module, set()).add(kind)


def _lower(function: Function, way: str, direction: torch.Tensor) -> Function | None:
    """The derivative along the direction of one order less, as :func:`held` takes it."""
    order = order_of(way) - 1
    lower = ORDERS[order - 1] if order > 1 else "double"
    return (lambda at: Graph(lower, function, at)(*[direction] * order)) if order else None


def reduced_precision(x: torch.Tensor, modules: Iterable[torch.nn.Module]) -> bool:
    """Whether modules appear to compute in bfloat16 or float16 here."""
    parameters = (parameter for module in modules for parameter in module.parameters(recurse=False))
    halves = (torch.bfloat16, torch.float16)
    return autocast_state(x.device)[0] or any(tensor.dtype in halves for tensor in (x, *parameters))
