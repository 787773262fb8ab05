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

The first use of every mode is held against finite differences (:mod:`ulam.differences`): a network may hide its
dependence on x.
"""

from __future__ import annotations

import torch

from .autograd import Graph
from .differences import Refusal, direction_at, held, refused
from .estimate import Estimator
from .gradients import plain, without_graph


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
        self._graphs: dict[str, Graph] = {}
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
        refusals: dict[object, Refusal] = {}
        for way in ways:
            key = (way, *self._estimator.kind())
            known, result = self._found.get(key), None
            try:
                if known is None and self._check:
                    direction = direction_at(self._y, self._estimator.sigma)
                    reduced = self._estimator.reduced()
                    known = held(self._estimator.output, self._y, way, direction, reduced, self._first_of_output)
                if not isinstance(known, Refusal):
                    result = self._graph(way)(v.to(self._y.dtype))
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # NotImplementedError too: what torch raises where there is no formula
                known = Refusal(way, " ".join(str(error).split()))
            if isinstance(known, Refusal):
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
        denoiser = self._estimator.denoiser
        raise TypeError(refused("net", denoiser.net, list(refusals.values()), denoiser.derivatives))

    def _graph(self, way: str) -> Graph:
        if way not in self._graphs:
            self._graphs[way] = Graph(way, self._estimator, self._y)
        return self._graphs[way]

    def _first_of_output(self, at: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """The network's own J v at another state, by whichever mode serves."""
        self.product(v)
        way = "forward" if self.mode == "forward" else "double"
        return Graph(way, self._estimator.output, at)(v)
