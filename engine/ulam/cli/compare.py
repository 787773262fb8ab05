"""`ulam compare`: samplers at numbers of steps beside one another, in one picture, with errors and seconds."""

from __future__ import annotations

import argparse
from copy import copy
from io import BytesIO
from pathlib import Path

import torch

from ..arguments import resolve_device
from ..bulk import progress
from ..engine.engine import Engine
from ..files import check_writable_file, whole
from ..jobs.tables import JobSpec
from ..models.built_in import Model
from ..pictures import is_image
from . import compare_plots
from .arguments import add_job_arguments, add_model_arguments, add_network_arguments, jobs_of, model_of, network_of
from .comparison import compared, evaluations_of
from .plots import require_matplotlib

ENDINGS = ("png", "pdf")
CHAINS = {True: 16, False: 500}  # by whether samples are pictures
MOST_SLOTS = 256
LONG = 100
MOST_CELLS = 100


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The options of `ulam compare`."""
    p.set_defaults(run=run)
    add_model_arguments(p)
    add_job_arguments(p, many=True)
    how = p.add_argument_group("how")
    how.add_argument(
        "--reference", type=int, default=LONG, metavar="N", help=f"steps of the long runs (default {LONG})"
    )
    how.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    add_network_arguments(how, tunes=False)
    how.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help=f"the picture: {' or '.join(ENDINGS)}, by its ending"
    )


def run(options: argparse.Namespace) -> int:
    """Run all, print the table, write the picture; 0."""
    require_matplotlib()
    path: Path = options.out
    if (ending := path.suffix.lower().lstrip(".")) not in ENDINGS:
        raise ValueError(f"out: got {path}, expected a file that ends in .{' or .'.join(ENDINGS)}")
    device, model = resolve_device(options.device), model_of(options)
    specs = _specs(options, model, device)
    if isinstance(model.denoiser.net, torch.nn.Module):
        model.denoiser.net.to(device)
    chains = len(next(iter(specs.values())).chains)
    check_writable_file(path)
    engine = Engine(
        model.denoiser, model.shape, min(chains, MOST_SLOTS), device, options.backend, options=network_of(options)
    )
    print(f"ulam: {chains} chains of {model.name}, {len(specs)} runs and the long ones", flush=True)
    with progress.bar(evaluations_of(model, specs, options.reference), unit="evaluation") as bar:
        found = compared(model, specs, options.reference, engine, bar.update)
    title = f"{model.name}, {chains} chains, seed {next(iter(specs.values())).submit['seed']}"
    file = BytesIO()
    dates = {"Software": None} if ending == "png" else {"CreationDate": None}
    compare_plots.figure(found, title).savefig(file, format=ending, dpi=150, metadata=dates)
    with whole(path) as (partial,):
        partial.write_bytes(file.getvalue())
    print(found)
    print(
        f"ulam: the column of errors: root mean square against {found.reference} of the same first noise; of a sampler "
        "with noise the energy coefficient, 0 to 1, of its samples and its own long run's, beside what chance gives"
    )
    print(f"ulam: wrote {path}")
    return 0


def _specs(options: argparse.Namespace, model: Model, device: torch.device) -> dict[tuple[str, int], JobSpec]:
    """A job for each sampler and number of steps."""
    if options.reference < 2:
        raise ValueError(f"reference: got {options.reference}, expected at least 2 steps")
    if options.reference <= max(options.steps):
        raise ValueError(
            f"reference: got {options.reference}, expected more steps than the {max(options.steps)} compared"
        )
    if (cells := len(options.samplers) * len(options.steps)) > MOST_CELLS:
        raise ValueError(f"samplers, steps: got {cells} runs, expected at most {MOST_CELLS}")
    specs = {}
    for name in options.samplers:
        for steps in options.steps:
            one = copy(options)
            one.sampler, one.steps, one.jobs = name, steps, None
            if one.chains is None:
                one.chains = CHAINS[is_image(model.shape)]
            specs[name, steps] = jobs_of(one, model, device)[0]
            if model.denoiser.program(specs[name, steps].sampler).blends.any():
                raise ValueError(f"samplers: got {name}, expected those without a known image")
    return specs
