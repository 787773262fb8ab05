"""`ulam check`: the measurements of :mod:`ulam.estimation.measure` as a table, JSON and a picture."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import bounds
from ..arguments import resolve_device
from ..denoiser import Denoiser
from ..estimation import measure as check
from ..estimation.estimator import Inputs
from ..estimation.measure import MeasuredLevel
from ..files import json_text, one_line, whole, writable_folder, written
from ..models.built_in import Model
from ..models.mnist import load_mnist5k
from . import info
from .mcmc_plots import require_matplotlib
from .models import load_model

STEPS = 20  # terms of the bound that are evaluated beside L_0
COLUMNS = ("sigma", "true error", "SURE", "gap", "calibration", "slope", "asymmetry", "linear")
WIDTHS = (7, 17, 17, 9, 14, 15, 15, 9)


@dataclass(frozen=True)
class Data:
    """Clean examples ``[N, *shape]`` (or noisy ones), labels ``[N]`` or None, and where they come from."""

    x: torch.Tensor
    labels: torch.Tensor | None
    source: str


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The options of `ulam check`, apart from those that choose the model."""
    p.set_defaults(run=run)
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
    """Measure, print, write; 1 where a test fails."""
    if not options.no_plots:
        require_matplotlib()
    model = load_model(
        options.model, options.weights, options.shape, options.schedule, options.predicts, options.null_class
    )
    sigmas = _sigmas(options, model)
    data = _data(options, model)
    device = resolve_device(options.device)
    if isinstance(model.denoiser.net, torch.nn.Module):
        model.denoiser.net.to(device)
    x, cond = data.x.to(device), _cond(data, model, device)
    found: list[MeasuredLevel] = []
    with writable_folder(options.out, ("check.json", "check.png")):
        print(f"ulam: {model.name} on {len(x)} examples of {data.source}")
        print(_line(COLUMNS) + "  verdict")
        measured = check.measure(
            model.denoiser, x, sigmas, cond, noisy=options.noisy is not None, batch=options.batch, seed=options.seed
        )
        for level in measured:
            print(row(level), flush=True)
            found.append(level)
        bits = bits_per_dim(
            model.denoiser, x, cond, noisy=options.noisy is not None, batch=options.batch, seed=options.seed
        )
        told = f"left out, {bits['left_out']}" if "left_out" in bits else f"{bits['value']:.3f}({bits['stderr']:.1g})"
        print(f"ulam: bits/dim (variational bound): {told}")
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
                    paths[1].write_bytes(picture(found, model.name))
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
            "standard_errors": check.CHANCE,
            "sure": check.SURE,
            "calibration": check.CALIBRATION,
            "slope": check.SLOPE,
            "asymmetry": check.ASYMMETRY,
        },
        "levels": [
            asdict(level)
            | {"verdicts": {name: {"passed": ok, "verdict": words} for name, (ok, words) in level.verdicts.items()}}
            for level in found
        ],
    }


def bits_per_dim(
    denoiser: Denoiser, x: torch.Tensor, cond: Inputs, *, noisy: bool, batch: int, seed: int
) -> dict[str, Any]:
    """The DDPM bound of x from L_0 and ``STEPS`` other terms a chain: value and stderr, or why it is left out."""
    if noisy:
        return {"left_out": "the bound needs clean data"}
    if denoiser.schedule.kind != "vp":
        return {"left_out": "the bound is of DDPM's steps, and needs a vp schedule"}
    pixels = (x + 1) * 127.5
    if not ((x.abs() <= 1 + 1e-3) & ((pixels - pixels.round()).abs() < 1e-3)).all():
        return {"left_out": "the decoder needs data on 256 levels from -1 to 1"}
    parts = []
    for begin in range(0, len(x), batch):
        at = slice(begin, min(begin + batch, len(x)))
        given = {name: value[at] for name, value in cond.items()}
        ids = range(at.start, at.stop)
        bound = bounds.vlb(denoiser, x[at], given, sampled=STEPS, clip=(-1, 1), seed=seed, chains=ids)
        parts.append(bound.per_chain)
    per_chain = torch.cat(parts)
    return {"value": float(per_chain.mean()), "stderr": float(per_chain.std()) / len(per_chain) ** 0.5}


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

    ratios.axhspan(1 - check.CALIBRATION, 1 + check.CALIBRATION, color="C0", alpha=0.12, lw=0)
    ratios.axhspan(1 - check.SLOPE, 1 + check.SLOPE, color="C3", alpha=0.2, lw=0)
    ratios.axhline(check.ASYMMETRY, color="C4", ls=":", lw=1)
    curve(ratios, "calibration", "calibration (posterior variance / error)", color="C0", marker="o", ms=4)
    curve(ratios, "slope", "slope of x on D", color="C3", marker="s", ms=4)
    curve(ratios, "asymmetry", "asymmetry of dD/dy (limit dotted)", color="C4", marker="^", ms=4)
    ratios.set(xscale="log", xlabel="noise level $\\sigma$")
    ratios.set_ylim(min(0.0, ratios.get_ylim()[0]), max(1.6, ratios.get_ylim()[1]))  # room for the legend
    ratios.legend(fontsize=8, loc="upper left")
    file = BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


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
        if model.denoiser.time == "index":  # it knows the levels of training steps only
            times = model.denoiser.schedule.t_of_sigma(levels).round()
            alpha, sigma = model.denoiser.schedule.levels(np.unique(times))
            levels = (sigma / alpha).tolist()
    model.denoiser.schedule.t_of_sigma(levels)  # raises outside its range
    return levels


