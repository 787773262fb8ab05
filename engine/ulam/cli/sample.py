"""`ulam sample`: jobs in, pictures, samples and a report out."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import torch

from ..arguments import resolve_device
from ..bulk.recipes import AUTOCAST
from ..engine.engine import Engine
from ..engine.network import NetworkOptions
from ..engine.sample import DEFAULT_SLOTS
from ..engine.scheduler import POLICIES
from ..files import writable_folder
from ..jobs.models import load_model
from ..jobs.tables import DEFAULT_CHAINS, JobSpec, make_job, parse_labels, parse_option, read_jobs, samplers_by_name
from ..models.built_in import Model
from ..pictures import is_image
from ..samplers.sigmas import SIGMAS
from . import output
from .sampling_run import SamplingRun
from .streams import FAILED, INTERRUPTED, TERMINATED

# Options that a job of a TOML file may have too; they are the defaults of all jobs.
JOB_OPTIONS = (
    "sampler", "steps", "eta", "clip", "threshold", "spacing", "sigmas", "variance", "chains", "labels", "guidance",
    "guidance_interval", "guidance_rescale", "seed", "known", "mask",
)  # fmt: skip


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The options of `ulam sample`, apart from those that choose the model."""
    p.set_defaults(run=run)
    job = p.add_argument_group("what to sample (with --jobs: the defaults of all jobs)")
    job.add_argument("--jobs", type=Path, metavar="FILE", help="TOML with one [[job]] table a job: keys as the options")
    job.add_argument("--sampler", help=f"one of {', '.join(sorted(samplers_by_name()))} (default ddim)")
    job.add_argument("--steps", type=int, help="noise levels a chain (default 50; ddpm: all)")
    job.add_argument("--eta", type=float, help="ddim and others: 0 deterministic to 1 ancestral")
    job.add_argument("--clip", type=float, nargs=2, metavar=("LO", "HI"), help="clip the x0 estimate, such as -1 1")
    job.add_argument(
        "--threshold", type=_numbers, metavar="P[,CAP]", help="dynamic thresholding at this quantile, such as 0.995"
    )
    job.add_argument("--spacing", help="of the timesteps: leading, linspace, trailing, ...")
    job.add_argument("--sigmas", type=_sigmas, help=f"{', '.join(SIGMAS)}, or levels: 10,3,1,0.3,0")
    job.add_argument("--variance", help="ddpm: posterior (default), beta, learned or learned_range")
    job.add_argument(
        "--option", type=_option, action="append", default=[], metavar="NAME=VALUE", help="of the sampler, any number"
    )
    job.add_argument("--chains", type=int, metavar="N", help=f"how many samples (default {DEFAULT_CHAINS})")
    job.add_argument(
        "--labels",
        type=_labels,
        metavar="LIST",
        help="classes, such as 0-9 or 3,1,4: chain i gets the i-th, cyclically",
    )
    job.add_argument("--guidance", type=float, metavar="W", help="weight of classifier-free guidance")
    job.add_argument(
        "--guidance-interval", type=float, nargs=2, metavar=("LO", "HI"), help="times t at which it holds, else 1"
    )
    job.add_argument("--guidance-rescale", type=float, metavar="PHI", help="bring it back to the plain spread, 0 to 1")
    job.add_argument("--known", metavar="FILE", help="repaint: the picture whose known part is kept")
    job.add_argument("--mask", metavar="FILE", help="repaint: a picture, white where it is known")
    job.add_argument("--seed", type=int, help="default 0; the same seed gives the same samples")
    how = p.add_argument_group("how")
    how.add_argument(
        "--slots", type=_slots, help=f"chains in one batch, or auto (default: all, at most {DEFAULT_SLOTS})"
    )
    how.add_argument("--policy", choices=POLICIES, default="fifo", help="which job's chains enter first (default fifo)")
    how.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    add_network_arguments(how)
    how.add_argument(
        "--on-interrupt", choices=("drop", "drain"), default="drop",
        help="Ctrl-C stops at once (default), or lets the chains in the batch end (twice: at once)",
    )  # fmt: skip
    how.add_argument(
        "--preview-every", type=int, metavar="K", help="write x0 estimates to previews/ every K evaluations"
    )
    how.add_argument(
        "--save", choices=tuple(output.SAVES), default="npz",
        help="the samples as samples.npz (default), pictures in samples/, or samples.safetensors",
    )  # fmt: skip
    how.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the samples, grid.png, report.json"
    )


