"""`ulam tune`: the fastest way to run a network, and what was measured of the others."""

from __future__ import annotations

import argparse
import json

import torch

from ..arguments import resolve_device
from ..bulk.recipes import settings_of
from ..tuning.candidates import FP32
from ..tuning.tune import BUDGET
from .arguments import (
    ACCURACIES,
    accuracy,
    add_job_arguments,
    add_model_arguments,
    add_network_arguments,
    jobs_of,
    model_of,
    network_of,
    tuned,
)


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The options of `ulam tune`."""
    p.set_defaults(run=run)
    add_model_arguments(p)
    add_job_arguments(p)
    how = p.add_argument_group("how")
    how.add_argument(
        "--accuracy", dest="tune", type=accuracy, default=FP32, help=f"{ACCURACIES} (default fp32)", metavar="ACCURACY"
    )
    how.add_argument(
        "--slots", type=_counts, metavar="N[,N]", help="chains in one batch (default 256); the best of several"
    )
    how.add_argument("--budget", type=float, default=BUDGET, metavar="S", help=f"seconds (default {BUDGET:.0f})")
    how.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    how.add_argument("--fresh", action="store_true", help="measure anew what an earlier tuning has found")
    add_network_arguments(how, tunes=False)


def run(options: argparse.Namespace) -> int:
    """Print the table, and the settings for a bulk run's TOML file; 0."""
    device = resolve_device(options.device)
    model = model_of(options)
    job = jobs_of(options, model, device)[0]
    if isinstance(model.denoiser.net, torch.nn.Module):
        model.denoiser.net.to(device)
    found = tuned(
        options, model, job, device, options.slots, network_of(options), budget=options.budget, cache=not options.fresh
    )
    print(found)
    print(f"ulam: for ulam run: {', '.join(f'{name} = {json.dumps(v)}' for name, v in settings_of(found).items())}")
    return 0


def _counts(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected whole numbers such as 64 or 64,128") from None
