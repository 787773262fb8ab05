"""Where GPU figures are measured, and the JSON that they are kept in.

A rehearsal runs all of a benchmark on a machine without a GPU: the CPU stands in its place, tensors have a few
elements, a clock stands for CUDA's events, a call for a graph's replay, tracing for compiling. Its results are right
and its times mean nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench.gpu_timing import ColdTimer, Nvml, captured, device_facts, gpu_microseconds, why_no_gpu

import ulam_kernels

Function = Callable[[], object]


class Clock:
    """Stands for the timer of a GPU in a rehearsal."""

    bytes = 0

    def __call__(self, function: Function) -> float:
        begin = time.perf_counter()
        function()
        return (time.perf_counter() - begin) * 1e6


class Meter:
    """Stands for NVML in a rehearsal: 100 W, whatever happens."""

    def clocks(self) -> dict[str, Any]:
        return {"sm_mhz": 1980}

    def millijoules(self) -> int:
        return int(time.perf_counter() * 1e5)


@dataclass(frozen=True)
class Stage:
    """The GPU, or the CPU in its place."""

    rehearsal: bool = False

    @property
    def device(self) -> str:
        return "cpu" if self.rehearsal else "cuda"

    def why_not(self) -> str | None:
        """Why nothing can be measured here, or None."""
        return None if self.rehearsal else why_no_gpu()

    def absent(self) -> dict[str, str]:
        """What cannot be measured, with the reason."""
        states = {"cuda": "usable", "triton": "usable"} if self.rehearsal else ulam_kernels.backends()
        found = {name: states[name] for name in ("cuda", "triton") if states[name] != "usable"}
        try:
            import diffusers  # noqa: F401
        except ImportError as error:
            found["diffusers"] = f"not importable: {error}"
        return found

    def backend(self, name: str) -> str:
        return "cpu" if self.rehearsal else name

    def size(self, *sizes: int) -> tuple[int, ...]:
        """The sizes of a tensor: at most five each in a rehearsal."""
        return tuple(min(size, 5) for size in sizes) if self.rehearsal else sizes

    def count(self, number: int) -> int:
        """How often something is repeated: at most twice in a rehearsal."""
        return min(number, 2) if self.rehearsal else number

    def seconds(self, seconds: float) -> float:
        """How long something is timed."""
        return min(seconds, 0.01) if self.rehearsal else seconds

    def synchronize(self) -> None:
        if not self.rehearsal:
            torch.cuda.synchronize()

    def cold_timer(self) -> Any:
        return Clock() if self.rehearsal else ColdTimer()

    def microseconds(self, function: Function) -> float:
        """Microseconds of GPU work that a call enqueues; caches are left as they are."""
        return Clock()(function) if self.rehearsal else gpu_microseconds(function)

    def captured(self, function: Function, times: int = 1) -> Function:
        """A CUDA graph of so many calls, as a function that replays it."""
        if not self.rehearsal:
            return captured(function, times)
        return lambda: [function() for _ in range(times)]

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """By ``torch.compile``, whole and for these shapes; in a rehearsal only traced."""
        backend = "eager" if self.rehearsal else "inductor"
        return torch.compile(function, fullgraph=True, dynamic=False, backend=backend)

    def nvml(self) -> Any:
        return Meter() if self.rehearsal else Nvml()

    def facts(self, nvml: Any) -> dict[str, Any]:
        """What the figures are measured on."""
        if self.rehearsal:
            return {"device": "rehearsal", "capability": "9.0", "multiprocessors": 132}
        return device_facts(nvml)


@dataclass
class Run:
    """What has been found so far; kept in ``out`` after every figure, so that an interrupted run leaves its figures."""

    stage: Stage
    out: Path
    seconds: float  # nothing is begun after them
    result: dict[str, Any] = field(default_factory=lambda: {"finished": False, "figures": []})
    failures: list[dict[str, str]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    begin: float = field(default_factory=time.perf_counter)

    def left(self, what: str, takes: float = 0.0) -> bool:
        """Whether there is time for something of at most this many seconds; what is left out is listed."""
        if time.perf_counter() - self.begin + (0.0 if self.stage.rehearsal else takes) < self.seconds:
            return True
        self.skipped.append(what)
        return False

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
            self.stage.synchronize()
            return function

        made = {name: self.attempt(where, name, partial(ready, build)) for name, build in found.items()}
        return {name: function for name, function in made.items() if function is not None}

    def keep(self, figure: dict[str, Any] | None = None, **parts: Any) -> None:
        """Write all there is, with one figure more."""
        if figure is not None:
            self.result["figures"].append(figure)
        taken = time.perf_counter() - self.begin
        self.result.update(parts, failures=self.failures, skipped=self.skipped, measured_seconds=round(taken, 1))
        write_whole(self.out, self.result)

    def finish(self, **parts: Any) -> int:
        """Say how it went; the exit code."""
        self.keep(**parts, finished=True)
        if self.skipped:
            print(f"skipped for want of time: {len(self.skipped)} figures, listed in the JSON")
        print(f"wrote {self.out}" + (f"; {len(self.failures)} candidates FAILED" if self.failures else ""))
        return 1 if self.failures else 0


def write_whole(path: Path, content: Any) -> None:
    """Write JSON so that the file is whole at every moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    begun = path.with_suffix(".tmp")
    begun.write_text(json.dumps(content, indent=1) + "\n")
    begun.replace(path)
