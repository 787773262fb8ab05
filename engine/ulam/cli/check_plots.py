"""The picture of `ulam check`, as a PNG (needs matplotlib, in the extra ``mcmc``)."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np

from ..estimation import measure
from ..estimation.measure import MeasuredLevel


def picture(found: list[MeasuredLevel], title: str) -> bytes:
    """A PNG: on the left errors over noise levels, on the right the ratios that should be 1 and the asymmetry."""
    from matplotlib.figure import Figure

    sigmas = [level.sigma for level in found]
    figure = Figure(figsize=(10, 4.2), dpi=120, layout="constrained")
    errors, ratios = figure.subplots(1, 2)
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
    errors.set(xscale="log", yscale="log", xlabel="noise level $\\sigma$", ylabel="mean squared error per element")
    errors.legend(fontsize=8)

    ratios.axhspan(1 - measure.CALIBRATION, 1 + measure.CALIBRATION, color="C0", alpha=0.12, lw=0)
    ratios.axhspan(1 - measure.SLOPE, 1 + measure.SLOPE, color="C3", alpha=0.2, lw=0)
    ratios.axhline(measure.ASYMMETRY, color="C4", ls=":", lw=1)
    curve(ratios, "calibration", "calibration (posterior variance / error)", color="C0", marker="o", ms=4)
    curve(ratios, "slope", "slope of x on D", color="C3", marker="s", ms=4)
    curve(ratios, "asymmetry", "asymmetry of dD/dy (limit dotted)", color="C4", marker="^", ms=4)
    ratios.set(xscale="log", xlabel="noise level $\\sigma$")
    ratios.set_ylim(min(0.0, ratios.get_ylim()[0]), max(1.6, ratios.get_ylim()[1]))  # room for the legend
    ratios.legend(fontsize=8, loc="upper left")
    file = BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
