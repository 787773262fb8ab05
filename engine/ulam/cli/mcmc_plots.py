"""Trace, rank and marginal plots of a run, as PNG files (needs matplotlib, in the extra ``mcmc``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..mcmc.chains import Chains

Array = npt.NDArray[np.float64]
Figure = Any
MOST_ELEMENTS, MOST_CHAINS = 4, 8  # shown
RANK_BINS = 20


def trace(chains: Chains) -> Figure:
    """The first elements of the first chains, draw by draw."""
    draws = _shown(chains)
    figure, axes = _figure(draws.shape[2])
    for i, axis in enumerate(axes):
        axis.plot(draws[:MOST_CHAINS, :, i].T, linewidth=0.6)
        axis.set(ylabel=f"x[{i}]", xlabel="draw" if i == len(axes) - 1 else "")
    return figure


def rank(chains: Chains) -> Figure:
    """Histograms of the ranks of each chain's draws among all: flat where chains agree [Vehtari 2021, section 4.4]."""
    draws = _shown(chains)[:MOST_CHAINS]
    count, length, elements = draws.shape
    figure, axes = _figure(elements)
    edges = np.linspace(0, count * length, min(RANK_BINS, length) + 1)
    for i, axis in enumerate(axes):
        ranks = draws[:, :, i].ravel().argsort().argsort().reshape(count, length)
        for of_chain in ranks:
            heights, _ = np.histogram(of_chain, edges)
            axis.stairs(heights, edges, linewidth=0.8)
        axis.axhline(length / (len(edges) - 1), color="black", linewidth=0.5, linestyle="dashed")
        axis.set(ylabel=f"x[{i}]", xlabel=f"rank among {count} chains" if i == elements - 1 else "")
    return figure


def marginal(chains: Chains, exact: Array | None = None) -> Figure:
    """Histograms of the first elements over all chains; ``exact`` draws ``[n, elements]`` as outlines."""
    draws = _shown(chains)
    figure, axes = _figure(draws.shape[2])
    for i, axis in enumerate(axes):
        values = draws[:, :, i].ravel()
        values = values[np.isfinite(values)]
        lo, hi = np.quantile(values, [0.001, 0.999]) if len(values) else (0.0, 1.0)
        edges = np.linspace(lo, hi if hi > lo else lo + 1, 81)
        axis.hist(values, edges, density=True, alpha=0.5)
        if exact is not None:
            heights, _ = np.histogram(exact[:, i], edges)
            axis.stairs(heights / (len(exact) * np.diff(edges)), edges, color="black", linewidth=0.8, label="exact")
            axis.legend(frameon=False)
        axis.set(xlabel=f"x[{i}]")
    return figure


PLOTS: dict[str, Callable[..., Figure]] = {"trace": trace, "rank": rank, "marginal": marginal}


def require_matplotlib() -> None:
    """Raises ImportError, naming the extra, where there is no matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "matplotlib: got no such package, expected it for plots: pip install 'ulam[mcmc]', or pass --no-plots"
        ) from error


def _shown(chains: Chains) -> Array:
    if chains.draws is None:
        raise ValueError("draws: got moments alone, expected those of a run with store=True")
    shown: Array = chains.draws.flatten(2)[:, :, :MOST_ELEMENTS].double().cpu().numpy()
    return shown


def _figure(rows: int) -> tuple[Figure, list[Any]]:
    from matplotlib.figure import Figure as New

    figure = New(figsize=(7, 1.2 + 1.6 * rows), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(rows, 1)))
