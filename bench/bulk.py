"""What a bulk run costs beside the bare engine, and what a folder of many units costs.

    python -m bench.bulk [--chains 4096] [--units 50000] [--rounds 3]

Overhead: DDIM-5 of the digits' network, one worker into a new folder, against an engine's loop that ends in one npz;
in one process, by turns, medians. Many units: their files are written without sampling all of them; then a new process
of `ulam status`, and one that samples the last unit, by the clock and by its memory.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import ulam
from ulam.bulk import record
from ulam.bulk.environment import environment
from ulam.bulk.store.store import Store
from ulam.bulk.store.unit import Unit, to_bytes
from ulam.jobs.models import load_model
from ulam.pictures import to_pixels

SLOTS = 256
MANY = """
model = "bench.bulk:tiny"
shape = [4]
slots = 32
unit = 32
[[job]]
steps = 2
chains = {}
"""
MEASURED = """
import sys
from ulam.cli.main import main
main(sys.argv[1:])
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def tiny() -> torch.nn.Module:
    """A network that costs next to nothing."""

    class Tiny(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return 0.5 * x

    return Tiny()


def overhead(chains: int, rounds: int) -> None:
    """Print seconds of both ways, and the ratio of their medians."""
    model = load_model("digits")
    labels = torch.arange(chains) % 10
    cond = {"y": labels}
    sampler = ulam.samplers.DDIM(steps=5)

    def bare(folder: Path) -> None:
        engine = ulam.Engine(model.denoiser, model.shape, SLOTS)
        job = engine.submit(sampler, chains, seed=0, cond=cond)
        np.savez(folder / "samples.npz", arr_0=to_pixels(engine.run()[job]), arr_1=labels.numpy())

    def bulk(folder: Path) -> None:
        job = ulam.bulk.Job(model.denoiser, sampler, model.shape, chains, cond=cond)
        ulam.bulk.run(ulam.bulk.Plan(job, slots=SLOTS), folder / "bulk", workers=1, progress=False)

    seconds: dict[str, list[float]] = {"bare": [], "bulk": []}
    for number in range(rounds + 1):
        for name, way in (("bare", bare), ("bulk", bulk)):
            with tempfile.TemporaryDirectory() as folder:
                begin = time.perf_counter()
                way(Path(folder))
                if number:  # the first warms up
                    seconds[name].append(time.perf_counter() - begin)
    found = {name: statistics.median(times) for name, times in seconds.items()}
    print(
        f"{chains} digits: bare {found['bare']:.2f} s, bulk {found['bulk']:.2f} s, {found['bulk'] / found['bare']:.4f}"
    )


def many(units: int) -> None:
    """Print what `ulam status` and `ulam run` take in a folder of so many finished units but one."""
    with tempfile.TemporaryDirectory() as place:
        jobs, folder = Path(place) / "jobs.toml", Path(place) / "many"
        jobs.write_text(MANY.format(units * 32))
        plan = ulam.bulk.read_plan(jobs, {})
        store = Store(folder)
        here = environment(torch.device("cpu"), "cpu", torch.get_num_threads())
        there = plan.record(here)
        store.put("plan.json", there.as_json())
        for unit in list(there.units())[:-1]:
            key = record.file_key(unit.key, record.digest(here))
            data = to_bytes(
                Unit(torch.zeros(32, 4), torch.arange(unit.begin, unit.end), None, 0, {}), key, "safetensors"
            )
            path = store.path(f"{key}.safetensors")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        for command in (["status", str(folder)], ["run", str(folder)]):
            begin = time.perf_counter()
            told = subprocess.run(
                [sys.executable, "-c", MEASURED, *command], check=True, capture_output=True, text=True
            )
            seconds = time.perf_counter() - begin
            print(f"ulam {command[0]} with {units} units: {seconds:.2f} s, at most {told.stdout.split()[-2]} KiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=4096)
    parser.add_argument("--units", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    many(options.units)
    overhead(options.chains, options.rounds)
