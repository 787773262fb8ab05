"""Draw the errors of samplers on docs/samplers.md, a figure a section: `python docs/samplers_figures.py`.

The data are a mixture of three Gaussians in one dimension, the network is the ideal one. Samplers without noise are
held against the probability flow's map, which keeps quantiles; those with noise against the law of the data, by the
Wasserstein-1 distance of their draws from its quantiles. Each figure is an SVG file that keeps its numbers.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

import ulam
from ulam import samplers, schedules
from ulam.cli.samplers_page import FIGURES
from ulam.samplers import GridSampler

HERE = Path(__file__).parent
WEIGHTS = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
MEANS = torch.tensor([-1.5, 0.4, 1.8], dtype=torch.float64)
STDS = torch.tensor([0.5, 0.6, 0.4], dtype=torch.float64)
LARGEST, SMALLEST = 80.0, 0.002
SCHEDULE = schedules.edm(SMALLEST, LARGEST)
EVALUATIONS = (6, 10, 18, 32, 60)
POINTS, DRAWS = 200, 20_000
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22")
DASHES = ("none", "6 3", "2 2")


class Curve(NamedTuple):
    """A sampler's errors by its evaluations, and whether it adds noise."""

    name: str
    evaluations: tuple[int, ...]
    errors: tuple[float, ...]
    noisy: bool


