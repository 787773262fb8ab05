"""Derivatives of a denoiser: which mode of automatic differentiation serves, and whether it agrees with the network.

| order | mode | what is computed | passes |
|---|---|---|---|
| first | forward | J v, a Jacobian-vector product | 1 forward |
| first | reverse | J' v; J v as the derivative in u of J' u, which is linear in u [Townsend 2017] | 1, 2 reverse |
| n-th | reverse | u' d^n D[v_1, ..., v_n], along one v after the other from u' D on | n reverse |
| n-th | reverse | d^n D[v_1, ..., v_n] as the derivative of that in u | n + 1 reverse |

Forward mode comes first: it keeps no graph, and the numbers are the same. A network without forward formulas (fused
attention, most autograd.Functions) is differentiated in reverse. Second and higher derivatives are always in reverse:
torch's forward formulas of layer_norm, batch_norm, instance_norm and others treat what the operation saved (a mean, a
standard deviation) as constants, so a second derivative through them is silently wrong; reverse mode over reverse mode
is not. Where reverse mode is itself differentiated, attention runs as its plain formula, since the fused kernels have
no second derivative; so do norms, since torch's third derivatives of them are wrong
(:class:`.autograd.PlainFormulas`).

The first use of every mode, and of every order after those below it, is compared with finite differences
(:mod:`ulam.estimation.differences`), again at noise levels far from earlier ones and for conditioning not seen before:
a network may hide its dependence on x at some levels, or for some labels, only. Conditioning is compared row by row, so
a batch of labels that were all seen is not new; in each range of levels the first 10 batches with something new are
compared, and then no more than one in 16 (:mod:`ulam.estimation.derivative_checks`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache

import torch

from ..gradients import plain, without_graph
from .autograd import ORDERS, Function, Graph, order_of
from .derivative_checks import Held
from .differences import Refusal, direction_at, held, refused
from .estimator import Estimator


class Derivatives:
    """Derivatives at y ``[B, *shape]`` of D, the function of an :class:`ulam.estimation.estimator.Estimator`.

    Which modes serve is decided per denoiser, kind of input, range of noise levels and conditioning of their rows
    (:attr:`.estimator.Estimator.octaves`), and remembered by the denoiser. ``mode`` is the one that ran last. Results
    carry no gradient.

    Args:
        first: the modes of first derivatives, in the order in which they are tried unless the denoiser names one.

    Raises:
        TypeError: in every method, for a network that hides its dependence on x or has no derivatives in these modes.
    """

    def __init__(
        self, estimator: Estimator, y: torch.Tensor, *, first: tuple[str, ...] = ("forward", "reverse")
    ) -> None:
        with torch.inference_mode(False):
            self._y = plain(y)
        wanted = estimator.denoiser.derivatives
        self._modes = first if wanted == "auto" else (wanted,)
        self._estimator = estimator
        self._found = estimator.denoiser._found
        self._graphs: dict[str, Graph] = {}
        self.mode = ""

    def value(self) -> torch.Tensor:
        """D(y), from the evaluation that the last derivative used."""
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
        return self._along(v, v)

    def contracted(self, u: torch.Tensor, *along: torch.Tensor) -> torch.Tensor:
        """u' d^n D[v_1, ..., v_n], ``[B]``, for n directions, at most as many as :data:`.autograd.ORDERS`."""
        u, *vs = (v.to(self._y.dtype) for v in (u, *along))
        if len(vs) > 1:
            return self._by((ORDERS[len(vs) - 1],), lambda way: self._graph(way).contracted(u, *vs))

        def product(way: str) -> torch.Tensor:
            graph = self._graph(way)
            return (u * graph(*vs) if way == "forward" else graph(u) * vs[0]).flatten(1).sum(1)

        return self._by(self._modes, product)

    # ------------------------------------------------------------------------------------------- which way serves

    def _first(self, backward: str, v: torch.Tensor, look: bool = False) -> torch.Tensor:
        ways, v = tuple(backward if mode == "reverse" else mode for mode in self._modes), v.to(self._y.dtype)
        return self._by(ways, lambda way: self._graph(way)(v), look)

    def _along(self, *along: torch.Tensor) -> torch.Tensor:
        """The n-th derivative along n directions, like y; n is at least 2."""
        vs = [v.to(self._y.dtype) for v in along]
        return self._by((ORDERS[len(vs) - 1],), lambda way: self._graph(way)(*vs))

    def _by(self, ways: tuple[str, ...], apply: Callable[[str], torch.Tensor], look: bool = False) -> torch.Tensor:
        """``apply`` the first of these ways that serves. ``look``: compare it with differences in any case."""
        refusals: list[Refusal] = []
        for way in ways:
            known, result = self._known(way), None
            new = known is None or (look and known is True)
            try:
                if new:
                    known = self._held(way)
                if not isinstance(known, Refusal):
                    result = apply(way)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # NotImplementedError too: what torch raises where there is no formula
                known = Refusal(way, " ".join(str(error).split()))
            if isinstance(known, Refusal):
                refusals.append(known)
                continue
            assert result is not None
            self._remember(refusals)
            if new and known:
                for key, rows in self._keys(way).items():
                    self._found.setdefault(key, Held()).add(rows)
                self._note_modes()
            self.mode = "forward" if way == "forward" else "reverse"
            return result
        without_graph(self._estimator, self._y)  # a broken network raises its own error
        self._remember(refusals)
        denoiser = self._estimator.denoiser
        raise TypeError(refused("net", denoiser.net, refusals, denoiser.derivatives))

    def _held(self, way: str) -> bool | Refusal | None:
        """Whether a way agrees with differences here, for a higher derivative that agreed elsewhere the first one."""
        direction = direction_at(self._y, self._estimator.sigma)
        if order_of(way) > 1 and self._served(way):
            self._first("double", direction, look=True)
            return True
        lower = self._lower(order_of(way) - 1, direction)
        return held(self._estimator.output, self._y, way, direction, self._estimator.reduced(), lower)

    def _keys(self, way: str) -> dict[tuple[object, ...], set[Hashable]]:
        """The keys under which a way is remembered, one per range of noise levels in the batch, each with its rows."""
        kind = self._estimator.kind()
        return {(way, octave, *kind): rows for octave, rows in self._estimator.octaves.items()}

    def _known(self, way: str) -> bool | Refusal | None:
        """Whether a way serves at all levels of the batch, None where that must be looked into."""
        known = {key: (self._found.get(key), rows) for key, rows in self._keys(way).items()}
        refusal = next((found for found, _ in known.values() if isinstance(found, Refusal)), None)
        served = [isinstance(found, Held) and found.serves(rows) for found, rows in known.values()]
        return refusal or (True if all(served) else None)

    def _served(self, way: str) -> bool:
        """Whether a way agreed with differences at any noise level."""
        kind = self._estimator.kind()
        return any(key[0] == way and key[2:] == kind for key, known in self._found.items() if isinstance(known, Held))

    def _remember(self, refusals: list[Refusal]) -> None:
        """A missing formula is missing at every level; a derivative may be wrong at one of several levels only."""
        for refusal in refusals:
            for key in (keys := self._keys(refusal.way)):
                if refusal.hidden is None or len(keys) == 1:
                    self._found[key] = refusal
                    self._note_modes()
                elif isinstance(known := self._found.get(key), Held):
                    known.wary = True

    def _note_modes(self) -> None:
        """Tell the denoiser in which modes its derivatives ran last."""
        served = [way for (way, *_), known in self._found.items() if isinstance(known, Held)]
        modes = {ORDERS[order_of(way) - 1]: "forward" if way == "forward" else "reverse" for way in served}
        noted = self._estimator.denoiser._modes
        noted.update(modes)
        for order in noted.keys() - modes.keys():
            noted.pop(order, None)

    def _graph(self, way: str) -> Graph:
        if way not in self._graphs:
            self._graphs[way] = Graph(way, self._estimator, self._y)
        return self._graphs[way]

    def _lower(self, order: int, direction: torch.Tensor) -> Function | None:
        """The derivative of this order of the network itself along the direction, held at y; None for order 0."""
        if not order:
            return None

        @cache
        def way() -> str:
            self.product(direction) if order == 1 else self._along(*[direction] * order)
            return ORDERS[order - 1] if order > 1 else "forward" if self.mode == "forward" else "double"

        return lambda at: Graph(way(), self._estimator.output, at)(*[direction] * order)
