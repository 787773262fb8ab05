"""Host time of a tick beside the network and the fused step: `python -m bench.host_tick`.

256 slots, a network that costs next to nothing, programs of mixed lengths. Once with few large jobs, where ticks without
an event dominate, and once with 1,024 jobs of one chain, of which two or three enter and leave at every tick. What is
counted is scheduling, refilling, the network's surroundings, the check of its output and the results' way out.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from bench.timing import machine, write

import ulam

SLOTS, SHAPE, LIMIT = 256, (2,), 60.0
STEPS = (10, 20, 50, 100, 250)


def few_large(engine: ulam.Engine) -> None:
    """One job a program, of as many chains as there are slots."""
    for number, steps in enumerate(STEPS):
        engine.submit(ulam.samplers.DDIM(steps=steps), SLOTS, seed=number)


def many_small(engine: ulam.Engine) -> None:
    """1,024 jobs of one chain, the programs in a random order."""
    order = torch.randint(len(STEPS), (1024,), generator=torch.Generator().manual_seed(0)).tolist()
    for number, which in enumerate(order):
        engine.submit(ulam.samplers.DDPM(steps=STEPS[which]), [number])


def microseconds(submit: Callable[[ulam.Engine], None]) -> dict[str, float]:
    """The mean tick of one run, by part."""
    scale = torch.full(SHAPE, 0.5)
    denoiser = ulam.Denoiser(lambda x, t: x * scale, ulam.schedules.vp_linear(1000))
    engine = ulam.Engine(denoiser, SHAPE, SLOTS)
    submit(engine)
    for _ in engine.stream():
        pass
    report = engine.report
    parts = {"host": report.host_seconds, "network": report.network_seconds, "step": report.step_seconds}
    return {name: seconds / report.ticks * 1e6 for name, seconds in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="keep the figures under bench/results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()['processor']}: microseconds a tick, median (best) of {options.runs} runs")
    figures = {}
    for submit in (few_large, many_small):
        microseconds(submit)
        runs = [microseconds(submit) for _ in range(options.runs)]
        figures[submit.__name__] = {name: sorted(run[name] for run in runs) for name in runs[0]}
        told = ", ".join(
            f"{name} {statistics.median(values):.1f} ({values[0]:.1f})"
            for name, values in figures[submit.__name__].items()
        )
        host = statistics.median(figures[submit.__name__]["host"])
        print(f"  {submit.__name__:<12}{told}: {'within' if host <= LIMIT else 'ABOVE'} {LIMIT:g}", flush=True)
    if options.write:
        print(f"wrote {write('host-tick', {}, microseconds_a_tick=figures)}")


if __name__ == "__main__":
    main()
