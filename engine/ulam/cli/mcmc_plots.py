"""Pictures of a run, as PNG or PDF: traces, ranks, marginals, a plane (needs matplotlib, in the extra ``mcmc``).

Each says in its title what ran and which chains and elements of how many are shown. Where the target is a built-in
density at temperature 1, marginals and plane show the exact law over its own range, draws or not: a mode that no chain
has seen stands there without a histogram.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..mcmc.chains import Chains
from ..mcmc.densities import BuiltIn
from ..mcmc.marginals import marginal as marginal_of

Array = npt.NDArray[np.float64]
Figure = Any
ENDINGS = ("png", "pdf")
MOST_ELEMENTS, MOST_CHAINS = 10, 8  # shown
COLUMNS_FROM = 5  # elements, on which there are two columns
RANK_BINS, BINS = 20, 80
HIGHEST = 4  # rank bars, times the height expected
PEAKED = 20  # a density's peak times its range, from which on its scale is logarithmic
MIDDLE = (0.005, 0.995)  # the shares below the ends of a marginal's range
MASSES = {0.5: "solid", 0.9: "dashed", 0.99: "dotted"}  # inside of contours of the exact density
POINTS = 4000  # of a plane
EXACT_DRAWS = 20_000  # behind ranges and the levels of contours
RESOLUTION = 300  # points of a curve; as many again where the law is dense
FINE = 1500  # points along a side of a plane, of which thin ridges are drawn
LONGEST_NAME = 64  # of a target
COLOR, EXACT = "C0", "black"


def trace(chains: Chains, target: BuiltIn | None = None) -> Figure:
    """Elements of the first chains, draw by draw."""
    shown = _Shown(chains)
    figure, axes = shown.figure("Traces", 1.5, [f"{shown.few} of {shown.chains} chains"])
    thin = chains.report["thin"]
    last = chains.position.counted // thin * thin
    steps = last - thin * np.arange(shown.draws.shape[1])[::-1]
    for i, axis in enumerate(axes):
        for row in range(shown.few):
            label = f"chain {shown.ids[row]}" if not i else None
            style = {"linewidth": 0.6, "marker": "." if len(steps) == 1 else None, "rasterized": len(steps) > POINTS}
            axis.plot(steps, shown.draws[row, :, i], label=label, **style)
        axis.set(ylabel=shown.labels[i], xlim=(steps[0] - (len(steps) == 1), max(steps[-1], steps[0] + 1)))
    shown.label_below(axes, "step after the warm-up")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def rank(chains: Chains, target: BuiltIn | None = None) -> Figure:
    """How the ranks of each chain's draws among all are spread: flat where chains agree [Vehtari 2021, section 4.4]."""
    shown = _Shown(chains)
    figure, axes = shown.figure("Ranks", 2.1, [f"{shown.few} of {shown.chains} chains, ranked among all"])
    length = shown.draws.shape[1]
    bins = min(RANK_BINS, length)
    edges = np.linspace(0.5, shown.chains * length + 0.5, bins + 1)
    for i, axis in enumerate(axes):
        ranks = _ranks(shown.draws[:, :, i])[: shown.few]
        shares = np.stack([np.histogram(of_chain, edges)[0] for of_chain in ranks]) * bins / length
        scale = 0.9 / min(shares.max(), HIGHEST)
        for row, heights in enumerate(shares.clip(max=HIGHEST) * scale):
            axis.bar(edges[:-1], heights, np.diff(edges), row, align="edge", linewidth=0.3, edgecolor="white")
            axis.axhline(row + scale, color=EXACT, linewidth=0.7, linestyle="dashed")
        axis.set_title(shown.labels[i], fontsize=9)
        axis.set(ylabel="chain", xlim=(edges[0], edges[-1]), ylim=(0, len(ranks)))
        axis.set_yticks(np.arange(len(ranks)) + 0.45, [str(chain) for chain in shown.ids[: len(ranks)]], fontsize=7)
    shown.label_below(axes, f"rank among {shown.chains * length} draws")
    _legend(figure, [(f"expected where chains agree (bars end at {HIGHEST} times that)", EXACT, "dashed")])
    return figure


