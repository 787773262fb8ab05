"""A tick of a small policy network beside the network alone and the naive loop: `python -m bench.policy_tick`.

An MLP (14-256-256-256-14) under 50 DDPM steps with clipping, without which the states of a network that was never
trained grow until denormal numbers slow it down. 1, 8 and 64 chains, one engine used again for every job. A steady
tick is one between a job's first and its last; a job is submitted, run and delivered, its time divided by its steps.
Both are processor time of the one thread that does it, so that a busy machine changes little; all is interleaved.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable

import torch
from bench.naive import NaiveDDPM
from bench.timing import Timing, machine, summary, write

import ulam

CHAINS, STEPS, ELEMENTS = (1, 8, 64), 50, 14
LIMITS = {1: 12.0, 8: 15.0, 64: 15.0}  # of a steady tick beyond the network, in microseconds
Clock = Callable[[], int]


class Policy(torch.nn.Module):
    """Noise of an action from the action and the time; what it observes is left out."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (ELEMENTS, 256, 256, 256, ELEMENTS)
        layers = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        self.layers = torch.nn.Sequential(*(part for layer in layers for part in (layer, torch.nn.SiLU())))[:-1]
        self.time = torch.nn.Parameter(torch.full((ELEMENTS,), 1e-3))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(x + self.time * t[:, None])
        return out


class Ways:
    """The same work by the engine, the network alone and the naive loop; each returns nanoseconds a step, by name."""

    def __init__(self, net: Policy, chains: int, clock: Clock) -> None:
        self.net, self.chains, self.clock, self.seed = net, chains, clock, 0
        self.engine = ulam.Engine(ulam.Denoiser(net, ulam.schedules.vp_linear(1000)), (ELEMENTS,), chains)
        self.sampler, self.naive_ddpm = ulam.samplers.DDPM(steps=STEPS, clip=(-1, 1)), NaiveDDPM(dimensions=1)
        self.x, self.t = torch.randn(chains, ELEMENTS), torch.full((chains,), 500.0)

    def job(self) -> dict[str, float]:
        ticks, marks = itertools.count(1), []

        def mark(_: int) -> None:
            if next(ticks) in (1, STEPS):
                marks.append(self.clock())

        begin = self.clock()
        self.seed += 1
        self.engine.submit(self.sampler, self.chains, self.seed)
        for _ in self.engine.finished(mark):
            pass
        whole = self.clock() - begin
        return {"steady tick": (marks[1] - marks[0]) / (STEPS - 1), "job / steps": whole / STEPS}

    def network(self) -> dict[str, float]:
        begin = self.clock()
        with torch.inference_mode():
            for _ in range(STEPS):
                self.net(self.x, self.t)
        return {"network alone": (self.clock() - begin) / STEPS}

    def naive(self) -> dict[str, float]:
        begin = self.clock()
        with torch.no_grad():
            self.naive_ddpm.sample(self.net, (self.chains, ELEMENTS), STEPS, clip=True)
        return {"naive loop": (self.clock() - begin) / STEPS}


def measured(chains: int, rounds: int, clock: Clock) -> dict[str, Timing]:
    """Seconds a step, by name, of so many interleaved rounds; the first few do not count."""
    ways = Ways(Policy().eval(), chains, clock)
    found: dict[str, list[float]] = {}
    for number in range(rounds + 5):
        for way in (ways.job, ways.network, ways.naive):
            for name, nanoseconds in way().items():
                found.setdefault(name, [])
                if number >= 5:
                    found[name].append(nanoseconds * 1e-9)
    return {name: summary(values) for name, values in found.items()}


def told(chains: int, times: dict[str, Timing]) -> str:
    tick, job, alone, naive = (times[name] for name in ("steady tick", "job / steps", "network alone", "naive loop"))
    beyond = (tick.median - alone.median) * 1e6
    parts = (f"{name} {t.median * 1e6:.1f} ({t.best * 1e6:.1f})" for name, t in times.items())
    verdict = "within" if beyond <= LIMITS[chains] else "ABOVE"
    return (
        f"  {chains:>2} chains: {', '.join(parts)}\n"
        f"     a steady tick is the network + {beyond:.1f} us ({(tick.best - alone.best) * 1e6:.1f}), {verdict} "
        f"{LIMITS[chains]:g}; a job + {(job.median - alone.median) * 1e6:.1f} us a step; "
        f"naive loop / job {naive.median / job.median:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--wall", action="store_true", help="time that passes, not processor time: on an idle machine")
    parser.add_argument("--write", action="store_true", help="keep the figures under bench/results")
    options = parser.parse_args()
    clock = time.perf_counter_ns if options.wall else time.thread_time_ns
    figures = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        print(f"{machine()['processor']}, {threads} threads: microseconds, median (best) of {options.rounds} rounds")
        for chains in CHAINS:
            times = figures[f"{chains} chains, {threads} threads"] = measured(chains, options.rounds, clock)
            print(told(chains, times), flush=True)
    if options.write:
        print(f"wrote {write('policy-tick', figures)}")


if __name__ == "__main__":
    main()
