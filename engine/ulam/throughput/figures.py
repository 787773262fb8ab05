"""The pictures of a report, as SVG (needs matplotlib): bars with the quartiles of the rounds."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO

from .timing import Timing

WIDTH = 4.6  # inches: small, so that letters stay readable on a telephone
APART = 30  # the ratio of largest to smallest, from which on a scale is logarithmic
UNITS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))
OURS, THEIRS, LIMIT = "#1f77b4", "#9aa4ae", "#d62728"


def bars(
    title: str,
    label: str,
    timings: Mapping[str, Timing],
    amount: float | None = None,
    limit: tuple[str, float] | None = None,
) -> bytes:
    """A bar for each timing with its quartiles, in seconds or their parts, or as ``amount`` a second; ulam's in another
    colour. limit: a line, what it is and its seconds.
    """
    from matplotlib.figure import Figure

    longest = max(timing.median for timing in timings.values())
    unit, scale = next(((name, size) for name, size in UNITS if longest >= size), UNITS[-1])

    def shown(seconds: float) -> float:
        return seconds / scale if amount is None else amount / seconds

    names = list(timings)[::-1]
    middle = [shown(timings[name].median) for name in names]
    ends = [sorted((shown(timings[name].lower_quartile), shown(timings[name].upper_quartile))) for name in names]
    figure = Figure(figsize=(WIDTH, 1.1 + 0.42 * len(names)), layout="constrained")
    axes = figure.subplots()
    colours = [OURS if "ulam" in name else THEIRS for name in names]
    errors = [[m - lo for m, (lo, _) in zip(middle, ends, strict=True)],
              [hi - m for m, (_, hi) in zip(middle, ends, strict=True)]]  # fmt: skip
    axes.barh(names, middle, color=colours, height=0.6)
    axes.errorbar(middle, names, xerr=[[max(0.0, e) for e in side] for side in errors], fmt="none", ecolor="black",
                  elinewidth=1, capsize=3)  # fmt: skip
    if limit is not None:
        axes.axvline(shown(limit[1]), color=LIMIT, linestyle="--", linewidth=1.2, label=limit[0])
        figure.legend(loc="outside lower center", frameon=False, fontsize=8)
    values = [*middle, *([] if limit is None else [shown(limit[1])])]
    if max(values) > APART * min(values):
        axes.set_xscale("log")
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(f"{label if amount is not None else f'{label}, {unit}'}; lines: quartiles", fontsize=9)
    axes.tick_params(labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    file = BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()
