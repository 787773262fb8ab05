"""`ulam run`, `verify`, `export` and `merge`: bulk sampling in a folder, by any number of workers."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from .. import bulk
from ..bulk.exports.formats import FORMATS as EXPORTS
from ..bulk.plan import FORMATS
from ..bulk.recipes import SETTINGS, plan_of, settings_of
from ..bulk.running import LAUNCHERS, ON_INTERRUPT
from .arguments import add_model_arguments, add_network_arguments
from .streams import FAILED

NAMED = 8  # units that are named


def add_run_arguments(p: argparse.ArgumentParser) -> None:
    """The options of `ulam run`."""
    p.set_defaults(run=run)
    add_model_arguments(p, required=False)
    p.add_argument("target", type=Path, metavar="JOBS.toml|DIR", help="jobs to sample, or a folder to go on with")
    p.add_argument("--out", type=Path, metavar="DIR", help="folder for the samples (with JOBS.toml)")
    p.add_argument("--workers", type=int, metavar="N", help="processes (default: one a GPU, or one on the CPU)")
    p.add_argument("--launcher", choices=LAUNCHERS, default="local", help="local processes (default), or ray actors")
    p.add_argument("--address", help="of a Ray cluster (default: one on this machine)")
    p.add_argument("--threads", type=int, metavar="T", help="of a worker on the CPU (default: as in the first run)")
    p.add_argument("--allow-environment", action="store_true", help="accept other threads, versions or devices")
    p.add_argument(
        "--on-interrupt",
        choices=ON_INTERRUPT,
        default="drop",
        help="Ctrl-C and SIGTERM drop the units in hand (default), or give them seven seconds to end",
    )
    plan = p.add_argument_group("the plan (also as keys before the [[job]] tables)")
    plan.add_argument("--slots", type=int, metavar="N", help="chains in one batch, a multiple of 32 (default 256)")
    plan.add_argument("--unit", type=int, metavar="N", help="chains in a unit (default: 1 MiB of samples)")
    plan.add_argument("--device", help="cpu (default), or cuda: a GPU for each worker")
    plan.add_argument("--format", choices=FORMATS, help="of the units' files (default safetensors)")
    add_network_arguments(p)


def run(options: argparse.Namespace) -> int:
    """Sample until all units are done; the exit code: 0, 1 if a chain failed."""
    given = {name: value for name in SETTINGS if (value := getattr(options, name, None)) not in (None, False)}
    if options.target.is_dir():
        plan, folder = _plan_of(options.target, given), options.target
        if options.out is not None:
            raise ValueError(f"out: got {options.out} beside the folder {folder}, expected none: it goes on there")
    else:
        if options.out is None:
            raise ValueError("out: got none, expected a folder for the samples, such as --out samples")
        plan, folder = _planned(options, _plain(given)), options.out
    print(f"ulam: {plan!r} in {folder}")
    begin = time.perf_counter()
    found = bulk.run(
        plan, folder, options.workers, launcher=options.launcher, address=options.address, threads=options.threads,
        allow_environment=options.allow_environment, on_interrupt=options.on_interrupt,
    )  # fmt: skip
    told = found.status()
    print(f"ulam: {told.done_chains} samples in {told.done_units} units, {time.perf_counter() - begin:.1f} s")
    if told.failed:
        print(f"ulam: failed: {told.failed} of {told.chains} chains turned NaN or Inf", file=sys.stderr)
    return FAILED if told.failed else 0


def _planned(options: argparse.Namespace, settings: dict[str, Any]) -> bulk.Plan:
    """The plan of a TOML file; with ``--tune`` its first job's network runs the fastest way, and all others so."""
    plan = bulk.read_plan(options.target, settings)
    if options.tune is None:
        return plan
    found = plan.tuned(options.tune)
    print(f"ulam: network {found.chosen.name}")
    return bulk.read_plan(options.target, {**settings, **settings_of(found)})


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON has them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}


def _plan_of(folder: Path, settings: dict[str, Any]) -> bulk.Plan:
    """The plan of a folder, from its recipe. Raises ValueError for settings beside it, or a plan made in Python."""
    for name, value in settings.items():
        raise ValueError(f"{name}: got {value} beside the folder {folder}, expected none: its plan says that")
    recipe = bulk.open(folder).record.recipe
    if recipe is None:
        raise ValueError(f"folder: got {folder}, whose plan was made in Python, expected ulam.bulk.run(plan, folder)")
    return plan_of(recipe)


def add_verify_arguments(p: argparse.ArgumentParser) -> None:
    """The options of `ulam verify`."""
    p.set_defaults(run=verify)
    p.add_argument("folder", type=Path, metavar="DIR")
    p.add_argument("--recompute", type=int, metavar="K", help="sample K random units again and compare their bytes")


def verify(options: argparse.Namespace) -> int:
    """Hash all units again, and sample some again; the exit code, 1 unless all are whole."""
    found = bulk.open(options.folder).verify()
    print(f"ulam: {found.units} units whole, {len(found.missing)} missing, {len(found.damaged)} damaged")
    _name("damaged, now in the folder damaged", found.damaged)
    _name("of no job of this plan", found.foreign)
    if found.missing:
        print("ulam: ulam run does the missing ones", file=sys.stderr)
    other: list[str] = []
    if options.recompute is not None:
        other = bulk.recompute(_plan_of(options.folder, {}), options.folder, options.recompute)
        print(f"ulam: {options.recompute} units sampled again, {len(other)} with other bytes")
        _name("with other bytes", other)
    return 0 if found.passed and not other else FAILED


def _name(what: str, names: list[str]) -> None:
    for name in names[:NAMED]:
        print(f"ulam: {what}: {name}", file=sys.stderr)
    if len(names) > NAMED:
        print(f"ulam: {what}: {len(names) - NAMED} more", file=sys.stderr)


def add_export_arguments(p: argparse.ArgumentParser) -> None:
    """The options of `ulam export`."""
    p.set_defaults(run=export)
    p.add_argument("folder", type=Path, metavar="DIR")
    p.add_argument("--to", required=True, choices=tuple(EXPORTS), help="the format")
    p.add_argument("out", type=Path, metavar="OUT", help="a new file, or a new folder for png and zarr")


def export(options: argparse.Namespace) -> int:
    """Write all samples in another format; 0."""
    found = bulk.open(options.folder).export(options.to, options.out)
    print(f"ulam: {found.rows} samples, content {found.content}; wrote {options.out}")
    if found.failed:
        print(f"ulam: failed: {found.failed} of {found.rows} are of chains that turned NaN or Inf", file=sys.stderr)
    return 0


def add_merge_arguments(p: argparse.ArgumentParser) -> None:
    """The options of `ulam merge`."""
    p.set_defaults(run=merge)
    p.add_argument("folder", type=Path, metavar="A", help="the folder that gets the units of the others")
    p.add_argument("others", type=Path, nargs="+", metavar="B")
    p.add_argument("--allow-environment", action="store_true", help="accept other threads, versions or devices")


def merge(options: argparse.Namespace) -> int:
    """Copy the units of other folders into the first; 0."""
    folder = bulk.open(options.folder)
    for other in options.others:
        count = folder.merge(bulk.open(other), options.allow_environment)
        print(f"ulam: {count} units of {other} copied into {options.folder}")
    return 0
