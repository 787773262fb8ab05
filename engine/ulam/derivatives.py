"""Derivatives of a denoiser: by which mode of automatic differentiation, and whether they are the network's own.

| order | mode | what is computed | passes |
|---|---|---|---|
| first | forward | J v, a Jacobian-vector product | 1 forward |
| first | reverse | J' v; J v as the derivative in u of J' u, which is linear in u [Townsend 2017] | 1, 2 reverse |
| second | reverse | d^2 D[v, v] as the derivative in u of that of u' J v in y along v | 3 reverse |

Forward mode comes first: it holds no graph, and the numbers are the same. A network without its formulas (fused
attention, most autograd.Functions) is differentiated in reverse. Second derivatives are in reverse always. torch's
forward-mode formulas of layer_norm, batch_norm, instance_norm and others take what the operation saved (a mean, a
standard deviation) for constants, so a second derivative through them is wrong without a word; reverse mode over
reverse mode is not. Where reverse mode is itself differentiated, attention runs as its plain formula, since the fused
kernels have no second derivative.

A network may also hide its dependence on x (`detach`, `.data`, `no_grad`, numpy), wholly or in one branch, and
automatic differentiation does not say so. The first use of every mode is therefore held against central differences
along one direction, in two further evaluations, a few more where these cannot tell. Their error bar is measured: the
second difference bounds what rounding, curvature and kinks may do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from .gradients import plain, without_graph

if TYPE_CHECKING:
    from .estimate import Estimator

Function: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
MODES = ("auto", "forward", "reverse")


@dataclass(frozen=True)
class Differences:
    """How a derivative is held against differences, at one precision of the network.

    steps: in units of :func:`_direction`. off: the share that the derivative's own rounding may be off. coarse: an
    error bar above this share proves nothing. rounding: of the output, counted at the least.
    """

    steps: tuple[float, ...]
    off: float
    coarse: float
    rounding: float


DOUBLE = Differences((1e-4, 1e-3, 1e-2, 5e-2), 1e-4, 1e-3, 2**-48)
SINGLE = Differences((3e-3, 1e-2, 3e-2, 1e-1), 3e-3, 3e-2, 2**-19)
HALF = Differences((5e-2, 0.1, 0.2, 0.4), 5e-2, 0.3, 2**-8)  # bfloat16, float16 and autocast
BAR = 3.0  # error bars within which a derivative may be
DERIVED = 8  # how much more rounding there is in a first derivative than in the output


class Derivatives:
    """Derivatives at y ``[B, *shape]`` of D, the function of an :class:`ulam.estimate.Estimator`.

    Which modes serve is settled once for a denoiser and a kind of input, and remembered by the denoiser. ``mode`` is
    the one that ran last. Results carry no gradient.

    Args:
        first: modes of first derivatives in the order in which they are tried, unless the denoiser names one.
        check: whether a mode that is used for the first time is held against differences.

    Raises:
        TypeError: in every method, a network that hides its dependence on x or has no derivatives in these modes.
    """

    def __init__(
        self,
        estimator: Estimator,
        y: torch.Tensor,
        *,
        first: tuple[str, ...] = ("forward", "reverse"),
        check: bool = True,
    ) -> None:
        with torch.inference_mode(False):
            self._y = plain(y)
        wanted = estimator.denoiser.derivatives
        self._modes = first if wanted == "auto" else (wanted,)
        self._estimator, self._check = estimator, check
        self._found = estimator.denoiser._found
        self._graphs: dict[str, _Graph] = {}
        self.mode = ""

    def value(self) -> torch.Tensor:
        """D(y), of the evaluation that the last derivative is of."""
        for graph in self._graphs.values():
            if graph.output is not None:
                return graph.output.detach()
        return without_graph(self._estimator, self._y)

    def image(self, v: torch.Tensor) -> torch.Tensor:
        """J v in forward mode, J' v in reverse mode, like y: enough for v' J v, in one pass."""
        return self._first("reverse", v)

    def product(self, v: torch.Tensor) -> torch.Tensor:
        """J v, like y."""
        return self._first("double", v)

    def second(self, v: torch.Tensor) -> torch.Tensor:
        """The second derivative along v, (d^2 D / dy^2)[v, v], like y."""
        self.mode = "reverse"
        return self._by(("second",), v)

    # ------------------------------------------------------------------------------------------- which way

    def _first(self, backward: str, v: torch.Tensor) -> torch.Tensor:
        return self._by(tuple(backward if mode == "reverse" else mode for mode in self._modes), v)

    def _by(self, ways: tuple[str, ...], v: torch.Tensor) -> torch.Tensor:
        """The result of the first of these ways that serves."""
        refusals: dict[object, _Refusal] = {}
        for way in ways:
            key = (way, *self._estimator.kind())
            known, result = self._found.get(key), None
            try:
                if known is None and self._check:
                    known = _held(self._estimator, self._y, way, self._first_of_output)
                if not isinstance(known, _Refusal):
                    result = self._graph(way)(v.to(self._y.dtype))
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # NotImplementedError too: what torch raises where there is no formula
                known = _Refusal(way, " ".join(str(error).split()))
            if isinstance(known, _Refusal):
                refusals[key] = known
                continue
            assert result is not None
            self._found |= refusals
            if known is not None:
                self._found[key] = known
            self.mode = "forward" if way == "forward" else "reverse"
            return result
        without_graph(self._estimator, self._y)  # what is wrong with the network itself says so
        self._found |= refusals
        raise TypeError(_refused(self._estimator.denoiser, list(refusals.values())))

    def _graph(self, way: str) -> _Graph:
        if way not in self._graphs:
            self._graphs[way] = _Graph(way, self._estimator, self._y)
        return self._graphs[way]

    def _first_of_output(self, at: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """The network's own J v at another state, by whichever mode serves."""
        self.product(v)
        way = "forward" if self.mode == "forward" else "double"
        return _Graph(way, self._estimator.output, at)(v)


