"""The project's own report, one HTML file of all benches: `python -m bench.report`, or `make report`.

    python -m bench.report [--cases digits mlp free] [--budget 120] [--only-assemble] [--out bench/results/report.html]

Measures the built-in cases of `ulam bench`, beside azula, k-diffusion and deepinv too where these are installed
(`bench.peers` says by what), on the CPU and on a GPU where there is one, into
bench/results/throughput-CASE-DEVICE-DATE.json; then writes the newest of these and of every other bench in that folder
into one page, each with its date and machine: steps and noise beside PyTorch and diffusers, chains beside blackjax,
numpyro and torchebm, whatever has been measured (`python -m bench.cpu`, `bench.diffusers_steps`, `bench.mcmc`,
`bench.mcmc_peers`, `make gpu-check`). --only-assemble measures nothing.
"""

from __future__ import annotations

import argparse
import json
import re
from datetime import date
from pathlib import Path
from typing import Any

import torch
from bench.peers import PEERS
from bench.timing import RESULTS

import ulam
from ulam.cli.bench import CPU_SLOTS, machine
from ulam.engine.arguments import DEFAULT_SLOTS
from ulam.files import json_text, whole
from ulam.throughput import Work, measure
from ulam.throughput.cases import CASES
from ulam.throughput.measured import amount, seconds
from ulam.throughput.page import heading, page, paragraph, table
from ulam.throughput.report import PARTS

DATED = re.compile(r"(.+?)-(\d{4}-\d\d-\d\d)(?:-\w+)?")
TIMING = {"median", "lower_quartile", "upper_quartile", "best", "runs"}


def measured(names: list[str], budget: float) -> None:
    """Measure cases on every kind of device that there is."""
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        for name in names:
            model = CASES[name]()
            if isinstance(model.denoiser.net, torch.nn.Module):
                model.denoiser.net.to(device)
            label = None if model.null_class is None else {"y": torch.tensor([model.null_class], device=device)}
            slots = CPU_SLOTS if device == "cpu" else DEFAULT_SLOTS
            work = Work(model.denoiser, model.shape, ulam.samplers.DDIM(50), slots, label, device=device)
            found = measure(work, budget=budget, others={peer.name: peer.run for peer in PEERS})
            print(f"{name}, {device}\n{found}", flush=True)
            path = RESULTS / f"throughput-{name}-{device}-{date.today().isoformat()}.json"
            with whole(path) as (partial,):
                does = {peer.name: peer.does for peer in PEERS}
                partial.write_text(json_text({"model": name, "machine": machine(), "does": does, **found.as_dict()}))