def add_network_arguments(p: argparse._ActionsContainer) -> None:
    """The options that say how the network is called."""
    p.add_argument("--backend", help="cpu, triton, cuda or reference (default: the fastest usable)")
    p.add_argument("--compile", action="store_true", help="run the network through torch.compile")
    p.add_argument("--autocast", choices=tuple(AUTOCAST), help="run the network under torch.autocast")
    p.add_argument(
        "--gradients", action="store_true", help="the network takes gradients inside, as classifier guidance does"
    )
    p.add_argument("--channels-last", action="store_true", help="give the network this memory format")


def run(options: argparse.Namespace) -> int:
    """The command; its exit code: 0, 1 if a chain failed, 130 after Ctrl-C."""
    device = resolve_device(options.device)
    model = load_model(
        options.model, options.weights, options.shape, options.schedule, options.predicts, options.null_class
    )
    if options.preview_every is not None and options.preview_every < 1:
        raise ValueError(f"preview-every: got {options.preview_every}, expected at least 1")
    if options.preview_every is not None and not is_image(model.shape):
        raise ValueError(
            f"preview-every: got it for samples of shape {list(model.shape)}, expected pictures [1 or 3, H, W]"
        )
    output.check_save(options.save, options.out, model.shape)
    specs = _jobs(options, model, device)
    if isinstance(model.denoiser.net, torch.nn.Module):
        model.denoiser.net.to(device)
    sampling = SamplingRun(_engine(options, model, specs, device), model, specs, options)
    rows, described = len(sampling.x), specs[0].sampler if len(specs) == 1 else f"{len(specs)} jobs"
    print(f"ulam: {rows} chains of {model.name}, {described}, backend {sampling.engine.report.backend}")
    files = *output.FILES, *(name for save, name in output.SAVES.items() if save == options.save != "png")
    with writable_folder(options.out, files):
        sampling.go()
        if sampling.done:
            sampling.write()
    if sampling.interrupted:
        print(f"ulam: interrupted, {len(sampling.done)} of {rows} samples written", file=sys.stderr)
        return TERMINATED if sampling.terminated else INTERRUPTED
    return FAILED if sampling.failed else 0


def _jobs(options: argparse.Namespace, model: Model, device: torch.device) -> list[JobSpec]:
    table = {name: getattr(options, name) for name in JOB_OPTIONS if getattr(options, name) is not None}
    for name, value in options.option:
        if name in table:
            raise ValueError(f"{name}: got it twice, expected it once")
        table[name] = value
    return [make_job(table, model, device)] if options.jobs is None else read_jobs(options.jobs, table, model, device)


def _engine(options: argparse.Namespace, model: Model, specs: list[JobSpec], device: torch.device) -> Engine:
    network = NetworkOptions(
        AUTOCAST.get(options.autocast), options.channels_last, options.compile, gradients=options.gradients
    )
    slots = options.slots
    if slots is None:
        slots = min(sum(len(spec.chains) for spec in specs), DEFAULT_SLOTS)
    elif slots == "auto":
        cond = {name: value[:1] for name, value in specs[0].cond.items()}
        slots = Engine.best_slots(
            model.denoiser, model.shape, device, backend=options.backend, options=network, cond=cond
        )  # fmt: skip
        print(f"ulam: {slots} slots")
    return Engine(
        model.denoiser, model.shape, slots, device, options.backend, policy=options.policy, options=network,
        results="host",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ arguments


def _slots(text: str) -> int | str:
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number or auto") from None


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected numbers such as 0.995 or 0.995,2") from None


def _sigmas(text: str) -> str | tuple[float, ...]:
    if re.fullmatch(r"[a-z]\w*(-\w+)*", text):
        return text  # a name, which the sampler knows or not
    try:
        return _numbers(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected {', '.join(SIGMAS)} or levels: 10,3,1,0") from None


def _labels(text: str) -> list[int]:
    try:
        return parse_labels(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("labels: ")) from None


def _option(text: str) -> tuple[str, Any]:
    try:
        return parse_option(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
