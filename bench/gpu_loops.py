"""Whole sampling loops on a GPU, the engine's and naive ones, with graphs and without: `python -m bench.gpu_loops`.

A two-dimensional MLP, the digits U-Net and a U-Net of CIFAR's size, in fp32 and in bf16 channels-last; and small MLPs
whose chains one launch walks (bench.gpu_walks). Times are of a step of the whole batch, network included, by the
clock, from the first launch to a synchronisation after the last; the
candidates in turn. Beside them what a tick and an admission cost the host, what a capture costs, and joules a sample by
NVML. Every candidate draws BATCHES batches, one after another, and waits for the GPU once, behind the last: the engine
has them in its queue. Options and exit codes are those of bench.gpu.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from bench import gpu_walks
from bench.end_to_end import MLP, Unlabelled
from bench.gpu import begin, each
from bench.gpu_stage import Clock, Function, Run, Stage
from bench.gpu_timing import Spread, energy_per_call, host_cost, interleaved
from bench.naive import NaiveDDPM
from bench.unet import UNet

import ulam

SCHEDULE = ulam.schedules.vp_linear(1000, 1e-4, 0.02)
FP32, BF16 = torch.float32, torch.bfloat16
SLOTS = 256  # of the host's costs
BATCHES = 4  # that a candidate draws at a time


@dataclass(frozen=True)
class Setting:
    """A network, the batch that it sees and how many steps a run takes."""

    name: str
    make: Callable[[], torch.nn.Module]
    shape: tuple[int, ...]
    steps: int
    compiling: float  # seconds that torch.compile may take
    dtype: torch.dtype

    def __str__(self) -> str:
        kind = "fp32" if self.dtype == FP32 else "bf16 channels-last"
        return f"{self.name}, {self.shape[0]} chains, {kind}"

    def network(self, stage: Stage) -> torch.nn.Module:
        torch.manual_seed(0)
        net = self.make().to(stage.device, self.dtype).eval()
        return net if self.dtype == FP32 else net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def settings(stage: Stage) -> list[Setting]:
    """Every network in both dtypes; small in a rehearsal, but of the digits model's own size."""
    batch = partial(min, 2) if stage.rehearsal else int
    unet = partial(UNet, 32, (1, 1), 1) if stage.rehearsal else UNet
    side = 8 if stage.rehearsal else 32
    kinds: list[tuple[str, Callable[[], torch.nn.Module], tuple[int, ...], int, float]] = [
        ("MLP", MLP, (batch(4096), 1, 1, 2), 100, 20.0),
        ("digits U-Net", Unlabelled, (batch(256), 1, 28, 28), 50, 45.0),
        ("CIFAR-size U-Net", unet, (batch(64), 3, side, side), 20, 80.0),
    ]
    return [Setting(*kind[:3], stage.count(kind[3]), kind[4], dtype) for kind in kinds for dtype in (FP32, BF16)]


def check_graphs(stage: Stage, engine: ulam.Engine) -> None:
    """Raises RuntimeError for an engine that was to capture its ticks and did not, or that fell back on anything."""
    told = engine.report.as_dict()
    if engine.report.fallbacks:
        raise RuntimeError(f"the engine fell back: {'; '.join(engine.report.fallbacks)}")
    if not stage.rehearsal and not told.get("captures", 0):
        raise RuntimeError(f"captures: got {told.get('captures')}, expected at least 1 with graphs=True")


