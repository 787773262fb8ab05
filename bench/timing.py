"""What benches share beside the interleaved timing of :mod:`ulam.throughput.timing`: tables, the machine, files."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch

from ulam.cli import info
from ulam.throughput.timing import Timing, interleaved, summary

__all__ = ["RESULTS", "Timing", "interleaved", "machine", "summary", "table", "write"]

RESULTS = Path(__file__).parent / "results"


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
