"""The fused operations on a GPU against PyTorch, torch.compile, diffusers and a copy: `python -m bench.gpu`.

Prints tables and writes one JSON. Times are GPU work by CUDA events with a cold L2, the candidates in turn; what a
call costs the host is measured apart. GB/s counts the bytes that an operation has to move at least, for every candidate
alike; its share is of the copy bandwidth, one large copy timed among the candidates. Exit code 0 is all measured, 1 a
candidate failed (the JSON says which and how), 2 there is no GPU to measure.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from bench.gpu_timing import (
    ColdTimer,
    Nvml,
    Spread,
    default_out,
    device_facts,
    energy_per_call,
    graph_cost,
    host_cost,
    interleaved,
    table,
    why_no_gpu,
)
from bench.naive import NaiveDDPM

import ulam
import ulam_kernels

Function = Callable[[], object]
DEVICE = "cuda"
FP32, BF16 = torch.float32, torch.bfloat16
DTYPES = ((FP32, FP32), (BF16, BF16), (FP32, BF16))  # of the state, of the network's output
LARGE = (4096, 3, 64, 64)
SMALL = (64, 3, 32, 32)
SIZES = (LARGE, SMALL, (256, 3, 64, 64), (1024, 3, 64, 64), (1_000_000, 1, 1, 2), (4096, 1, 1, 32))
QUICK_SIZES = ((256, 3, 64, 64), (4096, 1, 1, 32))
OPERATIONS = {
    "ddpm": "DDPM row with noise",
    "guided": "DDPM row with guidance",
    "clip": "DDPM row with clip",
    "fill": "noise fill",
    "affine": "affine conversion",
}
T = 1  # the DDPM row that all execute: it has noise, and repeated on its own result it stays finite
COPY_BYTES = 1 << 30


def moved_bytes(operation: str, size: tuple[int, ...], state: torch.dtype, model: torch.dtype) -> int:
    """Bytes that must be read and written: tensors once, and each chain's int64 names and float32 factors."""
    s, m = state.itemsize, model.itemsize
    element = {"ddpm": 2 * s + m, "guided": 2 * s + 2 * m, "clip": 2 * s + m, "fill": s, "affine": 2 * s + m}
    chain = {"ddpm": 4 * 8, "guided": 4 * 8 + 4, "clip": 4 * 8, "fill": 3 * 8, "affine": 2 * 4}
    elements = size[0] * size[1] * size[2] * size[3]
    return elements * element[operation] + size[0] * chain[operation]


@dataclass(frozen=True)
class Case:
    """An operation on chains of one size, ``[B, C, H, W]``."""

    operation: str
    size: tuple[int, ...]
    state: torch.dtype = FP32
    model: torch.dtype = FP32

    @property
    def bytes(self) -> int:
        return moved_bytes(self.operation, self.size, self.state, self.model)

    @property
    def dtypes(self) -> str:
        names = [str(dtype).removeprefix("torch.") for dtype in (self.state, self.model)]
        return names[0] if self.operation == "fill" else " state, ".join(names) + " model"

    def __str__(self) -> str:
        return f"{OPERATIONS[self.operation]}, {'x'.join(map(str, self.size))}, {self.dtypes}"


def cases(sizes: Iterable[tuple[int, ...]], operations: Iterable[str]) -> list[Case]:
    """The operations one after the other, each at all sizes and dtypes."""
    return [
        Case(operation, size, state, model)
        for operation in operations
        for size in sizes
        for state, model in DTYPES
        if operation != "fill" or state == model
    ]


@cache
def program(clip: bool) -> ulam.Program:
    sampler = ulam.samplers.DDPM(clip=(-1.0, 1.0) if clip else None)
    return sampler.program(ulam.schedules.vp_linear(1000))


