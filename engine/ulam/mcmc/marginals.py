"""Exact marginals of the built-in densities, for pictures: closed forms, or sums over what is left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from .densities import BuiltIn, DoubleWell, Funnel, Ring, Rosenbrock
from .gaussians import Gaussian, GaussianMixture

LogDensity: TypeAlias = Callable[[torch.Tensor], torch.Tensor]  # [N, k] float64 to [N]
BLOCK = 1 << 20  # terms of sums that are in memory at once
WIDTHS = 9.0  # standard deviations that sums go out to
PER_WIDTH = 1.5  # terms on the narrowest standard deviation: a Gaussian's sum is exact to 1e-15 then
LEAST_TERMS = 2001


def marginal(density: BuiltIn, elements: Sequence[int]) -> LogDensity | None:
    """log p of these elements of a state, all different; None for a density that is not one of ulam's own.

    A function of x ``[N, k]`` float64, ``[N]``. Trapezoidal sums are exact to about 1e-6 of a density.
    """
    chosen, k = list(elements), len(elements)
    if isinstance(density, Gaussian):
        return Gaussian(density.mean[chosen], density.covariance[chosen][:, chosen]).log_prob
    if isinstance(density, GaussianMixture):
        return GaussianMixture(density.means[:, chosen], density.std, density.weights).log_prob
    if isinstance(density, DoubleWell):
        return DoubleWell(k, density.height, density.separation).log_prob
    if isinstance(density, Rosenbrock):
        return _of_rosenbrock(density, chosen)
    if isinstance(density, Funnel):
        return _of_funnel(density, chosen)
    return _of_ring(density, k) if isinstance(density, Ring) else None


def _of_rosenbrock(density: Rosenbrock, chosen: list[int]) -> LogDensity:
    """Products over pairs; y alone is the sum over x of p(x) p(y | x)."""
    a, b = density.a, density.b
    pair, first = Rosenbrock(2, a, b), Gaussian([1.0], 1 / (2 * b))
    reach = WIDTHS / math.sqrt(2 * b)
    spacing = 1 / (math.sqrt(2 * a) * 2 * (1 + reach) * PER_WIDTH)
    x = torch.linspace(1 - reach, 1 + reach, int(2 * reach / spacing) + LEAST_TERMS, dtype=torch.float64)
    on_x = first.log_prob(x[:, None]) + (x[1] - x[0]).log()

    def second(y: torch.Tensor) -> torch.Tensor:
        return on_x + 0.5 * math.log(a / math.pi) - a * (y - x.square()).square()

    def log_density(at: torch.Tensor) -> torch.Tensor:
        total = at.new_zeros(len(at))
        for i in sorted({element // 2 for element in chosen}):
            columns = [chosen.index(e) if e in chosen else None for e in (2 * i, 2 * i + 1)]
            if columns[0] is None:
                total = total + _summed(second, at[:, columns[1]])
            elif columns[1] is None:
                total = total + first.log_prob(at[:, columns[:1]])
            else:
                total = total + pair.log_prob(at[:, columns])
        return total

    return log_density


def _of_funnel(density: Funnel, chosen: list[int]) -> LogDensity:
    """The funnel of fewer elements; without x_0 the sum over it."""
    if 0 in chosen:
        order = sorted(range(len(chosen)), key=lambda column: chosen[column] != 0)
        law = Funnel(len(chosen), density.std) if len(chosen) > 1 else Gaussian([0.0], density.std**2)
        return lambda at: law.log_prob(at[:, order])
    reach, k = WIDTHS * density.std, len(chosen)
    reach += k * density.std**2 / 2  # exp(-k v / 2) moves the weight down
    v = torch.linspace(-reach, reach, int(2 * reach * PER_WIDTH) + LEAST_TERMS, dtype=torch.float64)
    on_v = (
        Gaussian([0.0], density.std**2).log_prob(v[:, None]) + (v[1] - v[0]).log() - k / 2 * (math.log(2 * math.pi) + v)
    )
    return lambda at: _summed(lambda square: on_v - 0.5 * square * (-v).exp(), at.square().sum(1))


def _of_ring(density: Ring, k: int) -> LogDensity:
    """The sum over the distance s in the d - k dimensions that are left out, with their sphere of radius s."""
    rest = density.dimension - k
    if not rest:
        return density.log_prob
    law = density._law
    end = float(law.x[-1])
    s = torch.linspace(0, end, int(end / density.std * PER_WIDTH) + LEAST_TERMS, dtype=torch.float64)
    ends = torch.ones_like(s)
    ends[0] = ends[-1] = 0.5
    on_s = (ends * (s[1] - s[0])).log() + _log_sphere(rest) - law.log_normaliser - _log_sphere(density.dimension)
    on_s = on_s + ((rest - 1) * s.log() if rest > 1 else 0)

    def terms(square: torch.Tensor) -> torch.Tensor:
        return on_s - 0.5 * (((square + s.square()).sqrt() - density.radius) / density.std).square()

    return lambda at: _summed(terms, at.square().sum(1))


def _log_sphere(d: int) -> float:
    """log of the area of the unit sphere in d dimensions."""
    return math.log(2) + d / 2 * math.log(math.pi) - math.lgamma(d / 2)


def _summed(terms: LogDensity, values: torch.Tensor) -> torch.Tensor:
    """log sum of exp(terms) for each value ``[N]``; ``terms`` of values ``[n, 1]`` are ``[n, terms]``."""
    count = max(BLOCK // terms(values[:1, None]).numel(), 1)
    parts = (values[begin : begin + count] for begin in range(0, len(values), count))
    return torch.cat([torch.logsumexp(terms(part[:, None]), 1) for part in parts])