def marginal(chains: Chains, target: BuiltIn | None = None) -> Figure:
    """Histograms of elements over all chains, and the exact marginals as curves over their own range."""
    shown = _Shown(chains)
    figure, axes = shown.figure("Marginals", 1.9, [f"all {shown.chains} chains", "the middle 99% of each"])
    exact = None if target is None else _exact(target)
    for i, axis in enumerate(axes):
        values = shown.draws[:, :, i].ravel()
        lo, hi = np.quantile(values, MIDDLE)
        edges = np.linspace(lo, hi if hi > lo else lo + 1, BINS + 1)
        heights = np.histogram(values, edges)[0] / (len(values) * np.diff(edges))
        axis.stairs(heights, edges, fill=True, color=COLOR, alpha=0.5)
        axis.set(xlabel=shown.labels[i], ylabel="density", ylim=(0, None))
        law = None if target is None else marginal_of(target, [shown.elements[i]])
        if law is not None and exact is not None:
            x = _points(exact[:, shown.elements[i]])
            p = law(torch.from_numpy(x)[:, None]).exp().numpy()
            axis.plot(x, p, color=EXACT, linewidth=1.0)
            axis.set(ylim=(0, 1.05 * max(p.max(), heights.max())))
            if p.max() * (x[-1] - x[0]) > PEAKED:
                axis.set(yscale="log", ylim=(p.min() / 2, 2 * max(p.max(), heights.max())))
                axis.set(ylabel="density (log scale)")
    _legend(figure, [("draws", COLOR, "fill"), *([] if exact is None else [("exact", EXACT, "solid")])])
    return figure


def plane(chains: Chains, target: BuiltIn | None = None) -> Figure:
    """Draws in the plane of the first two elements, and contours of their exact density.

    Raises ValueError for states of one element.
    """
    shown = _Shown(chains, pair=True)
    told = [f"{shown.chains} chains, {min(POINTS, shown.draws[:, :, 0].size)} of {shown.draws[:, :, 0].size} draws"]
    figure, (axis,) = shown.figure("Plane", 4.6, told)
    points = shown.draws.reshape(-1, 2)
    points = points[np.linspace(0, len(points) - 1, min(POINTS, len(points))).round().astype(np.int64)]
    axis.plot(*points.T, ".", markersize=2, alpha=0.4, markeredgewidth=0, color=COLOR, rasterized=True)
    entries = [("draws", COLOR, "none")]
    limits = np.quantile(points, MIDDLE, axis=0)
    law = None if target is None else marginal_of(target, shown.elements)
    if law is not None and target is not None:
        exact = _exact(target)[:, shown.elements]
        x, y = (_points(exact[:, j], FINE, ends=(0.0, 1.0)) for j in range(2))
        grid = torch.from_numpy(np.stack(np.meshgrid(x, y), -1))
        log_p = law(grid.view(-1, 2)).view(grid.shape[:2]).numpy()
        at_draws = law(torch.from_numpy(np.ascontiguousarray(exact))).numpy()
        levels = [float(np.quantile(at_draws, 1 - mass)) for mass in MASSES]
        styles = {"colors": EXACT, "linewidths": 0.8, "linestyles": [*MASSES.values()][::-1]}
        axis.contour(x, y, log_p, levels[::-1], zorder=1, **styles)  # below the draws, which ridges would hide
        entries += [(f"exact, {mass:.0%} inside", EXACT, style) for mass, style in MASSES.items()]
        around = np.quantile(exact, MIDDLE, axis=0)
        limits = np.stack([np.minimum(limits[0], around[0]), np.maximum(limits[1], around[1])])
    margin = 0.12 * (limits[1] - limits[0]) + 1e-12
    axis.set(xlabel=shown.labels[0], ylabel=shown.labels[1])
    axis.set(xlim=(limits[0, 0] - margin[0], limits[1, 0] + margin[0]))
    axis.set(ylim=(limits[0, 1] - margin[1], limits[1, 1] + margin[1]))
    _legend(figure, entries)
    return figure


PLOTS: dict[str, Callable[[Chains, BuiltIn | None], Figure]] = {
    "trace": trace, "rank": rank, "marginal": marginal, "plane": plane,
}  # fmt: skip


def checked_names(given: Sequence[str] | None, elements: int) -> list[str]:
    """The files to write: those given, or a PNG of each picture that states of so many elements have.

    Raises ValueError for one that is not a picture's name and the ending .png or .pdf, or that states do not have.
    """
    if given is None:
        return [f"{plot}.png" for plot in PLOTS if elements > 1 or plot != "plane"]
    for name in given:
        plot, _, ending = name.partition(".")
        if plot not in PLOTS or ending not in ENDINGS or given.count(name) > 1:
            right = f"{', '.join(PLOTS)}, each once and with the ending .png or .pdf"
            raise ValueError(f"plots: got {name!r}, expected names among {right}")
        if plot == "plane" and elements < 2:
            raise ValueError(f"plots: got {name!r}, expected states of at least 2 elements for it, not 1")
    return list(given)


def save(figure: Figure, path: Path, name: str) -> None:
    """Write a picture to a path, in the format of the ending of its name: PNG, or PDF with its text as text."""
    from matplotlib import rc_context

    ending = name.rpartition(".")[2]
    undated = {"CreationDate": None} if ending == "pdf" else {}
    with rc_context({"pdf.fonttype": 42}):
        figure.savefig(path, dpi=200, format=ending, metadata=undated)


