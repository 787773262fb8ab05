"""The fused operations on a GPU against PyTorch, torch.compile, diffusers and a copy: `python -m bench.gpu`.

Writes one JSON, of which `bench.gpu_report` makes a table. Times are GPU work by CUDA events with a cold L2, the
candidates in turn; what a call costs the host is measured apart. Beside each figure stand the bytes that the operation
has to move at least, the rate of a large copy timed among the candidates, and, where the instructions of the kernel
are counted (`bench.sass`), those of an element. `--rehearse` runs all of it on the CPU, where no time means anything.
Exit code 0 is all measured, 1 a candidate failed (the JSON says which and how), 2 there is no GPU to measure.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench import sass
from bench.gpu_chains import Task, bound_tasks, chain_tasks
from bench.gpu_rows import BF16, FP32, LARGE, SCHEDULE, SMALL, Case, Data, builders, cases
from bench.gpu_stage import Function, Run, Stage
from bench.gpu_timing import Spread, energy_per_call, host_cost, interleaved

import ulam
import ulam_kernels

COPY_BYTES = 1 << 30


class Copies:
    """Device-to-device copies: the roof."""

    def __init__(self, stage: Stage) -> None:
        self.bytes = 1 << 16 if stage.rehearsal else COPY_BYTES
        self.source = torch.zeros(self.bytes, dtype=torch.uint8, device=stage.device)
        self.target = torch.empty_like(self.source)

    def large(self) -> None:
        self.target.copy_(self.source)

    def of(self, count: int) -> Function:
        """A copy that moves this many bytes."""
        part = min(count // 32 * 16, self.bytes)
        source, target = self.source[:part], self.target[:part]
        return lambda: target.copy_(source)


class Bench:
    """What all figures are measured with."""

    def __init__(self, stage: Stage, run: Run) -> None:
        self.stage, self.run = stage, run
        self.absent, self.nvml = stage.absent(), stage.nvml()
        self.timer, self.copies = stage.cold_timer(), Copies(stage)
        self.counts: dict[str, sass.Count] = {}

    def figure(self, name: str, functions: dict[str, Function], **more: Any) -> None:
        """Time the functions in turn, a large copy among them, and keep what was found."""
        size = more.get("bytes")
        copies = {"large copy": self.copies.large, **({"copy of as many bytes": self.copies.of(size)} if size else {})}
        seconds, least = self.stage.seconds(0.3), self.stage.count(9)
        times = interleaved({**functions, **copies}, self.timer, seconds, least)
        copy = 2 * self.copies.bytes / times.pop("large copy").median / 1e3
        steps = more.pop("steps", {})
        told = {label: each(spread, steps.get(label, 1)) for label, spread in times.items()}
        figure = {"name": name, "unit": "us", "copy_gb_per_s": copy, "clocks": self.nvml.clocks(), **more}
        self.run.keep({**figure, "candidates": told})
        best = ", ".join(f"{label} {entry['median']:.1f}" for label, entry in told.items())
        print(f"{name}: {best} us; copy {copy:.0f} GB/s", flush=True)

    def case(self, case: Case) -> None:
        """One of the fused operations."""
        small = Case(case.operation, self.stage.size(*case.size), case.state, case.model)
        data = Data(small, self.stage.device)
        functions = self.run.prepare(str(case), builders(self.stage, case, data, self.absent))
        counted = asdict(self.counts[case.kernel]) if case.kernel in self.counts else {}
        self.figure(str(case), functions, group=case.operation, bytes=small.bytes, elements=small.elements,
                    **counted)  # fmt: skip

    def task(self, task: Task, group: str) -> None:
        functions = self.run.prepare(task.name, task.builders)
        self.figure(task.name, functions, group=group, bytes=task.bytes, elements=task.elements, steps=task.steps)


def each(spread: Spread, steps: int) -> dict[str, float]:
    """Per step, of a call that takes several."""
    return {key: value if key == "runs" else value / steps for key, value in asdict(spread).items()}


def count_instructions(stage: Stage) -> dict[str, sass.Count]:
    """What the kernels that are counted issue for an element, from the extension as it is built here."""
    spec, tool = importlib.util.find_spec("ulam_kernels._cuda"), sass.find_tool("cuobjdump")
    if spec is None or spec.origin is None or tool is None:
        return {}
    capability = "9.0" if stage.rehearsal else "{}.{}".format(*torch.cuda.get_device_capability())
    return sass.counts_an_element(Path(spec.origin), f"sm_{capability.replace('.', '')}", tool)


def launches(bench: Bench) -> None:
    """What a small DDPM step costs: the host in eager calls, the GPU and the host in a graph of 100."""
    stage, run = bench.stage, bench.run
    data = Data(Case("ddpm", stage.size(*SMALL)), stage.device)
    found = run.prepare("launch cost", builders(stage, Case("ddpm", SMALL), data, bench.absent))
    steps, eager, graphs = stage.count(100), {}, {}
    for name, function in found.items():
        cost = partial(host_cost, function, stage.synchronize, stage.count(30), stage.count(60))
        spread = run.attempt("launch cost", name, cost)
        eager[name] = spread and asdict(spread)
        if "diffusers" in name:
            continue  # its step looks its timestep up on the host, so a graph of it would repeat one step
        replay = run.attempt("CUDA graph", name, partial(stage.captured, function, steps))
        if replay is not None:
            graphs[name] = each(Spread.of([stage.microseconds(replay) for _ in range(stage.count(30))]), steps)
    size = "x".join(map(str, SMALL))
    common = {"group": "launch", "unit": "us"}
    run.keep({**common, "name": f"host time of a DDPM step in eager code, {size}", "candidates": eager})
    run.keep({**common, "name": f"DDPM step in a CUDA graph of {steps}, {size}", "candidates": graphs})


def compiled_tick(bench: Bench) -> None:
    """A network and a fused step as `torch.ops.ulam` in one compiled graph, beside the same uncompiled."""
    stage = bench.stage
    size = stage.size(4096, 1, 1, 32)
    layers = [torch.nn.Linear(size[-1], 128), torch.nn.SiLU(), torch.nn.Linear(128, size[-1])]
    net = torch.nn.Sequential(*layers).to(stage.device)
    data = Data(Case("ddpm", size), stage.device)
    state, table = data.x[None].clone(), ulam.samplers.DDPM().program(SCHEDULE).table(device=stage.device)
    backend = None if stage.rehearsal else bench_backend(bench)

    def tick() -> None:
        ulam_kernels.step(state, table, data.row, model=net(state[0]), backend=backend, **data.names)

    def by_compiled() -> Function:
        torch.compiler.reset()
        call = stage.compiled(tick)

        def guarded() -> None:
            with torch.no_grad():
                call()

        return guarded

    def by_eager() -> Function:
        return torch.no_grad()(tick)

    candidates = {"ulam, torch.compile over torch.ops.ulam": by_compiled, "ulam, eager": by_eager}
    name = "network and fused step, 4096 chains of 32"
    bench.task(Task(name, candidates), "compile")


def bench_backend(bench: Bench) -> str | None:
    return next((name for name in ("cuda", "triton") if name not in bench.absent), None)


def energies(bench: Bench) -> None:
    """Energy of a large DDPM step by NVML's counter, in fp32 and bf16."""
    stage, run = bench.stage, bench.run
    try:
        bench.nvml.millijoules()
    except RuntimeError as error:
        run.keep(energy={"unsupported": str(error)})
        return
    for dtype in (FP32, BF16):
        case = Case("ddpm", LARGE, dtype, dtype)
        data = Data(Case("ddpm", stage.size(*LARGE), dtype, dtype), stage.device)
        found = builders(stage, case, data, bench.absent)
        kept = {name: found[name] for name in found if name.startswith("ulam") or name == "naive eager"}
        told = {}
        for name, function in run.prepare("energy", kept).items():
            batch = max(1, round(stage.seconds(0.01) * 1e6 / max(bench.timer(function), 1.0)))
            action = partial(energy_per_call, function, bench.nvml.millijoules, stage.synchronize, batch,
                             stage.seconds(1.0))  # fmt: skip
            if (entry := run.attempt("energy", name, action)) is not None:
                told[name] = {"median": entry["millijoules_per_call"], **entry}
        run.keep({"group": "energy", "name": f"energy of {case}", "unit": "mJ", "candidates": told})


