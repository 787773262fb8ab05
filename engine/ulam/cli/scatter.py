"""Samples of two elements as points, a panel for each job, on equal axes (needs matplotlib)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import torch

Span = tuple[tuple[float, float], tuple[float, float]]
SIDE, DPI = 3.2, 100  # inches of a panel, and pixels an inch
COLUMNS, MOST = 3, 12  # panels a row, and all
ROOM = 0.08  # beyond the outermost points, of the range


def is_plane(shape: tuple[int, ...]) -> bool:
    """Whether a sample of this shape is a point of a plane."""
    return math.prod(shape) == 2


def there_is_matplotlib() -> bool:
    """Whether there can be plots."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def span_of(points: torch.Tensor) -> Span:
    """Ranges of one length around all finite points ``[n, 2]``."""
    x = points[torch.isfinite(points).all(1)].double()
    if not len(x):
        return (-1.0, 1.0), (-1.0, 1.0)
    lo, hi = x.amin(0), x.amax(0)
    half = (0.5 + ROOM) * max(float((hi - lo).max()), 1e-6)
    (a, b) = ((lo + hi) / 2).tolist()
    return (a - half, a + half), (b - half, b + half)


def png(panels: Sequence[tuple[str, torch.Tensor]], span: Span | None = None) -> bytes:
    """A PNG: a panel for each title and its points ``[n, ...]`` of two elements, all on the same axes."""
    from matplotlib.figure import Figure

    shown = [(title, x.flatten(1)) for title, x in panels[:MOST]]
    span = span_of(torch.cat([x for _, x in shown])) if span is None else span
    columns = min(COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(SIDE * columns, (SIDE + 0.3) * rows), dpi=DPI, layout="constrained")
    axes: list[Any] = [axis for row in figure.subplots(rows, columns, squeeze=False) for axis in row]
    for axis in axes[len(shown) :]:
        axis.remove()
    for axis, (title, x) in zip(axes, shown, strict=False):
        axis.scatter(x[:, 0], x[:, 1], s=4, alpha=0.6, linewidths=0)
        axis.set(xlim=span[0], ylim=span[1], aspect="equal", xlabel="x[0]", ylabel="x[1]")
        axis.set_title(title, fontsize=8, wrap=True)
    file = BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
