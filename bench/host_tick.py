"""Host time of a tick beside the network and the fused step: `python -m bench.host_tick`.

256 slots, a network that costs next to nothing, programs of mixed lengths. Once with few large jobs, where ticks
without an event dominate, and once with 1,024 jobs of one chain, of which two enter and leave at an average tick. What
is counted is scheduling, refilling, the network's surroundings and the results' way out; the step's time has the check
of the network's output in it, with which it is bound. It is processor time of the one thread that does it, so that a
busy machine changes little.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from bench.timing import machine, write

import ulam
from ulam_kernels.cpu import BoundTick

SLOTS, SHAPE, LIMIT = 256, (2,), 60.0
STEPS = (10, 20, 50, 100, 250)


class Clocked:
    """A function and the processor time spent in it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function, self.seconds = function, 0.0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        begin = time.thread_time()
        try:
            return self._function(*arguments, **named)
        finally:
            self.seconds += time.thread_time() - begin


def few_large(engine: ulam.Engine) -> None:
    """One job a program, of as many chains as there are slots."""
    for number, steps in enumerate(STEPS):
        engine.submit(ulam.samplers.DDIM(steps=steps), SLOTS, seed=number)


def many_small(engine: ulam.Engine) -> None:
    """1,024 jobs of one chain, the programs in a random order."""
    order = torch.randint(len(STEPS), (1024,), generator=torch.Generator().manual_seed(0)).tolist()
    for number, which in enumerate(order):
        engine.submit(ulam.samplers.DDPM(steps=STEPS[which]), [number])


def microseconds(submit: Callable[[ulam.Engine], None], step: Clocked) -> dict[str, float]:
    """The mean tick of one run, by part."""
    scale = torch.full(SHAPE, 0.5)
    network = Clocked(lambda x, t: x * scale)
    engine = ulam.Engine(ulam.Denoiser(network, ulam.schedules.vp_linear(1000)), SHAPE, SLOTS)
    for sampler in (ulam.samplers.DDIM, ulam.samplers.DDPM):  # load the programs
        for steps in STEPS:
            engine.submit(sampler(steps=steps), 1)
    engine.run()
    ticks = engine.report.ticks
    submit(engine)
    network.seconds, step.seconds, begin = 0.0, 0.0, time.thread_time()
    for _ in engine.stream():
        pass
    total = time.thread_time() - begin
    parts = {"host": total - network.seconds - step.seconds, "network": network.seconds, "step": step.seconds}
    return {name: seconds / (engine.report.ticks - ticks) * 1e6 for name, seconds in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="keep the figures under bench/results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    step = Clocked(BoundTick.step)
    BoundTick.step = lambda *given: step(*given)  # type: ignore[method-assign]
    print(f"{machine()['processor']}: microseconds a tick, median (best) of {options.runs} runs")
    figures = {}
    for submit in (few_large, many_small):
        microseconds(submit, step)
        runs = [microseconds(submit, step) for _ in range(options.runs)]
        parts = figures[submit.__name__] = {name: sorted(run[name] for run in runs) for name in runs[0]}
        told = ", ".join(f"{name} {statistics.median(values):.1f} ({values[0]:.1f})" for name, values in parts.items())
        verdict = "within" if statistics.median(parts["host"]) <= LIMIT else "ABOVE"
        print(f"  {submit.__name__:<12}{told}: {verdict} {LIMIT:g}", flush=True)
    if options.write:
        print(f"wrote {write('host-tick', {}, microseconds_a_tick=figures)}")


if __name__ == "__main__":
    main()
