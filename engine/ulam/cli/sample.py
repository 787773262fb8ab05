"""`ulam sample`: jobs in, pictures, samples and a report out."""

from __future__ import annotations

import argparse
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tqdm import tqdm

from ..arguments import resolve_device
from ..engine.engine import Engine
from ..engine.job import Job
from ..engine.network import NetworkOptions
from ..engine.sample import DEFAULT_SLOTS
from ..engine.scheduler import POLICIES
from ..files import writable_folder, written
from ..models.built_in import Model
from ..pictures import is_image
from ..samplers.sigmas import SIGMAS
from . import info, output
from .job_tables import DEFAULT_CHAINS, JobSpec, make_job, parse_labels, parse_option, read_jobs, sampler_names
from .models import load_model
from .streams import TERMINATED, Terminated

FAILED, INTERRUPTED = 1, 130
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Options that a job of a TOML file may have too; they are the defaults of all jobs.
JOB_OPTIONS = (
    "sampler", "steps", "eta", "clip", "threshold", "spacing", "sigmas", "variance", "chains", "labels", "guidance",
    "guidance_interval", "guidance_rescale", "seed", "known", "mask",
)  # fmt: skip
NAMED = 8  # failed chains that are named on stderr


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The options of `ulam sample`, apart from those that choose the model."""
    p.set_defaults(run=run)
    job = p.add_argument_group("what to sample (with --jobs: the defaults of all jobs)")
    job.add_argument("--jobs", type=Path, metavar="FILE", help="TOML with one [[job]] table a job: keys as the options")
    job.add_argument("--sampler", help=f"one of {', '.join(sorted(sampler_names()))} (default ddim)")
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
    how.add_argument("--backend", help="cpu, triton, cuda or reference (default: the fastest usable)")
    how.add_argument("--compile", action="store_true", help="run the network through torch.compile")
    how.add_argument("--autocast", choices=tuple(AUTOCAST), help="run the network under torch.autocast")
    how.add_argument(
        "--gradients", action="store_true", help="the network takes gradients inside, as classifier guidance does"
    )
    how.add_argument("--channels-last", action="store_true", help="give the network this memory format")
    how.add_argument(
        "--on-interrupt", choices=("drop", "drain"), default="drop",
        help="Ctrl-C stops at once (default), or lets the chains in the batch end (twice: at once)",
    )  # fmt: skip
    how.add_argument(
        "--preview-every", type=int, metavar="K", help="write x0 estimates to previews/ every K evaluations"
    )
    how.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for grid.png, samples.npz, report.json"
    )


def run(options: argparse.Namespace) -> int:
    """The command; its exit code: 0, 1 if a chain failed, 130 after Ctrl-C."""
    device = resolve_device(options.device)
    model = load_model(
        options.model, options.weights, options.shape, options.schedule, options.predicts, options.null_class
    )
    if options.preview_every is not None and options.preview_every < 1:
        raise ValueError(f"preview-every: got {options.preview_every}, expected at least 1")
    if options.preview_every is not None and not is_image(model.shape):
        raise ValueError(f"preview-every: samples of shape {model.shape} are no pictures")
    specs = _jobs(options, model, device)
    if isinstance(model.denoiser.net, torch.nn.Module):
        model.denoiser.net.to(device)
    sampling = _Sampling(_engine(options, model, specs, device), model, specs, options)
    rows, described = len(sampling.x), specs[0].sampler if len(specs) == 1 else f"{len(specs)} jobs"
    print(f"ulam: {rows} chains of {model.name}, {described}, backend {sampling.engine.report.backend}")
    with writable_folder(options.out, output.FILES):
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


@dataclass
class _Sampling:
    """A run, and what has come out of it so far: row i of ``x`` is the i-th chain of all jobs in order."""

    engine: Engine
    model: Model
    specs: list[JobSpec]
    options: argparse.Namespace
    done: list[int] = field(default_factory=list)
    failed: list[tuple[int, Job, int, int]] = field(default_factory=list)  # row of x, job, chain, row of its program
    interrupted: bool = False
    terminated: bool = False  # by SIGTERM
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.options.preview_every is not None:
            previews = output.Previews(self.options.out)
            preview: dict[str, Any] = {"callback": previews, "every": self.options.preview_every}
        else:
            preview = {}
        self.jobs = [self.engine.submit(s.sampler, s.chains, **s.submit, **preview) for s in self.specs]
        if preview:
            previews.jobs = self.jobs
        counts = [len(spec.chains) for spec in self.specs]
        self.begins = {job: sum(counts[:number]) for number, job in enumerate(self.jobs)}
        self.total = sum(count * job.ticks for count, job in zip(counts, self.jobs, strict=True))
        self.x = torch.zeros(sum(counts), *self.model.shape, dtype=torch.float32)

    def go(self) -> None:
        """Sample until all chains are done, or Ctrl-C."""
        begin = time.perf_counter()
        with _progress(self.total) as bar, self._interruptible() as pressed:
            on_gpu = self.engine.report.device != "cpu"

            def tick(evaluations: int) -> None:
                if not on_gpu:  # there a tick is launched long before it is done
                    bar.update(evaluations)
                if pressed and not self.interrupted:
                    self.interrupted = True
                    self.engine.drop_waiting()

            try:
                for group in self.engine.finished(tick):
                    at = self.begins[group.job]
                    rows = range(at + group.chains.start, at + group.chains.stop)
                    self.x[rows.start : rows.stop] = group.states
                    self.done += rows
                    for place, row in group.failed.items():
                        self.x[at + place] = float("nan")
                        self.failed.append((at + place, group.job, group.job.ids[place], row))
                    if on_gpu:
                        bar.update(len(rows) * group.job.ticks)
            except KeyboardInterrupt as error:
                self.interrupted, self.terminated = True, isinstance(error, Terminated)
        self.seconds = time.perf_counter() - begin
        self._find_overflows()

    def _find_overflows(self) -> None:
        """Chains whose last update left the finite numbers have failed too."""
        known = {place for place, *_ in self.failed}
        for place in torch.nonzero(~torch.isfinite(self.x).flatten(1).all(1)).flatten().tolist():
            if place not in known:
                job = next(job for job in reversed(self.jobs) if self.begins[job] <= place)
                self.failed.append((place, job, job.ids[place - self.begins[job]], len(job.program) - 1))

    @contextmanager
    def _interruptible(self) -> Iterator[list[bool]]:
        """With --on-interrupt drain the first Ctrl-C is noted, the second raises."""
        pressed: list[bool] = []
        if self.options.on_interrupt == "drop" or threading.current_thread() is not threading.main_thread():
            yield pressed
            return

        def note(number: int, frame: FrameType | None) -> None:
            pressed.append(True)
            signal.signal(signal.SIGINT, before)
            print("ulam: finishing the chains in the batch; Ctrl-C again stops at once", file=sys.stderr)

        before = signal.signal(signal.SIGINT, note)
        try:
            yield pressed
        finally:
            signal.signal(signal.SIGINT, before)

    def write(self) -> None:
        """Write the chains that ended; failed ones are NaN (black in pictures), and told."""
        done = sorted(self.done)
        x, report = self.x[done], self._report(done)
        self._tell_failed(report)
        labels = None
        if any(spec.labels is not None for spec in self.specs):
            every = [y for spec in self.specs for y in spec.labels or [-1] * len(spec.chains)]
            labels = [every[row] for row in done]
        given = self.options.labels
        columns = len(given) if given and len(given) <= 20 else None
        paths, lost = written(self.options.out, lambda folder: output.write_run(folder, x, labels, columns, report))
        rate = f"{report['seconds']:.2f} s, {report['samples_per_second']:.1f} samples/s"
        print(f"ulam: {rate}; wrote {', '.join(paths)}")
        if lost is not None:
            raise lost

    def _tell_failed(self, report: dict[str, Any]) -> None:
        for reason in report["fallbacks"]:
            print(f"ulam: note: {reason}", file=sys.stderr)
        if not self.failed:
            return
        named = [f"{chain} at row {row}" for _, _, chain, row in self.failed[:NAMED]]
        more = ", ..." if len(self.failed) > NAMED else ""
        count = f"{len(self.failed)} of {len(self.x)} chains"
        print(f"ulam: failed: {count} turned NaN or Inf: chain {', '.join(named)}{more}", file=sys.stderr)

    def _report(self, done: list[int]) -> dict[str, Any]:
        """What the engine tells, and what was asked for. ``chains_failed``: with ``sample``, the row in arr_0."""
        told, first = self.engine.report, self.specs[0]
        sample = {row: place for place, row in enumerate(done)}
        own = [self._job_report(number, spec) for number, spec in enumerate(self.specs)]
        return {
            "model": self.model.name,
            "schedule": repr(self.model.denoiser.schedule),
            "predicts": self.model.denoiser.predicts,
            **({**own[0], "labels": first.labels is not None} if len(own) == 1 else {}),
            "jobs": own,
            **told.as_dict(),
            "chains": len(done),
            "chains_asked": len(self.x),
            "chains_failed": [
                {"sample": sample[place], "job": self.jobs.index(job), "chain": chain, "row": row}
                for place, job, chain, row in sorted(self.failed, key=lambda entry: entry[0])
            ],
            "seconds": self.seconds,
            "samples_per_second": len(done) / self.seconds,
            "instruction_set": info.instruction_set(),
            "threads": torch.get_num_threads(),
            "versions": info.versions(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }

    def _job_report(self, number: int, spec: JobSpec) -> dict[str, Any]:
        plain = {key: value for key, value in spec.submit.items() if isinstance(value, (int, float, str, list, tuple))}
        chains = {"first": spec.chains.start, "chains": len(spec.chains), "ticks": self.jobs[number].ticks}
        return {"sampler": repr(spec.sampler), **plain, **chains}


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


def _progress(total: int) -> Any:
    """A bar on a terminal; elsewhere a line every ten seconds."""
    if sys.stderr.isatty():
        return tqdm(total=total, unit="eval", desc="ulam")
    plain = "ulam: {percentage:.0f}% ({n_fmt}/{total_fmt} evaluations, {elapsed}, {remaining} left)\n"
    return tqdm(total=total, mininterval=10, delay=10, bar_format=plain, leave=False, file=_Lines())


class _Lines:
    """Where the plain progress goes: whole lines on stderr, without the bar's carriage returns."""

    def write(self, text: str) -> None:
        if line := text.replace("\r", "").strip():
            print(line, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()
