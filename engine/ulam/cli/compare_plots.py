"""The picture of `ulam compare`: a row a sampler, a column a number of steps, and the long runs beside them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from ..pictures import is_image, to_pixels
from ..throughput.measured import seconds
from .comparison import Cell, Comparison

SHOWN = 4  # pictures of a cell, in a square
SIDE = 1.75  # inches of a cell
SPREAD = 0.02  # the share of points beyond each end of the axes' range, at most
BINS = 40


def figure(found: Comparison, title: str) -> Any:
    """A matplotlib figure. Samples that are no pictures are shown as points of their first two elements."""
    from matplotlib.figure import Figure

    rows, columns = len(found.names), len(found.steps) + 1
    made = Figure(figsize=(1.0 + SIDE * columns, 1.3 + (SIDE + 0.45) * rows), layout="constrained")
    axes = made.subplots(rows, columns, squeeze=False)
    shape = next(iter(found.cells.values())).x.shape[1:]
    span = _span(found)
    for row, name in enumerate(found.names):
        for column, steps in enumerate(found.steps):
            cell = found.cells[name, steps]
            _draw(axes[row, column], cell.x, span, row == rows - 1, column == 0)
            axes[row, column].set_title(_told(cell, row == 0), fontsize=8)
        last = axes[row, columns - 1]
        own = found.long_runs[name if name in found.long_runs else ""]
        _draw(last, own[: len(cell.x)], span, row == rows - 1, False)
        last.set_title(("long run\n" if row == 0 else "") + ("its own, other noise" if name in found.long_runs else
                       "of the flow, same noise"), fontsize=8)  # fmt: skip
        axes[row, 0].annotate(
            name, (-0.08 if is_image(tuple(shape)) else -0.42, 0.5), xycoords="axes fraction", rotation=90,
            ha="right", va="center", fontsize=9, annotation_clip=False,
        )  # fmt: skip
    twice = "; guided: two calls an evaluation" if found.guided else ""
    elements = (
        "" if is_image(tuple(shape)) or math.prod(shape) <= 2 else f"; the first two of {math.prod(shape)} elements"
    )
    made.suptitle(f"{title}\nerror: RMS against {found.reference} of the same noise, or of the law{twice}{elements}",
                  fontsize=9)  # fmt: skip
    return made


def _told(cell: Cell, titled: bool) -> str:
    head = f"{cell.steps} steps\n" if titled else ""
    error = "not finite" if math.isnan(cell.error) else f"RMS {cell.error:.3g}"
    if cell.chance is not None and not math.isnan(cell.error):
        error = f"law {cell.error:.2g} (chance {cell.chance:.2g})"
    return f"{head}{error}\n{cell.evaluations} evaluations, {seconds(cell.seconds)}"


def _draw(axes: Any, x: torch.Tensor, span: list[tuple[float, float]], lowest: bool, leftmost: bool) -> None:
    axes.tick_params(labelsize=6)
    if is_image(tuple(x.shape[1:])):
        pixels = _tiled(to_pixels(x[:SHOWN]))
        axes.imshow(pixels[..., 0] if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=255)
        axes.set(xticks=[], yticks=[])
        return
    flat = x.flatten(1).numpy()
    if flat.shape[1] == 1:
        axes.hist(flat[np.isfinite(flat)], bins=BINS, range=span[0], density=True, color="C0")
        axes.set(xlim=span[0], xlabel="x" if lowest else "", ylabel="density" if leftmost else "")
        return
    axes.scatter(flat[:, 0], flat[:, 1], s=3, alpha=0.6, linewidths=0, rasterized=True)
    axes.set(xlim=span[0], ylim=span[1], aspect="equal")
    axes.set(xlabel="x[0]" if lowest else "", ylabel="x[1]" if leftmost else "")


def _tiled(pixels: Any) -> Any:
    """Pictures ``[n, H, W, C]`` in a square, grey between them."""
    side = math.ceil(math.sqrt(len(pixels)))
    count, height, width, channels = pixels.shape
    tiles = np.full((side * (height + 1) - 1, side * (width + 1) - 1, channels), 128, dtype=np.uint8)
    for index in range(count):
        top, left = index // side * (height + 1), index % side * (width + 1)
        tiles[top : top + height, left : left + width] = pixels[index]
    return tiles


def _span(found: Comparison) -> list[tuple[float, float]]:
    """The range of the first two elements in the long runs, wider by a tenth, of one length for equal axes."""
    x = torch.cat([*found.long_runs.values()]).flatten(1)[:, :2]
    x = x[torch.isfinite(x).all(1)]
    if not len(x):
        return [(-1.0, 1.0)] * 2
    lo, hi = torch.quantile(x, SPREAD, 0), torch.quantile(x, 1 - SPREAD, 0)
    centre, half = ((lo + hi) / 2).tolist(), max(0.75 * float((hi - lo).max()), 1e-6)
    return [(c - half, c + half) for c in centre]