class Data:
    """The tensors of a case: everything that a candidate is given."""

    def __init__(self, case: Case, device: str) -> None:
        self.case, chains = case, case.size[0]
        generator = torch.Generator(device).manual_seed(0)
        normal = partial(torch.randn, case.size, generator=generator, device=device)
        self.x = normal(dtype=case.state)
        self.m, self.uncond = normal(dtype=case.model), None
        if case.operation == "guided":
            self.uncond = normal(dtype=case.model)
        self.weight = torch.full((chains,), 2.0, device=device)
        self.t = torch.full((chains,), T, device=device)
        self.chain = torch.arange(chains, device=device)
        self.zero = torch.zeros_like(self.chain)
        self.row = torch.full_like(self.chain, 999 - T)
        self.a, self.b = torch.full_like(self.weight, 1.01), torch.full_like(self.weight, -0.1)

    def column(self, values: torch.Tensor) -> torch.Tensor:
        """One number a chain, as eager code broadcasts it over a state."""
        return values.view(-1, 1, 1, 1).to(self.case.state)


def ours(data: Data, backend: str) -> Function:
    """The fused operation, in place where it works in place."""
    case = data.case
    if case.operation == "affine":
        out = torch.empty_like(data.x)
        return lambda: ulam_kernels.affine(data.x, data.m, data.a, data.b, out, backend=backend)
    names = {"seed": data.zero, "chain": data.chain, "draw": data.row}
    if case.operation == "fill":
        filled = torch.empty_like(data.x)
        return lambda: ulam_kernels.fill_normal(filled, backend=backend, **names)
    state = data.x[None].clone()
    table = program(case.operation == "clip").table(device=data.x.device)
    guidance = {} if data.uncond is None else {"uncond": data.uncond, "guidance": data.weight}
    return lambda: ulam_kernels.step(state, table, data.row, model=data.m, backend=backend, **names, **guidance)


def naive(data: Data) -> tuple[Callable[..., object], tuple[torch.Tensor, ...]]:
    """The function that people write, and its arguments."""
    model, operation = NaiveDDPM(device=data.x.device, dtype=data.case.state), data.case.operation
    if operation == "fill":
        return lambda x: torch.randn_like(x), (data.x,)
    if operation == "affine":
        return lambda x, m, a, b: a * x + b * m, (data.x, data.m, data.column(data.a), data.column(data.b))
    if data.uncond is None:
        return lambda x, m, t: model.step(x, m, t, clip=operation == "clip"), (data.x, data.m, data.t)
    weight = data.weight.view(-1, 1, 1, 1).to(data.case.model)
    return lambda x, m, u, w, t: model.step(x, u + w * (m - u), t), (data.x, data.m, data.uncond, weight, data.t)


def eager(data: Data) -> Function:
    function, arguments = naive(data)
    return partial(function, *arguments)


def fewest_operations(data: Data) -> Function:
    model = NaiveDDPM(device=data.x.device, dtype=data.case.state)
    return lambda: model.algorithm_2(data.x, data.m, data.t)


def compiled(data: Data) -> Function:
    torch.compiler.reset()  # else too many shapes of one function are given up on
    function, arguments = naive(data)
    return partial(torch.compile(function, fullgraph=True, dynamic=False), *arguments)


def diffusers_step(data: Data) -> Function:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(clip_sample=data.case.operation == "clip")
    scheduler.set_timesteps(1000)
    x, m, u = data.x, data.m, data.uncond
    if u is None:
        return lambda: scheduler.step(m, T, x).prev_sample
    return lambda: scheduler.step(u + 2.0 * (m - u), T, x).prev_sample


def without_diffusers() -> str | None:
    try:
        import diffusers  # noqa: F401
    except ImportError as error:
        return f"not importable: {error}"
    return None


def builders(data: Data, absent: dict[str, str], compile_it: bool) -> dict[str, Callable[[], Function]]:
    """What makes each candidate: making and first running it may fail, for one without the others."""
    operation = data.case.operation
    found: dict[str, Callable[[], Function]] = {}
    for backend in ("cuda", "triton"):
        if backend not in absent:
            found[f"ulam {backend}"] = partial(ours, data, backend)
    found["naive eager"] = partial(eager, data)
    if operation == "ddpm":
        found["eager, fewest operations"] = partial(fewest_operations, data)
    if compile_it:
        found["torch.compile of naive"] = partial(compiled, data)
    if operation in ("ddpm", "guided", "clip") and "diffusers" not in absent:
        found["diffusers DDPMScheduler.step"] = partial(diffusers_step, data)
    return found