class _Graph:
    """Derivatives of a function at y along v, one way; reverse ways keep one evaluation's graph for all v."""

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
    """v' (d output / d source), like source; 0 where there is no path, which the check by differences judges."""
    if not output.requires_grad:
        return torch.zeros_like(source)
    (found,) = torch.autograd.grad(output, source, v, retain_graph=True, create_graph=graph, allow_unused=True)
    return torch.zeros_like(source) if found is None else found


class PlainAttention(TorchFunctionMode):
    """Within it, in this thread, attention is its plain formula: the fused kernels have no second derivative."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _plain_attention(*args, **kwargs)
        if func is F.multi_head_attention_forward:  # would run outside this mode; with weights it has no fused kernel
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
    """The operation takes masks to be added alone, and reads a bool one wrongly."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, float("-inf"))
    attend = torch.ops.aten._scaled_dot_product_attention_math
    out: torch.Tensor = attend(query, key, value, attn_mask, dropout_p, is_causal, **options)[0]
    return out


# --------------------------------------------------------------------------------- against finite differences


@dataclass(frozen=True)
class _Refusal:
    """Why a way does not serve: torch's words, or how far it is from finite differences."""

    way: str
    reason: str
    hidden: float | None = None


def _held(
    estimator: Estimator, y: torch.Tensor, way: str, first: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> bool | _Refusal | None:
    """Whether derivatives of the network's output agree with differences, or these cannot tell; None where all are 0.

    They disagree where two central differences are much closer to each other than to the derivative, and the two sides
    of the finer one are: at a kink these are not.
    """
    direction = _direction(estimator, y)
    claim = _Claim(way, estimator.output, y, direction)

    def function(at: torch.Tensor) -> torch.Tensor:
        return first(at, direction) if way == "second" else without_graph(estimator.output, at)

    centre = function(y) if way == "second" else claim.output
    rules = _rules(estimator, claim.output)
    before, sides = None, 0.0
    for step in rules.steps:
        ahead, behind = function(y + step * direction), function(y - step * direction)
        slope = (ahead.double() - behind.double()) / (2 * step)
        size = max(claim.size, float(slope.norm()))
        if not size:
            return True if way == "second" else None  # a network that is 0 until it is trained shows nothing
        gap = claim.gap(slope)
        rounding = rules.rounding * float(centre.double().norm()) / step * (DERIVED if way == "second" else 1)
        curved = float((ahead.double() - 2 * centre.double() + behind.double()).norm()) / step
        if gap <= max(rules.off, min((curved + rounding) / size, rules.coarse)) * size:
            return True
        if not slope.any():  # the step was lost in rounding
            continue
        if before is not None:
            limit = BAR * (float((slope - before).norm()) + rounding) + sides + rules.off * size
            if min(gap, claim.gap(before)) > limit:
                return _Refusal(way, "", gap / size)
        before, sides = slope, curved
    return True


class _Claim:
    """What one way says of the derivative of a function at y along a direction."""

    def __init__(self, way: str, function: Function, y: torch.Tensor, direction: torch.Tensor) -> None:
        self._direction, self._along, self._pull = direction, None, None
        graph = _Graph(way, function, y)
        if way == "reverse":
            self._pull = graph
            with suppress(RuntimeError):  # the same path twice shows more, where it can be gone twice
                twice = _Graph("double", function, y)(direction).double()
                u = _signs(y)
                off = abs(float((u * twice).sum() - (graph(u).double() * direction.double()).sum()))
                self._along = twice if off <= HALF.off * float(u.norm() * twice.norm()) else None
        else:
            self._along = graph(direction).double()
        assert graph.output is not None
        self.output = graph.output.detach()
        self.size = 0.0 if self._along is None else float(self._along.norm())

    def gap(self, slope: torch.Tensor) -> float:
        """How far it is from the slope that differences found."""
        gap = 0.0 if self._along is None else float((self._along - slope).norm())
        length = float(slope.norm())
        if self._pull is not None and length:
            u = (slope / length).to(self._direction.dtype)
            pulled = float((self._pull(u).double() * self._direction.double()).sum())
            gap = max(gap, abs(length - pulled))
        return gap


def _rules(estimator: Estimator, output: torch.Tensor) -> Differences:
    """By the precision of the network, as far as it shows."""
    halves = any(torch.equal(output, output.to(half).to(output.dtype)) for half in (torch.bfloat16, torch.float16))
    if halves or estimator.reduced():
        return HALF
    single = output.dtype == torch.float32 or torch.equal(output, output.float().double())
    return SINGLE if single else DOUBLE


def _direction(estimator: Estimator, y: torch.Tensor) -> torch.Tensor:
    """Random signs times the length on which D changes: that of the noise, or of y where it is shorter."""
    flat = y.flatten(1).double()
    length = flat.pow(2).mean(1).sqrt()
    sigma = torch.tensor(estimator.sigma).to(length)
    length = torch.where(length > 0, torch.minimum(length, sigma), sigma)
    return (_signs(y) * length.view(-1, *[1] * (y.dim() - 1))).to(y.dtype)


def _signs(y: torch.Tensor) -> torch.Tensor:
    return (torch.randint(0, 2, y.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(y)


def _refused(denoiser: Any, refusals: list[_Refusal]) -> str:
    """One line: the network, what is wrong with its derivatives, and the way out."""
    name = getattr(denoiser.net, "__name__", type(denoiser.net).__name__)
    way_out = "" if denoiser.derivatives == "auto" else f", or derivatives='auto' in place of {denoiser.derivatives!r}"
    one = next((refusal for refusal in refusals if refusal.way != "forward"), refusals[0])
    if one.hidden is None:
        told = "; ".join(f"{refusal.way}: {refusal.reason:.160}" for refusal in refusals if refusal.hidden is None)
        return f"net: got {name} without the derivative in x ({told}), expected torch operations that have one{way_out}"
    order = "second derivative" if one.way == "second" else "derivative"
    return (
        f"net: got {name}, whose {order} in x by automatic differentiation is {one.hidden:.0%} off finite "
        "differences, expected differentiable torch operations all the way from x (no detach, .data, no_grad, "
        "inference_mode, numpy or once_differentiable in between; create_graph=True where autograd.grad is called)"
        f"{way_out}"
    )


def modes_that_ran(found: dict[Any, Any]) -> Iterator[tuple[str, str]]:
    """Of what a denoiser remembers: the order of a derivative, and the mode that serves it."""
    for (way, *_), known in found.items():
        if known is True:
            yield "second" if way == "second" else "first", "forward" if way == "forward" else "reverse"
