"""The picture of `ulam check`, as a PNG (needs matplotlib, in the extra ``mcmc``)."""

from __future__ import annotations

import textwrap
from io import BytesIO
from typing import Any

import numpy as np

from ..estimation import measure
from ..estimation.measure import MeasuredLevel

TITLE_WIDTH = 82  # characters
ERRORS = (
    "The true error and SURE, which needs no clean data, should be equal: else the network's derivative is wrong. The "
    "posterior variance equals them where the network is the posterior mean. Below the dashed line it is better than "
    "any elementwise linear denoiser."
)
RATIOS = (
    "Right within the bands around 1. Calibration below 1: more certain than its error allows, above: less. Slope "
    "below 1: it goes too far from the mean, above: not far enough. Asymmetry above the dotted line: what it gives is "
    "no gradient, so no score."
)


def picture(found: list[MeasuredLevel], title: str) -> bytes:
    """A PNG: on the left errors over noise levels, on the right the ratios that should be 1 and the asymmetry."""
    from matplotlib.figure import Figure

    sigmas = [level.sigma for level in found]
    figure = Figure(figsize=(10, 5.2), dpi=120, layout="constrained")
    errors, ratios = figure.subplots(1, 2)
    for axes, words in ((errors, ERRORS), (ratios, RATIOS)):
        axes.set_title(textwrap.fill(words, TITLE_WIDTH), fontsize=8, loc="left")
    figure.suptitle(f"ulam check: {title}", fontsize=11)

    def curve(axes: Any, name: str, label: str, **style: Any) -> None:
        given = [(level.sigma, getattr(level, name)) for level in found if getattr(level, name) is not None]
        if given:
            at, values = [s for s, _ in given], [m.value for _, m in given]
            axes.errorbar(at, values, [2 * m.stderr for _, m in given], capsize=2, label=label, **style)

    errors.plot(sigmas, np.square(sigmas), ":", color="0.6", label="doing nothing, $\\sigma^2$")
    if all(level.linear is not None for level in found):
        errors.plot(
            sigmas, [level.linear or 0.0 for level in found], "--", color="0.4", label="best elementwise linear"
        )
    curve(errors, "error", "true error", color="C0", marker="o", ms=4)
    curve(errors, "sure", "SURE", color="C1", marker="x", ms=8, ls="none")
    curve(errors, "predicted", "posterior variance $\\sigma^2\\,\\mathrm{div}\\,D / n$", color="C2", ls="-.")
    errors.set(
        xscale="log",
        yscale="log",
        xlabel="noise level $\\sigma$",
        ylabel="mean squared error per element (data units squared)",
    )
    errors.legend(fontsize=8)

    ratios.axhspan(1 - measure.CALIBRATION, 1 + measure.CALIBRATION, color="C0", alpha=0.12, lw=0)
    ratios.axhspan(1 - measure.SLOPE, 1 + measure.SLOPE, color="C3", alpha=0.2, lw=0)
    ratios.axhline(measure.ASYMMETRY, color="C4", ls=":", lw=1)
    curve(ratios, "calibration", "calibration (posterior variance / error)", color="C0", marker="o", ms=4)
    curve(ratios, "slope", "slope of x on D", color="C3", marker="s", ms=4)
    curve(ratios, "asymmetry", "asymmetry of dD/dy (limit dotted)", color="C4", marker="^", ms=4)
    ratios.set(xscale="log", xlabel="noise level $\\sigma$", ylabel="ratio, or asymmetry (no units)")
    ratios.set_ylim(min(0.0, ratios.get_ylim()[0]), max(1.6, ratios.get_ylim()[1]))  # room for the legend
    ratios.legend(fontsize=8, loc="upper left")
    file = BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
