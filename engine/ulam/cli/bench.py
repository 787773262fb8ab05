"""`ulam bench`: the throughput of a network on this machine, in ulam and without it, as a report."""

from __future__ import annotations

import argparse
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..arguments import resolve_device
from ..engine.arguments import DEFAULT_SLOTS
from ..files import json_text, whole, writable_folder, written
from ..models.built_in import Model
from ..throughput.cases import CASES
from ..throughput.measure import BUDGET, measure
from ..throughput.report import html
from ..throughput.work import Work
from ..tuning.candidates import FP32
from . import info
from .arguments import ACCURACIES, accuracy, add_job_arguments, add_model_arguments, jobs_of, model_of
from .plots import require_matplotlib

FILES = ("report.html", "report.json")
REFUSED = ("guidance_interval", "guidance_rescale", "guidance_rule", "known", "mask")  # of a job: not in a plain loop
CPU_SLOTS = 64  # where nothing says how many


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The options of `ulam bench`."""
    p.set_defaults(run=run)
    p.add_argument("--case", choices=tuple(CASES), help="a built-in case in place of a model (default digits)")
    add_model_arguments(p, required=False)
    add_job_arguments(p)
    how = p.add_argument_group("how")
    how.add_argument("--slots", type=int, metavar="N", help=f"chains in one batch (default {CPU_SLOTS}; on GPUs 256)")
    how.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    how.add_argument("--backend", help="cpu, triton, cuda or reference (default: the fastest usable)")
    how.add_argument(
        "--budget", type=float, default=BUDGET, metavar="S",
        help=f"seconds (default {BUDGET:.0f}); what would take more than is left is left out, and said",
    )  # fmt: skip
    how.add_argument(
        "--accuracy", type=accuracy, default=FP32, metavar="ACCURACY", help=f"of ulam tune: {ACCURACIES} (default fp32)"
    )
    how.add_argument("--no-compile", action="store_true", help="without torch.compile, and thus without ulam tune")
    how.add_argument("--no-plots", action="store_true", help="a report of tables alone (matplotlib is not needed then)")
    how.add_argument(
        "--out", type=Path, default=Path("ulam-bench"), metavar="DIR",
        help="folder for report.html and report.json (default ulam-bench)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Measure, print, write the report; 0."""
    if not options.no_plots:
        require_matplotlib("--no-plots")
    device = resolve_device(options.device)
    model = _model(options)
    work = _work(options, model, device)
    with writable_folder(options.out, FILES):
        print(f"ulam: {model.name}, a minute or two (--budget {options.budget:g})", flush=True)
        found = measure(work, budget=options.budget, accuracy=options.accuracy, compiles=not options.no_compile)
        facts = machine()
        title = f"ulam bench: {model.name}, {facts['date'][:10]}"
        text = html(found, title, facts, pictures=not options.no_plots)

        def write(folder: Path) -> list[str]:
            with whole(*(folder / name for name in FILES)) as (page, report):
                page.write_text(text)
                report.write_text(json_text({"model": model.name, "machine": facts, **found.as_dict()}))
            return [*FILES]

        paths, lost = written(options.out, write)
    *lines, verdict = str(found).splitlines()
    print("\n".join(lines))
    print(f"ulam: wrote {', '.join(paths)}")
    print(f"ulam: {verdict}")
    if lost is not None:
        raise lost
    return 0


def _model(options: argparse.Namespace) -> Model:
    if options.model is not None:
        if options.case is not None:
            raise ValueError(f"case: got {options.case} beside model {options.model}, expected one of them")
        return model_of(options)
    for name in ("weights", "shape", "schedule", "predicts", "time", "output", "null_class"):
        if (given := getattr(options, name)) is not None:
            raise ValueError(f"{name.replace('_', '-')}: got {given} without a model, expected --model with it")
    return CASES[options.case or "digits"]()


def _work(options: argparse.Namespace, model: Model, device: torch.device) -> Work:
    jobs = jobs_of(options, model, device)
    if len(jobs) > 1:
        raise ValueError(f"jobs: got {len(jobs)}, expected one")
    job = jobs[0]
    for name in REFUSED:
        if job.submit.get(name):
            raise ValueError(f"{name.replace('_', '-')}: got it, expected none: the plain loop has no such thing")
    if isinstance(model.denoiser.net, torch.nn.Module):
        model.denoiser.net.to(device)
    slots = options.slots
    if slots is None:
        slots = CPU_SLOTS if device.type == "cpu" else DEFAULT_SLOTS
    guided = {name: job.submit[name] for name in ("guidance", "uncond") if name in job.submit}
    where: dict[str, Any] = {"device": device, "backend": options.backend}
    return Work(model.denoiser, model.shape, job.sampler, slots, job.cond or None, **where, **guided)


def machine() -> dict[str, str]:
    """What figures were measured on, and when, by name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    found, missing = info.gpus()
    packages = dict(info.versions())
    for name in ("diffusers",):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = "not installed"
    return {
        "date": time.strftime("%Y-%m-%d %H:%M %z"),
        "processor": processor or platform.processor() or platform.machine(),
        "threads": f"{torch.get_num_threads()} of torch, {info.instruction_set()}",
        "gpu": ", ".join(f"{gpu['name']}, driver {gpu['driver']}" for gpu in found) or f"none: {missing}",
        "versions": ", ".join(f"{name} {version}" for name, version in packages.items()),
    }
