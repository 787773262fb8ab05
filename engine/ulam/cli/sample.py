"""`ulam sample`: jobs in, pictures, samples and a report out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from ..arguments import resolve_device
from ..engine.arguments import DEFAULT_SLOTS
from ..engine.engine import Engine
from ..engine.ladder import Ladder
from ..engine.scheduler import POLICIES
from ..engine.walked_slots import CHOICES
from ..files import check_writable_file, writable_folder
from ..jobs.tables import JobSpec
from ..models.built_in import Model
from ..pictures import is_image
from . import frames, output
from .arguments import (
    add_job_arguments,
    add_model_arguments,
    add_network_arguments,
    jobs_of,
    model_of,
    network_of,
    tuned,
)
from .sampling_run import SamplingRun
from .streams import FAILED, INTERRUPTED, TERMINATED


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The options of `ulam sample`."""
    p.set_defaults(run=run)
    add_model_arguments(p)
    add_job_arguments(p)
    how = p.add_argument_group("how")
    how.add_argument(
        "--slots", type=_slots, help=f"chains in one batch, or auto (default: all, at most {DEFAULT_SLOTS})"
    )
    how.add_argument("--policy", choices=POLICIES, default="fifo", help="which job's chains enter first (default fifo)")
    how.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    add_network_arguments(how)
    how.add_argument(
        "--ladder", nargs="?", const=0.0, type=float, metavar="TOLERANCE",
        help="smaller batches for the last chains, where bits (or outputs, within a relative tolerance) stay the same",
    )  # fmt: skip
    how.add_argument(
        "--chain-kernel", choices=CHOICES, default="off",
        help="walk whole chains in one kernel, a small network included: see docs/chain_kernel.md (default off)",
    )  # fmt: skip
    how.add_argument(
        "--on-interrupt", choices=("drop", "drain"), default="drop",
        help="Ctrl-C stops at once (default), or lets the chains in the batch end (twice: at once)",
    )  # fmt: skip
    how.add_argument(
        "--preview-every", type=int, metavar="K", help="write pictures of the chains to previews/ every K evaluations"
    )
    how.add_argument(
        "--preview", choices=frames.SHOWS,
        help="what previews and animations show: the states, or x0 estimates (default); by itself: about ten previews",
    )  # fmt: skip
    how.add_argument(
        "--animate", type=Path, metavar="FILE", help="a GIF of the first chains on their way: pictures, or 2-D points"
    )
    how.add_argument(
        "--save", choices=tuple(output.SAVES), default="npz",
        help="the samples as samples.npz (default; OpenAI's evaluator reads it), pictures in samples/ (pytorch-fid, "
        "clean-fid and torch-fidelity read them), or samples.safetensors",
    )  # fmt: skip
    how.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the samples, grid.png, report.json"
    )


def run(options: argparse.Namespace) -> int:
    """The command; its exit code: 0, 1 if a chain failed, 130 after Ctrl-C."""
    device = resolve_device(options.device)
    model = model_of(options)
    if options.preview_every is not None and options.preview_every < 1:
        raise ValueError(f"preview-every: got {options.preview_every}, expected at least 1")
    if (options.preview_every or (options.preview and not options.animate)) and not is_image(model.shape):
        name = "preview-every" if options.preview_every else "preview"
        raise ValueError(f"{name}: got it for samples of shape {list(model.shape)}, expected pictures [1 or 3, H, W]")
    if options.animate is not None:
        frames.check_animate(options.animate, model.shape)
    output.check_save(options.save, options.out, model.shape)
    specs = jobs_of(options, model, device)
    if isinstance(model.denoiser.net, torch.nn.Module):
        model.denoiser.net.to(device)
    sampling = SamplingRun(_engine(options, model, specs, device), model, specs, options)
    rows, described = len(sampling.x), specs[0].sampler if len(specs) == 1 else f"{len(specs)} jobs"
    print(f"ulam: {rows} chains of {model.name}, {described}, backend {sampling.engine.report.backend}")
    _tell_of_clips(model, specs)
    files = *output.FILES, *(name for save, name in output.SAVES.items() if save == options.save != "png")
    with writable_folder(options.out, files):
        if options.animate is not None:
            check_writable_file(options.animate, "animate")
        sampling.go()
        if sampling.done:
            sampling.write()
    if sampling.interrupted:
        print(f"ulam: interrupted, {len(sampling.done)} of {rows} samples written", file=sys.stderr)
        return TERMINATED if sampling.terminated else INTERRUPTED
    return FAILED if sampling.failed else 0


def _tell_of_clips(model: Model, specs: list[JobSpec]) -> None:
    """Say on stderr that a model's scheduler clips the data, where a job's sampler could and does not."""
    if model.clip is not None and any(getattr(spec.sampler, "clip", False) is None for spec in specs):
        lo, hi = f"{-model.clip:g}", f"{model.clip:g}"
        print(f"ulam: warning: clip: got none, the scheduler of {model.name} has {lo} to {hi}: --clip {lo} {hi} "
              "does so here", file=sys.stderr)  # fmt: skip


def _engine(options: argparse.Namespace, model: Model, specs: list[JobSpec], device: torch.device) -> Engine:
    network = network_of(options)
    slots = options.slots
    if slots is None:
        slots = min(sum(len(spec.chains) for spec in specs), DEFAULT_SLOTS)
    elif slots == "auto":
        cond = {name: value[:1] for name, value in specs[0].cond.items()}
        slots = Engine.best_slots(
            model.denoiser, model.shape, device, backend=options.backend, options=network, cond=cond
        )  # fmt: skip
        print(f"ulam: {slots} slots")
    if options.tune is not None:
        network = tuned(options, model, specs[0], device, slots, network).options
        print(f"ulam: network {network}")
    return Engine(
        model.denoiser, model.shape, slots, device, options.backend, policy=options.policy, options=network,
        results="host", ladder=None if options.ladder is None else Ladder(tolerance=options.ladder),
        chain_kernel=options.chain_kernel,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ arguments


def _slots(text: str) -> int | str:
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number or auto") from None