class Loops:
    """The candidates of a setting: functions that draw ``batches`` batches of samples."""

    def __init__(self, stage: Stage, setting: Setting) -> None:
        self.stage, self.setting, self.batches = stage, setting, stage.count(BATCHES)
        self.net = setting.network(stage)
        self.naive = NaiveDDPM(device=stage.device)
        self.captures: dict[str, Any] = {}

    def engine(self, **options: Any) -> Function:
        """The engine; runs once or twice, so that nothing is captured or compiled later."""
        shape, steps = self.setting.shape, self.setting.steps
        network = ulam.NetworkOptions(channels_last=self.setting.dtype != FP32, compile=options.pop("compile", False))
        engine = ulam.Engine(
            ulam.Denoiser(self.net, SCHEDULE), shape[1:], shape[0], self.stage.device, options=network, **options
        )
        sampler = ulam.samplers.DDPM(steps=steps)

        def draw() -> None:
            engine.submit(sampler, shape[0] * self.batches)
            engine.run()
            self.stage.synchronize()

        draw()
        if options.get("graphs", True):
            check_graphs(self.stage, engine)
            told = engine.report.as_dict()
            self.captures = {key: told[key] for key in ("captures", "capture_seconds") if key in told}
        return draw

    def call(self, net: Callable[..., torch.Tensor], x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if self.setting.dtype == FP32:
            return net(x, t)
        return net(x.to(self.setting.dtype, memory_format=torch.channels_last), t).float()

    def eager(self, compile_it: bool = False) -> Function:
        """The loop that people write, with a network that may be compiled."""
        shape, device = self.setting.shape, self.stage.device
        net: Any = self.stage.compiled(self.net) if compile_it else self.net

        def draw() -> None:
            with torch.inference_mode():
                for _ in range(self.batches):
                    x = torch.randn(shape, device=device)
                    for i in reversed(range(self.setting.steps)):
                        t = torch.full((shape[0],), i, device=device)
                        x = self.naive.step(x, self.call(net, x, t), t)
            self.stage.synchronize()

        return draw

    def graph(self) -> Function:
        """The same step, network included, in a CUDA graph that is replayed."""
        shape, device, steps = self.setting.shape, self.stage.device, self.setting.steps
        x, t = torch.randn(shape, device=device), torch.full((shape[0],), 999, device=device)

        @torch.no_grad()
        def step() -> None:
            x.copy_(self.naive.step(x, self.call(self.net, x, t), t))
            t.sub_(1)

        replay = self.stage.captured(step)

        def draw() -> None:
            for _ in range(self.batches):
                x.normal_()
                t.fill_(steps - 1)
                for _ in range(steps):
                    replay()
            self.stage.synchronize()

        return draw


def loops(run: Run, setting: Setting, nvml: Any) -> None:
    """All candidates of a setting that need no compiling, and joules a sample of two of them."""
    made = Loops(run.stage, setting)
    functions = run.prepare(str(setting), {
        "ulam": made.engine,
        "ulam, no CUDA graphs": partial(made.engine, graphs=False),
        "ulam, outputs not checked": partial(made.engine, check_finite=False),
        "naive eager": made.eager,
        "naive, CUDA graph": made.graph,
    })  # fmt: skip
    keep(run, str(setting), "loop", functions, setting, **made.captures)
    told: dict[str, Any] = {}
    for name in ("ulam", "naive eager"):
        if name in functions and run.left(f"energy of {name}, {setting}"):
            energy = partial(energy_per_call, functions[name], nvml.millijoules, run.stage.synchronize, 1,
                             run.stage.seconds(0.7))  # fmt: skip
            if (entry := run.attempt("energy", name, energy)) is not None:
                told[name] = {"median": entry["millijoules_per_call"] / (setting.shape[0] * made.batches), **entry}
    run.keep({"group": "energy", "name": f"energy of a sample, {setting}", "unit": "mJ", "candidates": told})


def compiled_loops(run: Run, setting: Setting) -> None:
    """The candidates with a compiled network; minutes of compiling for the largest."""
    torch.compiler.reset()
    made = Loops(run.stage, setting)
    functions = run.prepare(f"{setting}, compiled", {
        "naive, torch.compile": partial(made.eager, True),
        "ulam, torch.compile": partial(made.engine, compile=not run.stage.rehearsal),
    })  # fmt: skip
    keep(run, f"{setting}, network compiled", "loop", functions, setting)


def walks(run: Run) -> None:
    """Whole chains of small networks in one launch, and naive loops."""
    torch.compiler.reset()
    for widths, chains in gpu_walks.CASES:
        count = min(chains, 2) if run.stage.rehearsal else chains
        name = f"{'-'.join(map(str, widths))}, {count} chains"
        setting = Setting(name, torch.nn.Module, (count, widths[0]), run.stage.count(gpu_walks.STEPS), 0.0, FP32)
        found = gpu_walks.candidates(run.stage, widths, count, run.stage.count(BATCHES))
        keep(run, f"{name}, fp32", "loop", run.prepare(name, found), setting)


def keep(run: Run, name: str, group: str, functions: dict[str, Function], setting: Setting, **more: Any) -> None:
    """Time the functions in turn and keep milliseconds a step."""
    if not functions:
        return
    times = interleaved(functions, Clock(), run.stage.seconds(0.8), run.stage.count(5))
    batches = run.stage.count(BATCHES)
    told = {label: each(spread, 1000 * setting.steps * batches) for label, spread in times.items()}
    run.keep({"group": group, "name": name, "unit": "ms", "candidates": told, "chains": setting.shape[0],
              "batches": batches, **more})  # fmt: skip
    print(f"{name}: " + ", ".join(f"{label} {entry['median']:.3f}" for label, entry in told.items()) + " ms a step",
          flush=True)  # fmt: skip


def free(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A network that costs next to nothing."""
    return x * 0.5


def host_costs(run: Run) -> None:
    """Microseconds of the host: a steady tick of 256 slots, one chain's admission, a submission."""
    stage = run.stage
    ticks: dict[str, Any] = {}
    admissions: dict[str, Any] = {}
    submissions: dict[str, Any] = {}
    kinds: dict[str, dict[str, Any]] = {"ulam": {}, "ulam, no CUDA graphs": {"graphs": False},
                                        "ulam, outputs not checked": {"check_finite": False}}  # fmt: skip
    for label, options in kinds.items():
        found = [host_cost_of(stage, options) for _ in range(stage.count(5))]
        for told, values in zip((ticks, admissions, submissions), zip(*found, strict=True), strict=True):
            told[label] = vars(Spread.of(list(values)))
    device = stage.device
    x, t, naive = (
        torch.randn(SLOTS, 1, 1, 2, device=device),
        torch.full((SLOTS,), 9, device=device),
        NaiveDDPM(1000, device),
    )
    cost = host_cost(lambda: naive.step(x, free(x, t), t), stage.synchronize, stage.count(20), stage.count(60))
    ticks["naive eager"] = vars(cost)
    for name, told in (("a tick", ticks), ("a chain's admission", admissions), ("a submission", submissions)):
        run.keep({"group": "host", "name": f"host time of {name}, {SLOTS} slots", "unit": "us", "candidates": told})


def host_cost_of(stage: Stage, options: dict[str, Any]) -> tuple[float, float, float]:
    """Microseconds of a tick, an admission and a submission; the network costs next to nothing."""
    steps, jobs = stage.count(200), stage.count(512)
    engine = ulam.Engine(ulam.Denoiser(free, SCHEDULE), (2,), SLOTS, stage.device, **options)
    lengths = [ulam.samplers.DDPM(steps=n) for n in (10, 20, 50)]
    steady = ulam.samplers.DDPM(steps=max(steps, 2))
    for sampler in (steady, *lengths, steady):  # all programs are loaded, all kinds of tick captured
        engine.submit(sampler, SLOTS)
        engine.run()
    report = engine.report
    seconds, before = report.seconds, report.ticks
    engine.submit(steady, SLOTS)
    engine.run()
    tick = (report.seconds - seconds) / (report.ticks - before)
    begin = time.perf_counter()
    for number in range(jobs):
        engine.submit(lengths[number % 3], [number])
    submission = (time.perf_counter() - begin) / jobs
    seconds, before = report.seconds, report.ticks
    engine.run()
    admission = (report.seconds - seconds - tick * (report.ticks - before)) / jobs
    return tick * 1e6, admission * 1e6, submission * 1e6


def execute(stage: Stage, run: Run) -> int:
    nvml = stage.nvml()
    run.keep(machine=stage.facts(nvml))
    todo: list[tuple[str, Callable[[], None]]] = []
    for setting in settings(stage):
        todo.append((str(setting), partial(loops, run, setting, nvml)))
    todo.insert(2, ("host costs", partial(host_costs, run)))
    todo.append(("walks", partial(walks, run)))
    for name, action in todo:
        if run.left(name):
            run.attempt(name, "all", action)
    for setting in settings(stage):
        if run.left(name := f"{setting}, network compiled", setting.compiling):
            run.attempt(name, "all", partial(compiled_loops, run, setting))
    return run.finish(clocks_at_end=nvml.clocks())


def main(arguments: list[str] | None = None) -> int:
    return begin("bench.gpu_loops", __doc__, arguments, execute)


if __name__ == "__main__":
    sys.exit(main())
