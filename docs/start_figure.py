"""The picture of docs/start.md: a program's rows, chains in slots, one tick. `python docs/start_figure.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "ulam"  # the same file each time

import matplotlib.pyplot as plt  # noqa: E402

OUT = Path(__file__).with_name("start.svg")
BLUE, ORANGE, GREEN, GREY = "#4477aa", "#ee7733", "#228833", "#777777"
ROWS = ("x' = a x + b m", "x' = a x + b m", "x' = a x + b m", "x' = D")
CHAINS = (("chain 0", 0, 2), ("chain 1", 0, 0), ("chain 7", 1, 3), ("chain 8", 1, 1))  # name, program, row


def box(axes: Any, x: float, y: float, width: float, text: str, colour: str, height: float = 0.7) -> None:
    axes.add_patch(plt.Rectangle((x, y), width, height, facecolor=colour, alpha=0.18, edgecolor="none"))
    axes.add_patch(plt.Rectangle((x, y), width, height, fill=False, edgecolor=colour, linewidth=1.2))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9)


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 1.2})


def draw() -> Any:
    figure, axes = plt.subplots(figsize=(9.2, 4.1))
    axes.set(xlim=(0, 18.4), ylim=(-0.3, 8.1))
    axes.axis("off")
    titles = (2.2, "programs: one row an evaluation"), (8.75, "engine: chains in slots"), (15.3, "a tick")
    for column, title in titles:
        axes.text(column, 7.7, title, ha="center", fontsize=10.5, weight="bold")
    for program, (name, colour, top) in enumerate((("DDIM, 4 steps", BLUE, 6.2), ("UniPC, 4 steps", ORANGE, 2.3))):
        axes.text(2.2, top + 0.8, name, ha="center", fontsize=9, color=colour)
        for row, text in enumerate(ROWS):
            box(axes, 0.2, top - 0.8 * row, 4.0, f"row {row}:  {text}", colour)
        for slot, (chain, of, at) in enumerate(CHAINS):
            if of == program:
                y = 6.0 - 1.6 * slot
                box(axes, 7.2, y - 0.2, 3.1, f"slot {slot}: {chain}", colour, 0.9)
                arrow(axes, (7.2, y + 0.25), (4.25, top - 0.8 * at + 0.35), colour)
    box(axes, 12.7, 5.9, 5.2, "network\nm = net(x, t), once for all", GREEN, 1.1)
    box(axes, 12.7, 3.5, 5.2, "fused step\neach slot by its own row,\nnoise of (seed, chain, row)", GREEN, 1.5)
    box(axes, 12.7, 1.4, 5.2, "done: out, the next chain in\nelse: on to the next row", GREEN, 1.1)
    arrow(axes, (10.4, 6.45), (12.6, 6.45), GREY)
    arrow(axes, (15.3, 5.9), (15.3, 5.05), GREY)
    arrow(axes, (15.3, 3.5), (15.3, 2.55), GREY)
    arrow(axes, (12.6, 1.95), (10.4, 1.95), GREY)
    axes.text(11.5, 6.6, "x, t", ha="center", fontsize=9)
    axes.text(11.5, 2.1, "x'", ha="center", fontsize=9)
    return figure


if __name__ == "__main__":
    draw().savefig(OUT, bbox_inches="tight", metadata={"Date": None})