def require_matplotlib() -> None:
    """Raises ImportError, naming the extra, where there is no matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "matplotlib: got no such package, expected it for plots: pip install 'ulam[mcmc]', or pass --no-plots"
        ) from error


class _Shown:
    """What a picture shows: draws ``[chain, draw, element]`` of chains that stayed finite, of some elements.

    ``elements``: their numbers, evenly spaced, or the first two for a ``pair``. ``few``: the chains that are
    told apart.
    """

    def __init__(self, chains: Chains, pair: bool = False) -> None:
        if chains.draws is None:
            raise ValueError("draws: got moments alone, expected those of a run with store=True")
        flat, shape = chains.draws.flatten(2) if chains.draws.dim() > 2 else chains.draws[..., None], chains.x.shape[1:]
        self.of, self.report, self.sampler = flat.shape[2], chains.report, chains.position.sampler["name"]
        if pair and self.of < 2:
            raise ValueError("plots: got states of 1 element, expected at least 2 for a plane")
        count = 2 if pair else min(self.of, MOST_ELEMENTS)
        spaced = np.linspace(0, self.of - 1, count).round().astype(int).tolist()
        self.elements: list[int] = [0, 1] if pair else spaced
        finite = torch.isfinite(flat).all(2).all(1)
        if not bool(finite.any()):
            raise ValueError("draws: got no chain that stayed finite, expected at least one to show")
        self.lost = int((~finite).sum())
        self.draws: Array = flat[finite][:, :, self.elements].double().cpu().numpy()
        self.ids = chains.ids[finite.cpu()].tolist()
        self.chains = len(self.ids)
        self.few = min(self.chains, MOST_CHAINS)
        places = (np.unravel_index(i, tuple(shape)) if shape else () for i in self.elements)
        self.labels = [f"x[{', '.join(map(str, place))}]" if place else "x" for place in places]

    def figure(self, title: str, height: float, told: list[str]) -> tuple[Figure, list[Any]]:
        """An empty picture with an axis for each element (one for a plane), and its title."""
        from matplotlib.figure import Figure as New

        count = 1 if title == "Plane" else len(self.elements)
        columns = 2 if count >= COLUMNS_FROM else 1
        rows = -(-count // columns)
        width = 5.5 if title == "Plane" else 7.2
        figure = New(figsize=(width, 1.1 + height * rows), layout="constrained")
        axes = [axis for row in figure.subplots(rows, columns, squeeze=False) for axis in row]
        for axis in axes[count:]:
            axis.remove()
        told = [*told, f"{self.draws.shape[1]} draws each"] if title in ("Traces", "Ranks") else told
        if len(self.elements) < self.of:
            which = "the first two" if title == "Plane" else f"{len(self.elements)} evenly spaced ones"
            told = [*told, f"{which} of {self.of} elements"]
        if self.lost:
            told = [*told, f"{self.lost} chains that left the finite numbers left out"]
        name = self.report["target"]
        name = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."
        figure.suptitle(f"{title}: {name}, {self.sampler}\n{'; '.join(told)}", fontsize=9)
        return figure, axes[:count]

    def label_below(self, axes: list[Any], label: str) -> None:
        """Label the lowest axis of each column."""
        columns = 2 if len(axes) >= COLUMNS_FROM else 1
        for axis in axes[-columns:]:
            axis.set(xlabel=label)


def _ranks(values: Array) -> Array:
    """Ranks 1 ... n of values ``[chain, draw]`` among all of them, equal ones their mean rank."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Array = (last - (counts - 1) / 2)[which.reshape(values.shape)]
    return ranks


def _exact(target: BuiltIn) -> Array:
    """Exact draws, ``[n, d]``."""
    draws: Array = target.sample(EXACT_DRAWS, seed=1).numpy()
    return draws


def _points(exact: Array, even: int = RESOLUTION, ends: tuple[float, float] = MIDDLE) -> Array:
    """Where to draw a law, given exact draws ``[n]``: ``even`` points over the range, and more where it is dense."""
    lo, hi = np.quantile(exact, ends)
    dense = np.quantile(exact, np.linspace(*ends, RESOLUTION))
    points: Array = np.unique(np.concatenate([np.linspace(lo, hi, even), dense]))
    return points


def _legend(figure: Figure, entries: list[tuple[str, str, Any]]) -> None:
    """A legend below: (label, color, line style), "none" for points and "fill" for areas."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Patch(color=color, alpha=0.5, label=label)
        if style == "fill"
        else Line2D([], [], color=color, linestyle=style, marker="." if style == "none" else None, label=label)
        for label, color, style in entries
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
