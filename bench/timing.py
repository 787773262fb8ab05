"""Interleaved timing of functions in one process: drifts of the machine hit all of them alike."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from ulam.cli import info

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Timing:
    """Seconds a call: median, quartiles and best of ``runs`` runs."""

    median: float
    lower_quartile: float
    upper_quartile: float
    best: float
    runs: int


def interleaved(functions: dict[str, Callable[[], object]], seconds: float = 4.0, least: int = 5) -> dict[str, Timing]:
    """Time every function in turn, A B C A B C ...; before each timed call one that does not count, so that every
    function finds its own data, and not the others', in the caches."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < least:
        for name, function in functions.items():
            function()
            begin = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - begin)
    return {name: summary(values) for name, values in times.items()}


def summary(values: list[float]) -> Timing:
    """Of at least two runs' seconds."""
    lower, median, upper = statistics.quantiles(values, n=4)
    return Timing(median, lower, upper, min(values), len(values))


def table(title: str, timings: dict[str, Timing], ours: str, unit: float = 1e-6, name: str = "us") -> str:
    """The medians as text, each with its ratio to ``ours``."""
    lines = [title, f"  {'':<34}{'median ' + name:>14}{'quartiles':>22}{'ratio':>9}"]
    for row, t in timings.items():
        quartiles = f"{t.lower_quartile / unit:.1f} - {t.upper_quartile / unit:.1f}"
        ratio = t.median / timings[ours].median
        lines.append(f"  {row:<34}{t.median / unit:>14.1f}{quartiles:>22}{ratio:>9.2f}")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {
        "date": date.today().isoformat(),
        "processor": model,
        "threads": torch.get_num_threads(),
        "instruction_set": info.instruction_set(),
        "versions": info.versions(),
    }


def write(name: str, figures: dict[str, dict[str, Timing]], **more: Any) -> Path:
    """Write figures as JSON under bench/results, named by what was measured and the date."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{date.today().isoformat()}.json"
    seconds = {title: {row: asdict(timing) for row, timing in rows.items()} for title, rows in figures.items()}
    path.write_text(json.dumps({**machine(), **more, "seconds": seconds}, indent=1) + "\n")
    return path
