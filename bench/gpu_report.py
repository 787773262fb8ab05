"""The table of what a GPU check found, from its JSON files: `python -m bench.gpu_report FOLDER`.

For each figure: measured, the limit that the machine sets, the share of it that is reached, and the same for naive
PyTorch. The limit is the longer of two: the bytes that must move at the rate of a large copy, and, where the kernel's
instructions are counted, the issue slots that they take at the clock that was read beside the figure (`bench.sass`).
The newest file of each part counts. Writes gpu-check-DEVICE.md beside them, one for each device.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu_timing import slug
from bench.sass import SLOTS_A_CLOCK

PREFIX = "gpu-check-"
HEAD = ["| figure | | measured | limit | of the limit | naive PyTorch | of the limit | ratio |", "|---" * 8 + "|"]
Entry = dict[str, Any]


def parts(folder: Path) -> dict[str, dict[str, Entry]]:
    """``{device: {part: newest result}}`` of the files in a folder; a file that is not whole is left out and named."""
    found: dict[str, dict[str, Entry]] = {}
    for path in sorted(folder.glob(f"{PREFIX}*.json")):
        try:
            result = json.loads(path.read_text())
            device, part, date = result["machine"]["device"], result["part"], result["date"]
        except (ValueError, KeyError, TypeError) as error:
            print(f"{path}: not read: {type(error).__name__}: {error}")
            continue
        before = found.setdefault(device, {}).get(part)
        if before is None or before["date"] <= date:
            found[device][part] = result
    return found


@dataclass(frozen=True)
class Limits:
    """Microseconds below which the machine allows nothing, None where that is not known."""

    memory: float | None
    issue: float | None

    @classmethod
    def of(cls, figure: Entry, machine: Entry) -> Limits:
        rate, size, counted = (figure.get(name) for name in ("copy_gb_per_s", "bytes", "slots"))
        clock = figure.get("clocks", {}).get("sm_mhz")
        memory = size / rate / 1e3 if size and rate else None
        issue = None
        if counted and clock and machine.get("multiprocessors"):
            slots = machine["multiprocessors"] * SLOTS_A_CLOCK * clock  # a microsecond
            issue = counted * figure["elements"] / slots
        return cls(memory, issue)

    def text(self) -> str:
        known = {"memory": self.memory, "issue": self.issue}
        return " / ".join(f"{name} {number(value)}" for name, value in known.items() if value is not None) or "-"

    def share(self, median: float | None) -> str:
        bounds = [bound for bound in (self.memory, self.issue) if bound is not None]
        return f"{max(bounds) / median:.0%}" if bounds and median else "-"


def number(value: float | None) -> str:
    """Three digits."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def rows(figure: Entry, machine: Entry) -> Iterable[str]:
    """A line for each candidate of ours; what has none of ours stands alone."""
    candidates = {name: entry for name, entry in figure["candidates"].items() if entry}
    limits, naive = Limits.of(figure, machine), candidates.get("naive eager", {}).get("median")
    own = [name for name in candidates if name.startswith("ulam")]
    others = [name for name in candidates if name not in own and name not in ("naive eager", "copy of as many bytes")]
    for name in own or ["naive eager"]:
        if name not in candidates:
            continue
        measured = candidates[name]["median"]
        ratio = f"{naive / measured:.2f}" if naive and own else "-"
        beside = [number(naive), limits.share(naive)] if own else ["-", "-"]
        cells = [figure["name"], name, f"{number(measured)} {figure['unit']}", limits.text(), limits.share(measured)]
        yield "| " + " | ".join([*cells, *beside, ratio]) + " |"
    for name in others:
        measured = candidates[name]["median"]
        cells = [figure["name"], name, f"{number(measured)} {figure['unit']}", "", limits.share(measured)]
        yield "| " + " | ".join([*cells, "", "", ""]) + " |"


def normals(figures: list[Entry], machine: Entry) -> Iterable[str]:
    """State normals a second, of the fills and of the rows that make one an element, beside what the limits allow."""
    for figure in figures:
        if figure.get("group") not in ("fill", "ddpm"):
            continue
        limits = Limits.of(figure, machine)
        for name, entry in figure["candidates"].items():
            if name.startswith("ulam") and entry:
                of = figure["elements"] / 1e6  # 10^12 a second, of microseconds
                allowed = {"memory": limits.memory, "issue slots": limits.issue}
                roofs = ", ".join(f"{what} allow{'s' * (what == 'memory')} {number(of / bound)}"
                                  for what, bound in allowed.items() if bound)  # fmt: skip
                yield f"| {figure['name']} | {name} | {number(of / entry['median'])} | {roofs} |"


def verdict(part: str, result: Entry) -> str:
    """One line on how a part went."""
    numbers = {key: result.get(key) for key in ("passed", "failed", "skipped", "normals", "errors")}
    counts = [f"{value} {key}" for key, value in numbers.items() if isinstance(value, int)]
    lists = {"figures": "figures", "failures": "candidates failed", "skipped": "figures not begun"}
    counts += [f"{len(result[key])} {what}" for key, what in lists.items() if isinstance(result.get(key), list)]
    counts += [str(result["not_run"])] if "not_run" in result else []
    reason = result.get("error", "")
    state = "ok" if result.get("ok") else "FAILED"
    return f"| {part} | {state} | {result.get('seconds', '-')} s | {'; '.join([*counts, *filter(None, [reason])])} |"


def page(found: dict[str, Entry]) -> str:
    """The whole text for one device."""
    newest = max(found.values(), key=lambda result: result["date"])
    machine = newest["machine"]
    facts = [f"{key} {machine[key]}" for key in ("capability", "multiprocessors", "driver", "cuda") if key in machine]
    versions = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items())
    lines = [f"# {machine['device']}, {newest['date']}", "", ", ".join([*facts, versions]).rstrip(", "), ""]
    lines += ["| part | | | |", "|---|---|---|---|", *(verdict(name, result) for name, result in found.items()), ""]
    figures = [figure for result in found.values() for figure in result.get("figures", [])]
    if figures:
        table = [line for figure in figures for line in rows(figure, machine)]
        rates = ["| state normals, 10^12 a second | | measured | limits |", "|---|---|---|---|"]
        lines += [*HEAD, *table, "", *rates, *normals(figures, machine), ""]
    failures = [failure for result in found.values() for failure in result.get("failures", [])]
    lines += [f"- FAILED {f['where']}: {f['candidate']}: {f['error'].splitlines()[0][:200]}" for f in failures]
    failing = [f"- FAILED {name}" for result in found.values() for name in result.get("failing", [])]
    return "\n".join([*lines, *failing]) + "\n"


def write(folder: Path) -> list[Path]:
    """Write the page of each device whose parts are in the folder."""
    written = []
    for device, found in parts(folder).items():
        path = folder / f"{PREFIX}{slug(device)}.md"
        path.write_text(page(found))
        written.append(path)
    return written


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the JSON files of the parts are")
    pages = write(parser.parse_args(arguments).folder)
    for path in pages:
        print(path.read_text())
        print(f"wrote {path}")
    return 0 if pages else 1


if __name__ == "__main__":
    sys.exit(main())
