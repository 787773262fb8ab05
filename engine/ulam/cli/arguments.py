"""Options that several commands share: what to sample, how the network is called; and what they come to."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch

from ..engine.network import COMPILE, DTYPES, NetworkOptions
from ..engine.tuned import Tuned
from ..jobs.models import load_model
from ..jobs.tables import DEFAULT_CHAINS, JobSpec, make_job, parse_labels, parse_option, read_jobs, samplers_by_name
from ..models.built_in import Model
from ..samplers.sigmas import SIGMAS
from ..tuning.candidates import EXACT, FP32
from ..tuning.tune import tune

ACCURACIES = "exact, fp32, or the most that samples may differ, as a fraction of their range, such as 1e-2"
COMPARED, COMPARED_STEPS = "ddim,dpmpp_2m,unipc", "5,10,20"
# Options that a job of a TOML file may have too; they are the defaults of all jobs.
JOB_OPTIONS = (
    "sampler", "steps", "eta", "clip", "threshold", "spacing", "sigmas", "variance", "chains", "labels", "guidance",
    "guidance_interval", "guidance_rescale", "guidance_rule", "seed", "known", "mask",
)  # fmt: skip


def add_job_arguments(p: argparse.ArgumentParser, many: bool = False) -> None:
    """The options that say what to sample. many: several samplers and numbers of steps, in place of one or a file."""
    title = "what to sample" if many else "what to sample (with --jobs: the defaults of all jobs)"
    job = p.add_argument_group(title)
    names = ", ".join(sorted(samplers_by_name()))
    elsewhere = (
        "any other name of ComfyUI, k-diffusion or A1111, such as dpmpp_2m_sde or 'DPM++ 2M Karras': "
        "DDIM, UniPC and the like are the classes here, with their own defaults, and 'A1111 DDIM' is A1111's"
    )
    if many:
        job.add_argument(
            "--samplers", type=_names, default=_names(COMPARED), metavar="NAME,...",
            help=f"of {names} (default {COMPARED}); or {elsewhere}",
        )  # fmt: skip
        job.add_argument(
            "--steps", type=_counts, default=_counts(COMPARED_STEPS), metavar="N,...",
            help=f"noise levels a chain (default {COMPARED_STEPS})",
        )  # fmt: skip
    else:
        job.add_argument(
            "--jobs", type=Path, metavar="FILE", help="TOML with one [[job]] table a job: keys as the options"
        )
        job.add_argument("--sampler", metavar="NAME", help=f"one of {names} (default ddim); or {elsewhere}")
        job.add_argument("--steps", type=int, help="noise levels a chain (default 50; ddpm: all)")
    job.add_argument("--eta", type=float, help="ddim and others: 0 deterministic to 1 ancestral")
    job.add_argument("--clip", type=float, nargs=2, metavar=("LO", "HI"), help="clip the x0 estimate, such as -1 1")
    job.add_argument(
        "--threshold", type=_numbers, metavar="P[,CAP]", help="dynamic thresholding at this quantile, such as 0.995"
    )
    job.add_argument("--spacing", help="of the timesteps: leading, linspace, trailing, ...")
    job.add_argument(
        "--sigmas",
        type=_sigmas,
        help=f"{', '.join(SIGMAS)} (for names from elsewhere: theirs), or levels: 10,3,1,0.3,0",
    )
    job.add_argument("--variance", help="ddpm: posterior (default), beta, learned or learned_range")
    job.add_argument(
        "--option", type=_option, action="append", default=[], metavar="NAME=VALUE", help="of the sampler, any number"
    )
    count = "16 pictures, 500 of other samples" if many else str(DEFAULT_CHAINS)
    job.add_argument("--chains", type=int, metavar="N", help=f"how many samples (default {count})")
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
    job.add_argument(
        "--guidance-rule",
        metavar="RULE",
        help="apg (such as apg:eta=0.5,norm=15,momentum=-0.5) or cfg-zero, in its place",
    )
    job.add_argument("--known", metavar="FILE", help="repaint: the picture whose known part is kept")
    job.add_argument("--mask", metavar="FILE", help="repaint: a picture, white where it is known")
    job.add_argument("--seed", type=int, help="default 0; the same seed gives the same samples")


def add_model_arguments(p: argparse.ArgumentParser, required: bool = True) -> None:
    """The options that choose a model."""
    p.add_argument(
        "--model",
        required=required,
        help="digits, the folder of a pipeline or model of diffusers, or your own: module:factory or file.py:factory",
    )
    p.add_argument("--weights", type=Path, metavar="FILE", help="safetensors weights for your network")
    p.add_argument("--shape", type=_integers, metavar="C,H,W", help="shape of one sample of your network")
    p.add_argument("--schedule", metavar="CALL", help="such as 'vp_linear(1000)' (your network; that is the default)")
    p.add_argument("--predicts", help="eps, x0, v, score, flow, raw or mean (your network; default eps)")
    p.add_argument("--time", help="index for a network that embeds whole training steps, int64 (default auto: floats)")
    p.add_argument(
        "--output", type=_key, metavar="KEY", help="of a network that returns several tensors: a key, or a position"
    )
    p.add_argument("--null-class", type=int, help="the label that means no class (your network, for guidance)")


def _names(text: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if not all(found):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected names such as {COMPARED}")
    return found


def _counts(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d{0,5}(,[1-9]\d{0,5})*", text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected whole numbers such as {COMPARED_STEPS}")
    return tuple(dict.fromkeys(int(part) for part in text.split(",")))


def _key(text: str) -> str | int:
    return int(text) if re.fullmatch(r"-?\d{1,9}", text) else text


def _integers(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected whole numbers such as 3,32,32")
    return tuple(int(part) for part in text.split(","))


def add_network_arguments(p: argparse._ActionsContainer, tunes: bool = True) -> None:
    """The options that say how the network is called. tunes: with ``--tune``."""
    p.add_argument("--backend", help="cpu, triton, cuda or reference (default: the fastest usable)")
    p.add_argument(
        "--compile",
        nargs="?",
        const=True,
        default=False,
        choices=tuple(name for name in COMPILE if name is not True),
        help="run the network through torch.compile; frozen: its weights as constants",
    )
    p.add_argument("--autocast", choices=tuple(DTYPES), help="run the network under torch.autocast")
    p.add_argument("--weights-dtype", choices=tuple(DTYPES), help="run a copy of the network with such weights")
    p.add_argument(
        "--gradients", action="store_true", help="the network takes gradients inside, as classifier guidance does"
    )
    p.add_argument("--channels-last", action="store_true", help="give the network this memory format")
    if not tunes:
        return
    p.add_argument(
        "--tune",
        nargs="?",
        const=FP32,
        type=accuracy,
        metavar="ACCURACY",
        help=f"find the fastest way to run the network first: {ACCURACIES} (default fp32; see ulam tune)",
    )


def model_of(options: argparse.Namespace) -> Model:
    """The model that the options choose."""
    return load_model(
        options.model, options.weights, options.shape, options.schedule, options.predicts, options.null_class,
        options.time, options.output,
    )  # fmt: skip


def jobs_of(options: argparse.Namespace, model: Model, device: torch.device) -> list[JobSpec]:
    """The jobs, by the options of :func:`add_job_arguments`."""
    table = {name: getattr(options, name) for name in JOB_OPTIONS if getattr(options, name) is not None}
    for name, value in options.option:
        if name in table:
            raise ValueError(f"{name}: got it twice, expected it once")
        table[name] = value
    return [make_job(table, model, device)] if options.jobs is None else read_jobs(options.jobs, table, model, device)


def network_of(options: argparse.Namespace) -> NetworkOptions:
    """How the network is called, by the options of :func:`add_network_arguments`."""
    return NetworkOptions(
        DTYPES.get(options.autocast), options.channels_last, options.compile, gradients=options.gradients,
        weights=DTYPES.get(options.weights_dtype),
    )  # fmt: skip


def tuned(
    options: argparse.Namespace,
    model: Model,
    job: JobSpec,
    device: torch.device,
    slots: int | list[int] | None,
    network: NetworkOptions,
    **more: Any,
) -> Tuned:
    """What is found for a job, as the command's options say."""
    guided = {name: job.submit[name] for name in ("guidance", "uncond") if name in job.submit}
    return tune(
        model.denoiser, model.shape, sampler=job.sampler, slots=slots, accuracy=options.tune, cond=job.cond or None,
        device=device, backend=options.backend, options=network, **guided, **more,
    )  # fmt: skip


def accuracy(text: str) -> str | float:
    """An accuracy as :func:`ulam.tune` takes it."""
    if text in (EXACT, FP32):
        return text
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected {ACCURACIES}")
    return found


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected numbers such as 0.995 or 0.995,2") from None


def _sigmas(text: str) -> str | tuple[float, ...]:
    if re.fullmatch(r"[A-Za-z]\w*([- ]\w+)*", text):
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