@dataclass
class Run:
    """What has been found so far; kept in ``out`` after every part, so that an interrupted run leaves its figures."""

    out: Path
    result: dict[str, Any]
    failures: list[dict[str, str]] = field(default_factory=list)

    def attempt(self, where: str, name: str, action: Callable[[], Any]) -> Any:
        """What the action returns; None if it raises, which is recorded and printed."""
        try:
            return action()
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            self.failures.append({"where": where, "candidate": name, "error": text[-2000:]})
            print(f"FAILED {where}: {name}: {text.splitlines()[0][:200]}", flush=True)
            return None

    def prepare(self, where: str, found: dict[str, Callable[[], Function]]) -> dict[str, Function]:
        """The candidates that could be made and called twice."""

        def ready(build: Callable[[], Function]) -> Function:
            function = build()
            for _ in range(2):
                function()
            torch.cuda.synchronize()
            return function

        made = {name: self.attempt(where, name, partial(ready, build)) for name, build in found.items()}
        return {name: function for name, function in made.items() if function is not None}

    def keep(self, **parts: Any) -> None:
        self.result.update(parts, failures=self.failures)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        begun = self.out.with_suffix(".tmp")
        begun.write_text(json.dumps(self.result, indent=1) + "\n")
        begun.replace(self.out)  # whole at every moment


def cell(case: Case, times: dict[str, Spread]) -> dict[str, Any]:
    """The figures of a case; the copy is ``large copy`` among the times."""
    copy = 2 * COPY_BYTES / times["large copy"].median / 1e3
    moved = {"large copy": 2 * COPY_BYTES}
    rates = {name: moved.get(name, case.bytes) / t.median / 1e3 for name, t in times.items()}
    candidates = {
        name: {"microseconds": asdict(t), "gb_per_s": rates[name], "share_of_copy": rates[name] / copy}
        for name, t in times.items()
    }
    facts = {"operation": case.operation, "size": list(case.size), "dtypes": case.dtypes, "bytes": case.bytes}
    return {**facts, "copy_gb_per_s": copy, "candidates": candidates}


class Copies:
    """Device-to-device copies: the roof."""

    def __init__(self) -> None:
        self.source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=DEVICE)
        self.target = torch.empty_like(self.source)

    def functions(self, case: Case) -> dict[str, Function]:
        """The large copy, and one that moves as many bytes as the case."""
        part = case.bytes // 32 * 16
        source, target = self.source[:part], self.target[:part]
        return {
            "copy of as many bytes": lambda: target.copy_(source),
            "large copy": lambda: self.target.copy_(self.source),
        }


def measure(run: Run, case: Case, timer: ColdTimer, copies: Copies, absent: dict[str, str], quick: bool) -> Any:
    """Time the candidates of a case and print its table."""
    compile_it = case.operation == "ddpm" or case.size == LARGE
    found = run.prepare(str(case), builders(Data(case, DEVICE), absent, compile_it))
    functions = {**found, **copies.functions(case)}
    figures = cell(case, interleaved(functions, timer, 0.1 if quick else 0.5, 5 if quick else 15))
    print(table(str(case), figures), flush=True)
    return figures