def newest(folder: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """By the name of each bench, the date and figures of its newest file; GPU checks have their own tables."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        name = DATED.fullmatch(path.stem)
        if name is None or name[1].startswith("gpu-check"):
            continue
        data = json.loads(path.read_text())
        if isinstance(data, dict) and (name[1] not in found or found[name[1]][0] <= name[2]):
            found[name[1]] = name[2], data
    return found


def sections(folder: Path) -> list[str]:
    """The page's sections: cases of `ulam bench` first, then the other benches, then GPU checks."""
    files = newest(folder)
    own = {name: found for name, found in files.items() if name.startswith("throughput-")}
    made = [part for name, (day, data) in own.items() for part in case(name, day, data)]
    for name, (day, data) in files.items():
        if name not in own:
            made += bench(name, day, data)
    for path in sorted(folder.glob("gpu-check-*.md")):
        made += gpu_tables(path.read_text())
    return made


def case(name: str, day: str, data: dict[str, Any]) -> list[str]:
    """A case of `ulam bench`: its verdict, ways, what other libraries did in theirs, what was left out, its parts."""
    rows = [
        [way["name"], seconds(way["timing"]["median"]), _quartiles(way["timing"]), amount(way["samples_per_second"]),
         "-" if way["speed"] is None else f"{way['speed']['median']:.2f}x"]
        for way in data["ways"]
        if way["timing"] is not None
    ]  # fmt: skip
    out = [[way["name"], way["told"]] for way in data["ways"] if way["timing"] is None]
    does = [f"{way}: {does}" for way, does in data.get("does", {}).items() if way not in dict(out)]
    where = data["machine"]
    gpu = "" if where["gpu"].startswith("none") else f", {where['gpu']}"
    more = "".join(f"; {where[name]}" for name in ("threads", "versions") if name in where)
    run = f"{data['sampler']}, {data['slots']} slots of {data['shape']}; {day}; {where['processor']}{gpu}{more}"
    parts = [[part["name"], seconds(part["timing"]["median"]), _quartiles(part["timing"])] for part in data["parts"]]
    return [
        heading(f"ulam bench: {name.removeprefix('throughput-')}"),
        paragraph(f"{data['verdict'][0].upper()}{data['verdict'][1:]}."),
        table(("way", "an evaluation", "quartiles", "samples/s", "speed"), rows, best=data["best"]),
        *map(paragraph, does),
        *([table(("left out", "why"), out, words=1)] if out else []),
        table(("part", "median", "quartiles"), [*parts, ["limit of a step", seconds(data["limit"]), ""]]),
        paragraph(PARTS),
        paragraph(run),
    ]


def bench(name: str, day: str, data: dict[str, Any]) -> list[str]:
    """A bench whose figures are timings, or effective samples, by title and row; nothing for others."""
    tables: list[str] = []
    timed = data.get("seconds")
    for title, rows in timed.items() if isinstance(timed, dict) else ():
        if (
            isinstance(rows, dict)
            and rows
            and all(isinstance(one, dict) and one.keys() == TIMING for one in rows.values())
        ):
            ours = next((row for row in rows if row.startswith("ulam")), next(iter(rows)))
            first = rows[ours]["median"]
            cells = [
                [row, seconds(one["median"]), _quartiles(one), f"{one['median'] / first:.2f}"]
                for row, one in rows.items()
            ]
            tables += [
                paragraph(title),
                table(("", "median", "quartiles", f"time over that of {ours}"), cells, best=ours),
            ]
    for title, rows in data.get("peers", {}).items():
        cells = [
            [row, amount(one["ess_per_second"]), seconds(one["seconds"]), amount(one["gradients_per_second"])]
            for row, one in rows.items()
            if "ess_per_second" in one
        ]
        if cells:
            tables += [paragraph(title), table(("", "ESS a second", "a run", "gradients a second"), cells, best="ulam")]
    if not tables:
        return []
    threads = [f"{data['threads']} threads"] if "threads" in data else []
    where = ", ".join([data.get("processor", ""), *threads, data.get("instruction_set", "")]).strip(", ")
    torch_version = data.get("versions", {}).get("torch", "")
    return [heading(f"{name}, {day}"), paragraph(f"{where}; torch {torch_version}"), *tables]


def gpu_tables(text: str) -> list[str]:
    """A GPU check's page: its heading and its tables as they are."""
    made: list[str] = []
    for block in re.split(r"\n\n+", text.strip()):
        lines = block.splitlines()
        if lines[0].startswith("# "):
            made.append(heading(lines[0][2:]))
        elif lines[0].startswith("|"):
            head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
            made.append(table(head, rows))
        else:
            made.append(paragraph(" ".join(lines)))
    return made


def _quartiles(timing: dict[str, Any]) -> str:
    return f"{seconds(timing['lower_quartile'])} to {seconds(timing['upper_quartile'])}"


def main() -> None:
    """Measure, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=tuple(CASES), default=[*CASES])
    parser.add_argument("--budget", type=float, default=120.0, help="seconds a case and device")
    parser.add_argument("--only-assemble", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "report.html")
    options = parser.parse_args()
    if not options.only_assemble:
        ulam.keep_freed_memory()  # for all ways alike, as `ulam bench` does
        measured(options.cases, options.budget)
    foot = "Every figure is the median of runs in turn in one process, where nothing else is said."
    text = page("ulam: what was measured, where and when", sections(RESULTS), foot=foot)
    with whole(options.out) as (partial,):
        partial.write_text(text)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