def execute(stage: Stage, run: Run) -> int:
    """All figures, the plain rows first, as far as the seconds reach."""
    bench = Bench(stage, run)
    for name, reason in bench.absent.items():
        print(f"not measured: {name}: {reason}")
    bench.counts = run.attempt("instructions", "cuobjdump", partial(count_instructions, stage)) or {}
    floor = Spread.of([bench.timer(lambda: None) for _ in range(stage.count(30))])
    counts = {name: asdict(count) for name, count in bench.counts.items()}
    run.keep(machine=stage.facts(bench.nvml), absent=bench.absent, flushed_bytes=bench.timer.bytes,
             empty_microseconds=asdict(floor), counts_an_element=counts)  # fmt: skip
    plain = [(str(case), partial(bench.case, case)) for case in cases()]
    todo = [
        *plain[:16],
        ("launch costs", partial(launches, bench)),
        *((task.name, partial(bench.task, task, "mcmc")) for task in chain_tasks(stage, bench.absent)),
        *plain[16:],
        *((task.name, partial(bench.task, task, "likelihood")) for task in bound_tasks(stage, bench.absent)),
        ("energy", partial(energies, bench)),
        ("compiled tick", partial(compiled_tick, bench)),
    ]
    for name, action in todo:
        if run.left(name):
            run.attempt(name, "all", action)
    return run.finish(clocks_at_end=bench.nvml.clocks())


def begin(name: str, doc: str | None, given: list[str] | None, measure: Callable[[Stage, Run], int]) -> int:
    """Read the options that the benchmarks share, and measure where there is something to measure on."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--out", type=Path, required=True, help="the JSON")
    parser.add_argument("--seconds", type=float, default=120.0, help="begin nothing after them (default 120)")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU in the GPU's place, tiny")
    options = parser.parse_args(given)
    stage = Stage(options.rehearse)
    if (reason := stage.why_not()) is not None:
        print(f"{name}: nothing measured: {reason}")
        return 2
    if stage.rehearsal:
        torch.set_num_threads(1)  # a few elements are no work for more
    run = Run(stage, options.out, options.seconds)
    if options.out.exists():  # what bench.gpu_check says of this part
        run.result = {**json.loads(options.out.read_text()), **run.result}
    return measure(stage, run)


def main(arguments: list[str] | None = None) -> int:
    return begin("bench.gpu", __doc__, arguments, execute)


if __name__ == "__main__":
    sys.exit(main())