def launches(run: Run, absent: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a small DDPM step costs the host: in eager calls, and a step of a CUDA graph of 100."""
    case = Case("ddpm", SMALL)
    found = run.prepare("launch cost", builders(Data(case, DEVICE), absent, True))
    eager, graphs = {}, {}
    for name, function in found.items():
        spread = run.attempt("launch cost", name, partial(host_cost, function, torch.cuda.synchronize))
        eager[name] = spread and asdict(spread)
        if "diffusers" in name:
            continue  # its step looks its timestep up on the host, so a graph of it would repeat one step
        costs = run.attempt("CUDA graph", name, partial(graph_cost, function))
        graphs[name] = costs and {what: asdict(spread) for what, spread in costs.items()}
    print(f"{case}: microseconds a step\n  {'':<32}{'host, eager':>12}{'host, graph':>14}{'GPU, graph':>12}")
    for name, spread in eager.items():
        graph = graphs.get(name) or {}
        values = [spread, graph.get("host"), graph.get("gpu")]
        print(f"  {name:<32}" + "".join(f"{v['median']:>13.2f}" if v else f"{'-':>13}" for v in values), flush=True)
    return eager, graphs


def energies(run: Run, nvml: Nvml, timer: ColdTimer, absent: dict[str, str], size: tuple[int, ...]) -> dict[str, Any]:
    """Energy of a DDPM step by NVML's counter, in fp32 and bf16."""
    try:
        nvml.millijoules()
    except RuntimeError as error:
        print(f"energy: not measured: {error}")
        return {"unsupported": str(error)}
    found: dict[str, Any] = {}
    for dtype in (FP32, BF16):
        case = Case("ddpm", size, dtype, dtype)
        entries = found[str(case)] = {}
        for name, function in run.prepare("energy", builders(Data(case, DEVICE), absent, True)).items():
            batch = max(1, round(10_000 / max(timer(function), 1.0)))
            action = partial(energy_per_call, function, nvml.millijoules, torch.cuda.synchronize, batch)
            entries[name] = run.attempt("energy", name, action)
        print(f"energy, {case}")
        for name, entry in entries.items():
            if entry:
                print(f"  {name:<32}{entry['millijoules_per_call']:>10.3f} mJ{entry['watts']:>8.0f} W", flush=True)
    return found


def execute(run: Run, seconds: float, quick: bool) -> None:
    """All parts, the plain row first, as far as the seconds reach; what they do not reach is listed as skipped."""
    begin = time.perf_counter()
    nvml = Nvml()
    absent = {name: state for name, state in ulam_kernels.backends().items() if state != "usable"}
    if (reason := without_diffusers()) is not None:
        absent["diffusers"] = reason
    for name in ("cuda", "triton", "diffusers"):
        if name in absent:
            print(f"not measured: {name}: {absent[name]}")
    timer, copies = ColdTimer(), Copies()
    floor = Spread.of([timer(lambda: None) for _ in range(30)])
    run.keep(machine=device_facts(nvml), absent=absent, flushed_bytes=timer.bytes, empty_microseconds=asdict(floor))
    figures: list[dict[str, Any]] = []
    skipped: list[str] = []

    def left() -> bool:
        return time.perf_counter() - begin < seconds

    def over(todo: list[Case]) -> None:
        for case in todo:
            if not left():
                skipped.append(str(case))
                continue
            entry = run.attempt(str(case), "all", partial(measure, run, case, timer, copies, absent, quick))
            if entry is not None:
                figures.append({**entry, "clocks": nvml.clocks()})
            run.keep(cells=figures, skipped=skipped)

    sizes = QUICK_SIZES if quick else SIZES
    over(cases(sizes, ["ddpm"]))
    if left():
        host, graphs = launches(run, absent)
        run.keep(host_microseconds=host, graph_of_100_steps_microseconds=graphs)
    else:
        skipped.append("launch costs")
    if left():
        run.keep(energy=energies(run, nvml, timer, absent, sizes[0]))
    else:
        skipped.append("energy")
    over(cases(sizes, [name for name in OPERATIONS if name != "ddpm"]))
    rates = sorted(entry["copy_gb_per_s"] for entry in figures)
    run.keep(cells=figures, skipped=skipped, copy_gb_per_s=rates[len(rates) // 2] if rates else None)
    run.keep(clocks_at_end=nvml.clocks(), seconds=time.perf_counter() - begin, finished=True)
    if skipped:
        print(f"skipped for want of time: {len(skipped)} figures, listed in the JSON")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="the JSON (default bench/results/gpu-bench-DEVICE-DATE.json)")
    parser.add_argument("--seconds-limit", type=float, default=240.0, help="begin nothing after it (default 240)")
    parser.add_argument("--quick", action="store_true", help="two sizes, short")
    options = parser.parse_args(arguments)
    if (reason := why_no_gpu()) is not None:
        print(f"bench.gpu: nothing measured: {reason}")
        return 2
    run = Run(options.out or default_out("gpu-bench"), {"quick": options.quick, "finished": False})
    execute(run, options.seconds_limit, options.quick)
    print(f"wrote {run.out}" + (f"; {len(run.failures)} candidates FAILED" if run.failures else ""))
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
