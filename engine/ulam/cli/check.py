"""`ulam check`: what :mod:`ulam.estimation.measure` finds, as a table, JSON and a picture."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..arguments import resolve_device
from ..estimation import measure
from ..estimation.measure import MeasuredLevel
from ..files import json_text, whole, writable_folder, written
from ..jobs.tables import check_unlabelled
from ..models.built_in import Model
from ..models.mnist import load_mnist5k
from . import check_plots, info
from .arguments import add_model_arguments, model_of
from .bits import Kind, bits_per_dim, kind_of
from .examples import Examples, read_examples
from .mcmc_plots import require_matplotlib

COLUMNS = ("sigma", "true error", "SURE", "gap", "calibration", "slope", "asymmetry", "linear")
RIGHT = "right: SURE the true error (gap 0), calibration and slope 1, asymmetry 0, within what is allowed and chance"
WIDTHS = (7, 17, 17, 9, 14, 15, 15, 9)


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The options of `ulam check`."""
    p.set_defaults(run=run)
    add_model_arguments(p)
    p.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="npz with arr_0: uint8 [N, H, W, C] or float [N, *shape], not trained on; arr_1: labels, handed over as y "
        "(digits: its own held-out digits)",
    )
    p.add_argument(
        "--pixels",
        type=float,
        nargs=2,
        metavar=("BLACK", "WHITE"),
        help="what 0 and 255 of uint8 data were to the network in training, such as -1 1 (digits: that)",
    )
    decoder = p.add_mutually_exclusive_group()
    decoder.add_argument(
        "--bins",
        type=int,
        metavar="N",
        help="bits/dim of data on N equal levels (default: the levels that they are on)",
    )
    decoder.add_argument("--continuous", action="store_true", help="bits/dim of the density of continuous data")
    p.add_argument("--noisy", type=float, metavar="SIGMA", help="the data are observations with this noise on them")
    p.add_argument("--levels", type=int, default=8, metavar="N", help="noise levels (default 8)")
    p.add_argument(
        "--sigmas", type=float, nargs=2, default=(0.05, 3.0), metavar=("LO", "HI"), help="their ends (default 0.05 3)"
    )
    p.add_argument("--chains", type=int, default=400, metavar="N", help="examples a level, at most (default 400)")
    p.add_argument("--batch", type=int, default=128, metavar="N", help="examples in one call (default 128)")
    p.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    p.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    p.add_argument("--no-plots", action="store_true", help="write no check.png (matplotlib is not needed then)")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for check.json and check.png")


def run(options: argparse.Namespace) -> int:
    """Measure, print and write; the exit code, 1 if a test fails."""
    if not options.no_plots:
        require_matplotlib()
    model = model_of(options)
    sigmas = _sigmas(options, model)
    data = _data(options, model)
    kind = _kind(options, data, model)
    device = resolve_device(options.device)
    if isinstance(model.denoiser.net, torch.nn.Module):
        model.denoiser.net.to(device)
    x, cond = data.x.to(device), _cond(data, model, device)
    found: list[MeasuredLevel] = []
    with writable_folder(options.out, ("check.json", "check.png")):
        print(f"ulam: {model.name} on {len(x)} examples of {data.source}")
        print(_line(COLUMNS) + "  verdict")
        measured = measure.measure(
            model.denoiser, x, sigmas, cond, noisy=options.noisy is not None, batch=options.batch, seed=options.seed
        )
        for level in measured:
            print(row(level), flush=True)
            found.append(level)
        print(f"ulam: {RIGHT}")
        bits = bits_per_dim(
            model.denoiser, x, cond, kind, noisy=options.noisy is not None, batch=options.batch, seed=options.seed
        )
        told = f"left out, {bits['left_out']}" if "left_out" in bits else f"{bits['value']:.3f}({bits['stderr']:.1g})"
        print(f"ulam: bits/dim (variational bound, {kind}): {told}")
        report = as_json(found) | {
            "bits_per_dim": bits,
            "model": model.name,
            "schedule": repr(model.denoiser.schedule),
            "predicts": model.denoiser.predicts,
            "data": data.source,
            "chains": len(x),
            "seed": options.seed,
            "versions": info.versions(),
        }
        names = ["check.json"] if options.no_plots else ["check.json", "check.png"]

        def write(folder: Path) -> list[str]:
            with whole(*(folder / name for name in names)) as paths:
                paths[0].write_text(json_text(report))
                if not options.no_plots:
                    paths[1].write_bytes(check_plots.picture(found, model.name))
            return names

        paths, lost = written(options.out, write)
    failed = [f"{level.sigma:.3g}" for level in found if not level.passed]
    print(f"ulam: wrote {', '.join(paths)}")
    if failed:
        print(f"ulam: check failed at sigma {', '.join(failed)}", file=sys.stderr)
    if lost is not None:
        raise lost
    return 1 if failed else 0


# --------------------------------------------------------------------------------------------------- the report