def _data(options: argparse.Namespace, model: Model) -> Data:
    """The examples to use, an even number."""
    if options.chains < 4:
        raise ValueError(f"chains: got {options.chains}, expected at least 4")
    if options.data is None:
        if model.name != "digits":
            raise ValueError("data: needed with a model of your own, such as --data held_out.npz")
        _, held_out = load_mnist5k()
        there = Data(held_out.images, held_out.labels, "the held-out digits")
    else:
        pixels, usual = options.pixels, (-1.0, 1.0) if model.name == "digits" else None
        if pixels is not None and not (math.isfinite(sum(pixels)) and pixels[0] != pixels[1]):
            raise ValueError(f"pixels: got {pixels[0]} {pixels[1]}, expected two finite numbers that differ")
        there = load_data(options.data, model.shape, pixels, usual)
    count = min(options.chains, len(there.x)) // 2 * 2
    if count < 4:
        raise ValueError(f"data: {options.data} has {len(there.x)} examples, expected at least 4")
    chosen = torch.arange(count) * len(there.x) // count
    return Data(there.x[chosen], None if there.labels is None else there.labels[chosen], there.source)


def load_data(
    path: Path,
    shape: tuple[int, ...],
    pixels: tuple[float, float] | None = None,
    usual: tuple[float, float] | None = None,
) -> Data:
    """Examples from an npz as `ulam sample` writes it; uint8 pictures are scaled to ``pixels``, the numbers that black
    and white were to the network in training, or to those that are ``usual`` for it.

    Raises:
        OSError, ValueError: no such file, not examples of this shape, pictures without ``pixels``, or other data with.
    """
    if not path.is_file():
        raise FileNotFoundError(f"data: no file {path}")
    arrays = _arrays(path)
    if "arr_0" not in arrays:
        raise ValueError(f"data: {path} has no arr_0, the examples")
    given = arrays["arr_0"]
    if given.dtype == np.uint8 and given.ndim == 4:
        if (ends := pixels or usual) is None:
            raise ValueError(
                "pixels: got none for uint8 data, expected what black and white were to the network in training, "
                "such as --pixels -1 1 or --pixels 0 1"
            )
        black, white = ends
        given = given.transpose(0, 3, 1, 2).astype(np.float32) / (255 / (white - black)) + black
    elif pixels is not None:
        raise ValueError(f"pixels: got them for {given.dtype} data, expected none: uint8 pictures alone are scaled")
    if given.dtype.kind != "f" or given.shape[1:] != shape:
        raise ValueError(
            f"data: arr_0 is {given.dtype} {list(given.shape)}, expected float [N, {', '.join(map(str, shape))}] "
            "or uint8 [N, H, W, C]"
        )
    with np.errstate(over="ignore"):
        x = torch.from_numpy(np.ascontiguousarray(given, dtype=np.float32))
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"data: {path} has values that are not finite, or not in float32")
    labels = arrays.get("arr_1")
    if labels is not None and (labels.shape != given.shape[:1] or labels.dtype.kind not in "iu"):
        raise ValueError(f"data: arr_1 is {labels.dtype} {list(labels.shape)}, expected {len(given)} whole numbers")
    if labels is not None and len(labels) and int(labels.max()) >= 1 << 63:
        raise ValueError(f"data: arr_1 has {labels.max()}, expected labels of 64 bits with a sign")
    return Data(x, None if labels is None else torch.from_numpy(labels.astype(np.int64)), str(path))


def _arrays(path: Path) -> dict[str, Any]:
    """The arrays ``arr_0`` and ``arr_1`` of an npz, as far as it has them."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in ("arr_0", "arr_1") if name in file}
    except Exception as error:  # a damaged archive raises what its reader happens to meet
        lone = isinstance(error, TypeError) and "context manager" in str(error)
        why = "one array of its own: np.savez(..., arr_0=array) makes an npz" if lone else one_line(error)
        raise ValueError(f"data: {path} is not an npz of plain arrays ({why})") from None


def _cond(data: Data, model: Model, device: torch.device) -> dict[str, torch.Tensor]:
    labels = data.labels
    if labels is not None and model.classes is not None and not ((labels >= 0) & (labels < model.classes)).all():
        raise ValueError(f"data: arr_1 has labels unknown to {model.name}, which knows 0 to {model.classes - 1}")
    if labels is None and model.null_class is not None:
        labels = torch.full((len(data.x),), model.null_class)
    return {} if labels is None else {model.label: labels.to(device)}