def ideal(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """E[x_0 | x_0 + sigma eps = x] for x [B, n] and sigma [B]."""
    s2 = sigma.double()[:, None, None] ** 2
    y, power = x.double()[..., None], STDS**2 + s2
    share = torch.softmax(WEIGHTS.log() - power.log() / 2 - (y - MEANS) ** 2 / (2 * power), -1)
    return (share * (MEANS * s2 + y * STDS**2) / power).sum(-1).to(x.dtype)


def quantiles(u: torch.Tensor, sigma: float) -> torch.Tensor:
    """Of x_0 + sigma eps, by bisection."""
    std = (STDS**2 + sigma**2).sqrt()
    below, above = torch.full_like(u, -4 - 8 * sigma), torch.full_like(u, 4 + 8 * sigma)
    for _ in range(70):
        middle = (below + above) / 2
        under = (WEIGHTS * torch.special.ndtr((middle[:, None] - MEANS) / std)).sum(-1) < u
        below, above = torch.where(under, middle, below), torch.where(under, above, middle)
    return (below + above) / 2


def of_evaluations(cls: type[GridSampler], evaluations: int) -> GridSampler | None:
    """The sampler on the most levels that take at most so many evaluations, with its default options."""
    steps = evaluations
    while steps > 1:
        sampler = cls(steps, sigmas="karras")
        nfe = sampler.program(SCHEDULE, "x0").nfe
        if nfe <= evaluations:
            return sampler
        steps = min(steps - 1, -(-steps * evaluations // nfe))
    return None


@lru_cache
def middles(points: int, sigma: float) -> torch.Tensor:
    """The quantiles at the middles of `points` equal parts of the mass."""
    return quantiles((torch.arange(points, dtype=torch.float64) + 0.5) / points, sigma)


def error(sampler: GridSampler, noisy: bool) -> float:
    """Root mean square from the exact map, or the Wasserstein-1 distance from the exact law."""
    points = DRAWS if noisy else POINTS
    denoiser = ulam.Denoiser(ideal, SCHEDULE, "x0")
    start = middles(points, float(sampler.grid(SCHEDULE).sigmas[0]))
    precision, backend = (torch.float32, "cpu") if noisy else (torch.float64, "reference")
    x = ulam.sample(
        denoiser, sampler, (points,), 1, 1, x_init=start[None].to(precision), dtype=precision, backend=backend,
        progress=False,
    )[0].double()  # fmt: skip
    exact = middles(points, 0.0)
    return float((x.sort().values - exact).abs().mean() if noisy else (x - exact).square().mean().sqrt())


def floor() -> float:
    """The mean error of exact draws: E|F_n(x) - F(x)| = sqrt(2 F (1 - F) / (pi n)), over x."""
    u = (torch.arange(2_000, dtype=torch.float64) + 0.5) / 2_000
    return float(torch.trapezoid((2 * u * (1 - u) / (math.pi * DRAWS)).sqrt(), middles(2_000, 0.0)))


def curve(cls: type[GridSampler], evaluations: tuple[int, ...] = EVALUATIONS) -> Curve:
    """Its errors with the default options."""
    found: dict[int, float] = {}
    noisy = "noise" in cls(24, sigmas="karras").program(SCHEDULE, "x0").needs
    for number in evaluations:
        sampler = of_evaluations(cls, number)
        if sampler is not None and (nfe := sampler.program(SCHEDULE, "x0").nfe) not in found:
            found[nfe] = error(sampler, noisy)
    return Curve(cls.__name__, tuple(found), tuple(found.values()), noisy)


def apart(wanted: list[float], gap: float, end: float) -> list[float]:
    """Heights near those wanted (sorted), at least `gap` apart and not beyond `end`."""
    places: list[float] = []
    for height in wanted:
        places.append(max([height] + [place + gap for place in places[-1:]]))
    for number in range(len(places)):
        places[-1 - number] = min(places[-1 - number], end - number * gap)
    return places


def drawn(curves: list[Curve]) -> str:
    """An SVG of the curves on logarithmic axes, the name of each at its end, in the order of the ends."""
    wide, high, left, top = 430, 380, 58, 10
    lowest = 10.0 ** math.floor(math.log10(max(min(min(c.errors) for c in curves), 1e-7)))
    x_ends, y_ends = (math.log(4.7), math.log(64)), (math.log(lowest), math.log(6))

    def place(evaluations: float, value: float) -> tuple[float, float]:
        across = (math.log(evaluations) - x_ends[0]) / (x_ends[1] - x_ends[0])
        up = (math.log(min(max(value, lowest), 6)) - y_ends[0]) / (y_ends[1] - y_ends[0])
        return round(left + wide * across, 1), round(top + high * (1 - up), 1)

    size = f"{left + wide + 236} {top + high + 42}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<rect x="{left}" y="{top}" width="{wide}" height="{high}" fill="none" stroke="#888"/>',
    ]
    for number in EVALUATIONS:
        x, y = place(number, lowest)
        parts.append(f'<path d="M{x},{top}v{high}" stroke="#eee"/>')
        parts.append(f'<text x="{x}" y="{y + 16}" text-anchor="middle">{number}</text>')
    for exponent in range(round(math.log10(lowest)), 1):
        y = place(5, 10.0**exponent)[1]
        parts.append(f'<path d="M{left},{y}h{wide}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 5}" y="{y + 4}" text-anchor="end">1e{exponent}</text>')
    parts.append(f'<text x="{left + wide / 2}" y="{top + high + 35}" text-anchor="middle">evaluations</text>')
    parts.append(f'<text transform="translate(14,{top + high / 2})rotate(-90)" text-anchor="middle">error</text>')
    if any(c.noisy for c in curves):
        x, y = place(5, floor())
        parts.append(f'<path d="M{left},{y}h{wide}" stroke="#555" stroke-dasharray="1 3"/>')
        parts.append(f'<text x="{x}" y="{y - 4}" fill="#555">exact draws</text>')
    ends = {c: place(c.evaluations[-1], c.errors[-1]) for c in curves}
    ranked = sorted(curves, key=lambda c: ends[c][1])
    heights = dict(zip(ranked, apart([ends[c][1] for c in ranked], 16, top + high), strict=True))
    for number, c in enumerate(curves):
        color, dashes = COLORS[number % 10], DASHES[number // 10]
        style = f'stroke="{color}" stroke-dasharray="{dashes}" fill="none"'
        points = " ".join(f"{x},{y}" for x, y in map(place, c.evaluations, c.errors))
        kept = " ".join(f"{n}:{e:.4g}" for n, e in zip(c.evaluations, c.errors, strict=True))
        parts.append(
            f'<polyline points="{points}" stroke-width="1.7" {style}><title>{c.name} {kept}</title></polyline>'
        )
        x, y = left + wide + 8, round(heights[c], 1)
        parts.append(f'<path d="M{ends[c][0]},{ends[c][1]}L{x},{y}h24" stroke-width="0.9" {style}/>')
        about = f"{c.name} (law)" if c.noisy else c.name
        parts.append(f'<text x="{x + 28}" y="{y + 4}" fill="{color}">{about}</text>')
    return "\n".join([*parts, "</svg>\n"])


def main() -> None:
    for section, name in FIGURES.items():
        classes = [cls for cls in samplers.catalogue().values() if cls.section == section]
        (HERE / name).write_text(drawn([curve(cls) for cls in classes]))


if __name__ == "__main__":
    main()
