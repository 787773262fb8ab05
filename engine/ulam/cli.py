"""The command line: `ulam sample` and `ulam info`."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from . import info, output, samplers
from .arguments import resolve_device
from .denoiser import Sampler
from .engine import Engine
from .loading import Model, load_model
from .sampling import DEFAULT_SLOTS

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
# Options of `ulam sample` that go to the sampler, if they are given.
SAMPLER_OPTIONS = ("steps", "eta", "clip", "spacing", "variance")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code: 0, 2 for bad input, 1 for a failure inside the model, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        print("ulam: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if options.traceback:
            raise
        known = isinstance(error, (ValueError, TypeError, OSError, ImportError))
        text = str(error) if known else f"{type(error).__name__}: {error} (--traceback shows where)"
        print(f"ulam: error: {' '.join(text.split())}", file=sys.stderr)
        return BAD_INPUT if known else FAILED


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"ulam: error: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(BAD_INPUT)


def _parser() -> _Parser:
    parser = _Parser(prog="ulam", description="Sample trained diffusion models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = _Parser(add_help=False)
    common.add_argument("--traceback", action="store_true", help="show where an error comes from")

    told = commands.add_parser("info", parents=[common], help="versions, devices and backends")
    told.add_argument("--json", action="store_true", help="print JSON")
    told.set_defaults(run=_info)

    p = commands.add_parser("sample", parents=[common], help="draw samples from a trained model")
    p.set_defaults(run=_sample)
    p.add_argument("--model", required=True, help="digits, or module:factory for a network of your own")
    p.add_argument("--weights", type=Path, metavar="FILE", help="safetensors weights for your network")
    p.add_argument("--shape", type=_integers, metavar="C,H,W", help="shape of one sample of your network")
    p.add_argument("--schedule", metavar="CALL", help="such as 'vp_linear(1000)' (your network; that is the default)")
    p.add_argument("--predicts", help="eps, x0, v, score, flow or raw (your network; default eps)")
    p.add_argument("--sampler", default="ddim", help=f"one of {', '.join(sorted(_samplers()))} (default ddim)")
    p.add_argument("--steps", type=int, help="evaluations of the network a chain (default 50; ddpm: all)")
    p.add_argument("--eta", type=float, help="ddim: 0 deterministic (default) to 1 ancestral")
    p.add_argument(
        "--clip", type=float, nargs=2, metavar=("LO", "HI"), help="clip the x0 estimate, such as --clip -1 1"
    )
    p.add_argument("--spacing", help="of the timesteps: leading, linspace or trailing")
    p.add_argument("--variance", help="ddpm: posterior (default), beta, learned or learned_range")
    p.add_argument("--chains", type=int, default=64, metavar="N", help="how many samples (default 64)")
    p.add_argument(
        "--labels",
        type=_labels,
        metavar="LIST",
        help="classes, such as 0-9 or 3,1,4: chain i gets the i-th, cyclically",
    )
    p.add_argument("--guidance", type=float, metavar="W", help="weight of classifier-free guidance")
    p.add_argument("--null-class", type=int, help="the label that means no class (your network, for guidance)")
    p.add_argument("--seed", type=int, default=0, help="default 0; the same seed gives the same samples")
    p.add_argument("--slots", type=int, help=f"chains in one batch (default: all, at most {DEFAULT_SLOTS})")
    p.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    p.add_argument("--backend", help="cpu, triton, cuda or reference (default: the fastest usable)")
    p.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for grid.png, samples.npz, report.json"
    )
    return parser


def _info(options: argparse.Namespace) -> int:
    facts = info.collect()
    print(json.dumps(facts, indent=1) if options.json else info.text(facts))
    return 0


# ------------------------------------------------------------------------------------------------ sampling


@dataclass
class _Run:
    """A sampling run and what has come out of it so far."""

    engine: Engine
    sampler: Sampler
    x: torch.Tensor
    total: int
    done: list[int] = field(default_factory=list)
    failed: dict[int, int] = field(default_factory=dict)
    interrupted: bool = False
    seconds: float = 0.0

    def go(self) -> None:
        """Sample until all chains are done, or Ctrl-C."""
        begin = time.perf_counter()
        try:
            with _progress(self.total) as progress:
                for group in self.engine.finished(progress.update):
                    # On a GPU this waits: the seconds are those of the work, not of the launches.
                    self.x[group.chains] = group.states
                    self.done += range(group.chains.start, group.chains.stop)
                    for place in group.failed:
                        self.x[place] = float("nan")
                    self.failed |= {group.job.ids[place]: row for place, row in group.failed.items()}
        except KeyboardInterrupt:
            self.interrupted = True
        self.seconds = time.perf_counter() - begin


def _sample(options: argparse.Namespace) -> int:
    if not 1 <= options.chains <= 10**9:
        raise ValueError(f"chains: got {options.chains}, expected 1 to 10^9")
    model = load_model(
        options.model, options.weights, options.shape, options.schedule, options.predicts, options.null_class
    )
    labels = _chain_labels(options.labels, model, options.chains)
    sampler = _make_sampler(options)
    device = resolve_device(options.device)
    if isinstance(model.denoiser.net, torch.nn.Module):
        model.denoiser.net.to(device)
    slots = min(options.chains, DEFAULT_SLOTS) if options.slots is None else options.slots
    engine = Engine(model.denoiser, model.shape, slots, device, options.backend)
    job = engine.submit(sampler, options.chains, options.seed, **_conditioning(options, model, labels))
    run = _Run(
        engine,
        sampler,
        torch.zeros(options.chains, *model.shape, dtype=torch.float32),
        options.chains * job.program.nfe,
    )
    print(f"ulam: {options.chains} chains of {model.name}, {sampler}, backend {engine.report.backend}")
    with output.writable_folder(options.out):
        run.go()
        if run.done:
            _write(options, model, run, labels)
    if run.interrupted:
        print(f"ulam: interrupted, {len(run.done)} of {options.chains} samples written", file=sys.stderr)
        return INTERRUPTED
    return 0


def _write(options: argparse.Namespace, model: Model, run: _Run, labels: list[int] | None) -> None:
    """Write the finished chains."""
    done = sorted(run.done)
    x = run.x[done]
    report = _report(options, model, run, done)
    if bad := [done[i] for i in torch.nonzero(~torch.isfinite(x).flatten(1).all(1)).flatten().tolist()]:
        report["not_finite"] = bad
        print(f"ulam: warning: {len(bad)} samples are not finite (chains {bad[:5]} ...)", file=sys.stderr)
    columns = len(options.labels) if options.labels and len(options.labels) <= 20 else None
    names = output.write_run(options.out, x, labels and [labels[i] for i in done], columns, report)
    rate = f"{report['seconds']:.2f} s, {report['samples_per_second']:.1f} samples/s"
    print(f"ulam: {rate}; wrote {', '.join(str(options.out / name) for name in names)}")


def _report(options: argparse.Namespace, model: Model, run: _Run, done: list[int]) -> dict[str, Any]:
    told = run.engine.report
    return {
        "model": model.name,
        "schedule": repr(model.denoiser.schedule),
        "predicts": model.denoiser.predicts,
        "sampler": repr(run.sampler),
        "seed": options.seed,
        "guidance": options.guidance,
        "chains": len(done),
        "chains_asked": len(run.x),
        "slots": told.slots,
        "evaluations": told.evaluations,
        "seconds": run.seconds,
        "samples_per_second": len(done) / run.seconds,
        "network_seconds": told.network_seconds if told.device == "cpu" else None,  # launches alone are no measure
        "backend": told.backend,
        "instruction_set": info.instruction_set(),
        "device": told.device,
        "threads": torch.get_num_threads(),
        "fallbacks": list(told.fallbacks),
        "versions": info.versions(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _conditioning(options: argparse.Namespace, model: Model, labels: list[int] | None) -> dict[str, Any]:
    """The arguments of `submit` for labels and guidance."""
    null = model.null_class
    if labels is None:
        if options.guidance is not None:
            raise ValueError("guidance: needs --labels")
        if null is None:
            return {}
        labels = [null] * options.chains
    cond = {"y": torch.tensor(labels, device=options.device)}
    if options.guidance is None:
        return {"cond": cond}
    if null is None:
        raise ValueError("guidance: needs --null-class, the label that means no class")
    return {"cond": cond, "guidance": options.guidance, "uncond": {"y": torch.full_like(cond["y"], null)}}


def _chain_labels(labels: list[int] | None, model: Model, chains: int) -> list[int] | None:
    if labels is None:
        return None
    if model.classes is not None and (unknown := [y for y in labels if not 0 <= y < model.classes]):
        raise ValueError(f"labels: {unknown[0]} is unknown to {model.name}, which knows 0 to {model.classes - 1}")
    return [labels[i % len(labels)] for i in range(chains)]


# ------------------------------------------------------------------------------------------------ arguments


def _samplers() -> dict[str, Any]:
    return {name.lower(): getattr(samplers, name) for name in samplers.__all__}


def _make_sampler(options: argparse.Namespace) -> Sampler:
    known = _samplers()
    if options.sampler.lower() not in known:
        raise ValueError(f"sampler: got {options.sampler!r}, expected one of {', '.join(sorted(known))}")
    make = known[options.sampler.lower()]
    taken = {option.name for option in fields(make)}
    given = {name: getattr(options, name) for name in SAMPLER_OPTIONS if getattr(options, name) is not None}
    if strange := given.keys() - taken:
        raise ValueError(f"{sorted(strange)[0]}: the sampler {options.sampler} does not take it")
    if "steps" not in given and options.sampler.lower() != "ddpm":
        given["steps"] = 50
    made: Sampler = make(**given)
    return made


def _integers(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected whole numbers such as 3,32,32")
    return tuple(int(part) for part in text.split(","))


def _labels(text: str) -> list[int]:
    """`0-9`, `3,1,4` and mixtures of both."""
    labels: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip())
        if match is None or (match[2] and not 0 <= int(match[2]) - int(match[1]) < 100_000):
            raise argparse.ArgumentTypeError(f"got {text!r}, expected labels such as 0-9 or 3,1,4")
        labels += range(int(match[1]), int(match[2] or match[1]) + 1)
    return labels


def _progress(total: int) -> Any:
    """A bar on a terminal; elsewhere a line every ten seconds."""
    if sys.stderr.isatty():
        return tqdm(total=total, unit="eval", desc="ulam")
    plain = "ulam: {percentage:.0f}% ({n_fmt}/{total_fmt} evaluations, {elapsed})\n"
    return tqdm(total=total, mininterval=10, delay=10, bar_format=plain, leave=False, file=_Lines())


class _Lines:
    """Where the plain progress goes: whole lines on stderr, without the bar's carriage returns."""

    def write(self, text: str) -> None:
        if line := text.replace("\r", "").strip():
            print(line, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()