def row(level: MeasuredLevel) -> str:
    """One line of the table: value(standard error), then what is wrong, or ok."""
    gap = "-" if level.gap is None or level.error is None else f"{level.gap.value / level.error.value:+.1%}"
    cells = (
        f"{level.sigma:.4g}",
        "-" if level.error is None else str(level.error),
        str(level.sure),
        gap,
        str(level.calibration),
        "-" if level.slope is None else str(level.slope),
        str(level.asymmetry),
        "-" if level.linear is None else f"{level.linear:.3g}",
    )
    wrong = [words for passed, words in level.verdicts.values() if not passed]
    return f"{_line(cells)}  {'; '.join(wrong) or 'ok'}"


def as_json(found: list[MeasuredLevel]) -> dict[str, Any]:
    """The measurements and verdicts, and what was allowed."""
    return {
        "passed": all(level.passed for level in found),
        "allowed": {
            "standard_errors": measure.CHANCE,
            "sure": measure.SURE,
            "calibration": measure.CALIBRATION,
            "slope": measure.SLOPE,
            "asymmetry": measure.ASYMMETRY,
        },
        "levels": [
            asdict(level)
            | {"verdicts": {name: {"passed": ok, "verdict": words} for name, (ok, words) in level.verdicts.items()}}
            for level in found
        ],
    }


def _line(cells: tuple[str, ...]) -> str:
    return " ".join(cell.rjust(width) for cell, width in zip(cells, WIDTHS, strict=True))


# ------------------------------------------------------------------------------------------------------ the input


def _sigmas(options: argparse.Namespace, model: Model) -> list[float]:
    if options.noisy is not None:
        if not 0 < options.noisy < math.inf:
            raise ValueError(f"noisy: got {options.noisy:g}, expected a noise level above 0")
        levels = [options.noisy]
    else:
        low, high = options.sigmas
        if not 0 < low < high < math.inf:
            raise ValueError(f"sigmas: got {low:g} {high:g}, expected LO below HI, both above 0")
        if not 2 <= options.levels <= 1000:
            raise ValueError(f"levels: got {options.levels}, expected 2 to 1000")
        levels = [float(f"{sigma:.4g}") for sigma in np.geomspace(low, high, options.levels)]
        if model.denoiser.told_steps:  # it knows the levels of training steps only
            times = model.denoiser.schedule.t_of_sigma(levels).round()
            alpha, sigma = model.denoiser.schedule.levels(np.unique(times))
            levels = (sigma / alpha).tolist()
    model.denoiser.schedule.t_of_sigma(levels)  # raises outside its range
    return levels


def _data(options: argparse.Namespace, model: Model) -> Examples:
    """The examples to measure on, an even number of them."""
    if options.chains < 4:
        raise ValueError(f"chains: got {options.chains}, expected at least 4")
    if options.data is None:
        if model.name != "digits":
            raise ValueError("data: got none, expected examples for your own model, such as --data held_out.npz")
        _, held_out = load_mnist5k()
        there = Examples(held_out.images, held_out.labels, "the held-out digits", (-1.0, 1.0))
    else:
        pixels, usual = options.pixels, (-1.0, 1.0) if model.name == "digits" else None
        if pixels is not None and not (math.isfinite(sum(pixels)) and pixels[0] != pixels[1]):
            raise ValueError(f"pixels: got {pixels[0]} {pixels[1]}, expected two finite numbers that differ")
        there = read_examples(options.data, model.shape, pixels, usual)
    count = min(options.chains, len(there.x)) // 2 * 2
    if count < 4:
        raise ValueError(f"data: got {options.data} with {len(there.x)} examples, expected at least 4")
    chosen = torch.arange(count) * len(there.x) // count
    return replace(there, x=there.x[chosen], labels=None if there.labels is None else there.labels[chosen])


def _kind(options: argparse.Namespace, data: Examples, model: Model) -> Kind:
    """What the bits per dimension are of. Raises ValueError for a choice that nothing would follow."""
    if options.bins is not None or options.continuous:
        name, got = ("bins", options.bins) if options.bins is not None else ("continuous", "it")
        if options.noisy is not None:
            raise ValueError(f"{name}: got {got} beside noisy, expected neither: the bound needs clean data")
        if model.denoiser.schedule.steps is None:
            raise ValueError(f"{name}: got {got} on {model.denoiser.schedule!r}, expected a vp schedule for the bound")
    return kind_of(data.x, options.bins, options.continuous, data.pixels)


def _cond(data: Examples, model: Model, device: torch.device) -> dict[str, torch.Tensor]:
    labels = data.labels
    if labels is not None and model.classes is not None and not ((labels >= 0) & (labels < model.classes)).all():
        unknown = labels[(labels < 0) | (labels >= model.classes)][0]
        right = f"0 to {model.classes - 1}, the classes of {model.name}"
        raise ValueError(f"data: got the label {unknown} in arr_1, expected {right}")
    if labels is None:
        if model.null_class is None:
            check_unlabelled("data", model)
            return {}
        labels = torch.full((len(data.x),), model.null_class)
    return {model.label: labels.to(device)}
