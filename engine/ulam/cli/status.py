"""`ulam status`: how far a bulk run is. It needs no torch, whose import alone takes longer than the rest."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

from ..bulk.progress import bar
from ..bulk.record import read_record
from ..bulk.status import Status, status_of
from ..bulk.store.store import Store
from ..files import full_path

NAMED = 8  # units that are named
WATCHED = 2.0  # seconds between two looks of --watch


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The options of `ulam status`."""
    p.set_defaults(run=status)
    p.add_argument("folder", type=Path, metavar="DIR")
    p.add_argument("--json", action="store_true", help="print JSON")
    p.add_argument("--watch", action="store_true", help="a progress bar of all workers, until all is done")


def status(options: argparse.Namespace) -> int:
    """Print how far a run is; 0."""
    store = Store(full_path(options.folder))
    told = status_of(store, record := read_record(store.folder))
    if options.watch:
        with bar(told.chains) as shown:
            while True:
                shown.update(told.done_chains - shown.n)
                if told.done_units == told.units:
                    break
                time.sleep(WATCHED)
                told = status_of(store, record)
    if options.json:
        print(json.dumps({**asdict(told), "seconds_left": told.seconds_left}, indent=1))
    else:
        print(_text(told))
    return 0


def _text(told: Status) -> str:
    share = told.done_chains / told.chains
    lines = [
        f"[{'#' * int(20 * share):<20}] {share:.1%}",
        f"done     {told.done_units} of {told.units} units, {told.done_chains} of {told.chains} samples",
        f"running  {told.running} units, {told.workers} workers",
        f"failed   {len(told.errors)} units; {told.failed} samples by NaN or Inf",
    ]
    lines += [f"  unit {key[:12]}: {text}" for key, text in list(told.errors.items())[:NAMED]]
    if told.seconds_left is not None:
        end = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() + told.seconds_left))
        lines.append(f"rate     {told.rate:.4g} samples/s, expected end {end}")
    return "\n".join(lines)
