"""Draw the figures of docs/theory.md from the page's own variables: `python docs/figures.py` (needs matplotlib)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from ulam import Denoiser, noise, sample, samplers, tweedie
from ulam.jobs.models import load_model
from ulam.models.mnist import load_mnist5k

HERE = Path(__file__).parent


def page() -> dict[str, Any]:
    """The variables that the page's blocks leave behind, run in order."""
    variables: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", (HERE / "theory.md").read_text(), flags=re.DOTALL):
        exec(block, variables)
    return variables


def samples(of: dict[str, Any]) -> Figure:
    """Plain and annealed Langevin on two islands; paths of the probability flow from noise to data."""
    figure = Figure(figsize=(11, 3.8), dpi=110, layout="constrained")
    plain, annealed, flow = figure.subplots(1, 3)
    panels = ((plain, of["stuck"].x, "Langevin from the origin"), (annealed, of["annealed"], "annealed Langevin"))
    for axes, points, title in panels:
        right = float((points[:, 0] > 0).double().mean())
        axes.scatter(*points.T, s=2, alpha=0.4)
        axes.set(xlim=(-7, 7), ylim=(-3, 3))
        axes.set_title(f"{title}: {right:.0%} on the right (exact: 90%)", size=9)
    states: list[torch.Tensor] = []

    def watched(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        states.append(x.clone())
        return of["net"](x, t)

    watcher = Denoiser(watched, of["schedule"])
    states.append(sample(watcher, samplers.UniPC(steps=40), (2,), 60, slots=60, progress=False))
    paths = torch.stack(states)  # [41, 60, 2]
    for chain in range(60):
        flow.plot(*paths[:, chain].T, lw=0.6, color="C0", alpha=0.6)
    flow.scatter(*paths[0].T, s=8, color="0.4", label="noise", zorder=3)
    flow.scatter(*paths[-1].T, s=10, color="C3", label="data", zorder=3)
    flow.set_title("probability flow: x_t from noise to data", size=9)
    flow.legend(fontsize=8)
    return figure


def uncertainty(count: int = 4, sigma: float = 0.8, directions: int = 3) -> Figure:
    """Digits of the held-out set: clean, noisy, posterior mean, standard deviations, leading directions."""
    denoiser = load_model("digits").denoiser
    _, held_out = load_mnist5k()
    rows = torch.tensor([105, 205, 255, 455])[:count]
    x, cond = held_out.images[rows], {"y": held_out.labels[rows]}
    y = x + sigma * noise.normal((1, 28, 28), seed=1, chains=count)
    mean = tweedie.mean(denoiser, y, sigma, cond)
    std = tweedie.covariance_diagonal(denoiser, y, sigma, cond, samples=60).clamp(min=0).sqrt()
    _, leading = tweedie.eigenpairs(denoiser, y, sigma, directions, cond)
    figure = Figure(figsize=(1.4 * (4 + directions), 1.45 * count), dpi=110, layout="constrained")
    for axes, k in zip(figure.subplots(count, 4 + directions), range(count), strict=True):
        for panel, image in zip(axes[:3], (x[k, 0], y[k, 0], mean[k, 0]), strict=True):
            panel.imshow(image, cmap="gray", vmin=-1, vmax=1)
        axes[3].imshow(std[k, 0], cmap="magma", vmin=0)
        for panel, image in zip(axes[4:], leading[k, :, 0], strict=True):
            panel.imshow(image, cmap="RdBu", vmin=-float(image.abs().max()), vmax=float(image.abs().max()))
        for panel in axes:
            panel.set_axis_off()
    return figure


def blur(rows: int = 4, kept: int = 16) -> Figure:
    """Digits and E[x | z], z their first principal components with ever more noise: exact, the digits being all x."""
    data, _ = load_mnist5k()
    x = data.images.flatten(1).double()
    _, spread, directions = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    means = (x - x.mean(0)) @ directions[:kept].T / spread[:kept] * len(x) ** 0.5  # of q(z | x)
    stds = (0.25, 0.5, 0.75, 1.0, 2.0)
    chosen = torch.tensor([int((data.labels == digit).nonzero()[1]) for digit in (2, 3, 5, 9)[:rows]])
    figure = Figure(figsize=(1.3 * (1 + len(stds)), 1.4 * rows), dpi=110, layout="constrained")
    panels = figure.subplots(rows, 1 + len(stds))
    eps = noise.normal((kept,), seed=1, chains=rows).double()
    for column, std in enumerate((0.0, *stds)):
        z = means[chosen] + std * eps
        share = torch.softmax(-torch.cdist(z, means).square() / (2 * max(std, 1e-3) ** 2), dim=1)
        for axes, image in zip(panels[:, column], share @ x, strict=True):
            axes.imshow(image.view(28, 28), cmap="gray", vmin=-1, vmax=1)
            axes.set_axis_off()
        panels[0, column].set_title(f"{std:g}" if std else "x", size=9)
    return figure


def bound(of: dict[str, Any]) -> Figure:
    """What each step of the 1000 costs, and what bounds of fewer steps lose."""
    figure = Figure(figsize=(8.5, 3.4), dpi=110, layout="constrained")
    terms, total = figure.subplots(1, 2)
    t, mean, _ = of["bound"].by_step()
    terms.plot(t[1:], mean[1:], lw=1)
    terms.set(xscale="log", yscale="log", xlabel="training step t", ylabel="KL of the step, bits/dim")
    steps = (25, 100, 1000)
    lost = [float(gap.mean()) for gap in of["lost"]]
    errors = [2 * float(gap.std()) / len(gap) ** 0.5 for gap in of["lost"]]
    total.errorbar(steps, lost, errors, marker="o", ms=4, capsize=2, label="variational bound")
    flow = of["flow"].value - float(of["exact"].mean())
    total.axhline(flow, ls="--", color="C2", label="probability-flow likelihood")
    total.set(xscale="log", xlabel="steps T", ylabel="above the exact value, bits/dim")
    total.legend(fontsize=8)
    return figure


def main() -> None:
    of = page()
    figures = ("samples", samples(of)), ("uncertainty", uncertainty()), ("blur", blur()), ("bound", bound(of))
    for name, figure in figures:
        figure.savefig(HERE / f"theory_{name}.png", metadata={"Software": None})


if __name__ == "__main__":
    main()
