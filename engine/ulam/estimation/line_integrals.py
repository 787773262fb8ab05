"""A density from its score: log p(x) - log p(origin) is the integral of the score along any path between them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from ulam_kernels.arguments import described, real
from ulam_kernels.reprs import short_repr
from ulam_kernels.validation import check_batch, check_data

from ..arguments import per_chain
from ..evaluation import autocast_state, check_like
from ..gradients import check_no_gradient, without_graph

POINTS = 16  # intervals between the points of a rule
LONG = 1 / 32  # of a line: shorter intervals may have the error of one so long
SHORTEST = 2.0**-40  # of a line
MOST_INTERVALS = 500
ROUNDING = 10  # times the precision: the relative rounding of a score


@dataclass(frozen=True)
class LogRatio:
    """log p(x) - log p(origin), and how far it may be off.

    value: ``[B]`` float64. error: ``[B]`` float64, the tolerance, more where two quadrature rules differ by more (the
    value is of the better one) or where rounding may cause more: a bound in practice, not a standard error.
    loop: ``[B]``, the integral from the origin straight to x and back by way of ``via``, 0 for the gradient of a
    density; loop_error: of it. None without ``via``. evaluations: calls of the score.
    """

    value: torch.Tensor
    error: torch.Tensor
    loop: torch.Tensor | None
    loop_error: torch.Tensor | None
    evaluations: int

    __repr__ = short_repr


class _Integral(NamedTuple):
    value: torch.Tensor
    error: torch.Tensor
    calls: int


def density_from_score(
    score: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    origin: torch.Tensor,
    *,
    via: torch.Tensor | None = None,
    tolerance: float = 1e-8,
) -> LogRatio:
    """log p(x) - log p(origin) of the density whose score grad log p is ``score``, for every row of x.

    The integral over u from 0 to 1 of s(origin + u (x - origin)) . (x - origin): log p up to the constant that a score
    does not know. By the rules of 9 and 17 points of Clenshaw & Curtis 1960 on intervals that are halved, row by row,
    until both agree to ``tolerance``; they contain the interval's ends, so that a jump does not hide there.

    A learned score is the gradient of no density exactly, and the value then belongs to the straight path: ``via``
    asks how much another path changes it. Any score serves: a network's at one noise level, :meth:`ulam.Energy.score`.

    Args:
        score: of x ``[B, *shape]``, like x; it is called with all rows in order, and gives no gradient here.
        x: ``[B, *shape]`` floats; the score is evaluated in their precision.
        origin: ``[*shape]``, or one a row ``[B, *shape]``.
        via: a point like the origin, off the straight path.
        tolerance: of the value, in nats, above 0; rounding may leave more.

    Raises:
        TypeError, ValueError: an invalid argument. RuntimeError: x, origin or via requires grad while gradients are
        recorded (the gradient in x is the score).

    Warns:
        RuntimeWarning: where 500 intervals of some line did not do; ``error`` is what was reached.
    """
    if not callable(score):
        raise TypeError(f"score: got {described(score)}, expected a function of x [B, *shape]")
    check_no_gradient("density_from_score", x=x, origin=origin, via=via)
    check_batch(x, "x")
    begin = _point(origin, x, "origin")
    middle = None if via is None else _point(via, x, "via")
    if real(tolerance, "tolerance") <= 0:
        raise ValueError(f"tolerance: got {described(tolerance)}, expected a number above 0")
    straight = _integral(_Line(score, begin, x), tolerance)
    if middle is None:
        return LogRatio(straight.value, straight.error, None, None, straight.calls)
    there = _integral(_Line(score, begin, middle), tolerance)
    back = _integral(_Line(score, middle, x), tolerance)
    return LogRatio(
        straight.value,
        straight.error,
        straight.value - there.value - back.value,
        straight.error + there.error + back.error,
        straight.calls + there.calls + back.calls,
    )


class _Line:
    """The component of the score along the lines from begin to end ``[B, *shape]``."""

    def __init__(self, score: Callable[[torch.Tensor], torch.Tensor], begin: torch.Tensor, end: torch.Tensor) -> None:
        self._score, self._dtype = score, end.dtype
        self._begin, self._way = begin.double(), end.double() - begin.double()
        far = torch.maximum(begin.double().flatten(1).norm(dim=1), end.double().flatten(1).norm(dim=1))
        length = self._way.flatten(1).norm(dim=1).clamp(min=torch.finfo(torch.float64).tiny)
        self.jitter = torch.finfo(self._dtype).eps * far / length  # rounding of a point, in units of the line
        autocast, half = autocast_state(end.device)
        self._reduced = (half,) if autocast else ()

    def __call__(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """s . (end - begin) at u ``[B]`` of the way, and its rounding."""
        at = (self._begin + per_chain(u, self._way) * self._way).to(self._dtype)
        s = check_like(without_graph(self._score, at), at.shape, "score", why=" like its input")
        if not s.is_floating_point():
            raise TypeError(f"score: got {s.dtype}, expected floats like its input")
        terms = (s.double() * self._way).flatten(1)
        precision = max(torch.finfo(kind).eps for kind in (self._dtype, s.dtype, *self._reduced))
        return terms.sum(1), ROUNDING * precision * terms.abs().sum(1)

    def integral(self, left: torch.Tensor, width: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Over [left, left + width]: by all points of the rule, how far off by every second point, and its rounding."""
        fine, coarse, rounding = (torch.zeros_like(left) for _ in range(3))
        before: torch.Tensor | None = None
        for k, (node, weight) in enumerate(zip(*_rule(POINTS), strict=True)):
            f, f_rounding = self(left + width * (1 + node) / 2)
            fine, rounding = fine + width / 2 * weight * f, rounding + width / 2 * weight * f_rounding
            if k % 2 == 0:
                coarse = coarse + width / 2 * _rule(POINTS // 2)[1][k // 2] * f
            if before is not None:
                rounding = rounding + self.jitter * (f - before).abs()
            before = f
        return fine, (fine - coarse).abs(), rounding


def _integral(line: _Line, tolerance: float) -> _Integral:
    """The whole line, interval by interval, each row at its own pace."""
    done, width, value, error = (torch.zeros_like(line.jitter) for _ in range(4))
    width += 1
    for intervals in range(1, MOST_INTERVALS + 1):
        part, off, rounding = line.integral(done, width)
        wanted = torch.maximum(tolerance * width.clamp(min=LONG), rounding)
        taken = (done < 1) & (~(off > wanted) | (width <= SHORTEST))  # NaN is taken: halving would not help
        value = value + torch.where(taken, part, 0.0)
        error = error + torch.where(taken, torch.maximum(off, wanted), 0.0)
        done = torch.where(taken, done + width, done)
        width = torch.minimum(torch.where(taken, 2 * width, width / 2), 1 - done)
        if not bool((done < 1).any()):
            return _Integral(value, error, intervals * (POINTS + 1))
    part, off, rounding = line.integral(done, 1 - done)  # what is left, as one interval
    error = error + off + rounding
    warnings.warn(
        f"score: got one whose integral is off by {float(error.max()):.2g} after {MOST_INTERVALS} intervals, expected "
        f"{tolerance:g}: is it random, or of less precision than x? a larger tolerance takes fewer",
        RuntimeWarning,
        stacklevel=3,
    )
    return _Integral(value + part, error, (MOST_INTERVALS + 1) * (POINTS + 1))


@cache
def _rule(n: int) -> tuple[list[float], list[float]]:
    """The points cos(pi k / n), k = 0 to n, and weights that are exact for polynomials of degree n on [-1, 1]."""
    points, degrees = np.cos(np.pi * np.arange(n + 1) / n), np.arange(n + 1)
    integrals = np.where(degrees % 2, 0.0, 2 / (1.0 - degrees * degrees + degrees % 2))  # of Chebyshev's polynomials
    weights = np.linalg.solve(np.polynomial.chebyshev.chebvander(points, n).T, integrals)
    return points.tolist(), weights.tolist()


def _point(point: object, x: torch.Tensor, name: str) -> torch.Tensor:
    """A point for each row of x, in its dtype."""
    right = f"a float tensor {list(x.shape[1:])}, or one a row {list(x.shape)}"
    if not isinstance(point, torch.Tensor):
        raise TypeError(f"{name}: got {described(point)}, expected {right}")
    check_data(point, name)
    if not point.is_floating_point() or point.shape not in (x.shape, x.shape[1:]):
        raise ValueError(f"{name}: got {described(point)}, expected {right}")
    return point.detach().to(x.device).expand(x.shape)
