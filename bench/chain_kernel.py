"""Whole chains of a small network in one native call, beside the naive loop and the machine's peak.

`python -m bench.chain_kernel` runs an MLP with SiLU, 14-256-256-256-14 under 50 DDPM steps with clipping and noise at
1 to 1,024 chains, and 2-64-64-2 at 10^5 chains and 100 steps. Time is folded into the biases of the first layer. The
naive loop, the walk and the fused multiply-adds that measure the peak are interleaved in one process; on a busy machine
the best of many short runs says more than the median, and both are printed.

What to expect: an evaluation is 2 x (multiplications) operations. From 16 chains on a block of 2 vectors of chains by 8
columns loads 10 vectors for 16 multiply-adds, so the multiply-adds bind: at the peak of two a cycle, less the
activations (18 operations a vector and a division). At one chain every weight is read once for one multiply-add: the
second cache's bandwidth binds, 540 KB a step.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from bench.naive import NaiveDDPM
from bench.timing import Timing, machine, summary, write

import ulam
from ulam_kernels import Table, _cpu
from ulam_kernels.networks import Linear, Network, Operand, Unary
from ulam_kernels.walks import BoundWalk

POLICY, PLANE = (14, 256, 256, 256, 14), (2, 64, 64, 2)
CASES = [(POLICY, chains, 50) for chains in (1, 8, 64, 1024)] + [(PLANE, 100_000, 100)]
ROUNDS = 20_000  # of multiply-adds: a fraction of a millisecond
GOALS = {64: 0.75, 1024: 0.75, 100_000: 0.5}  # shares of the peak


class Net(torch.nn.Module):
    """eps(x + a t)"""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.linears = torch.nn.ModuleList(torch.nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.time = torch.nn.Parameter(torch.full((widths[0],), 1e-3))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out = self.linears[0](x + self.time * t[:, None])
        for linear in list(self.linears)[1:]:
            out = linear(torch.nn.functional.silu(out))
        return out

    def compiled(self) -> Network:
        """The same on x alone: the first bias comes with the row."""
        instructions: list[Linear | Unary] = []
        widths, constants = [self.linears[0].in_features], [torch.empty(0)]
        for place, linear in enumerate(self.linears):
            start = Operand("constant", sum(map(len, constants))) if place else Operand("row", 0)
            if place:
                constants.append(linear.bias.detach())
            last = len(instructions)
            instructions.append(Linear(last + 1, (last,), (linear.weight.detach(),), (start,)))
            widths.append(linear.out_features)
            if place < len(self.linears) - 1:
                instructions.append(Unary(last + 2, "silu", last + 1))
                widths.append(linear.out_features)
        return Network(widths[0], tuple(widths), tuple(instructions), torch.cat(constants),
                       row_width=self.linears[0].out_features, output=len(instructions))  # fmt: skip

    @torch.no_grad()
    def row_vectors(self, times: torch.Tensor) -> torch.Tensor:
        first = self.linears[0]
        out: torch.Tensor = (self.time * times[:, None]) @ first.weight.T + first.bias
        return out


@dataclass
class Chains:
    """The last `steps` timesteps of DDPM: by the walk, and by the naive loop."""

    widths: tuple[int, ...]
    chains: int
    steps: int

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.net, n = Net(self.widths).eval(), self.widths[0]
        timesteps = tuple(range(self.steps - 1, -1, -1))
        rows = ulam.samplers.DDPM(timesteps=timesteps, clip=(-1, 1)).program(ulam.schedules.vp_linear(1000)).table()
        zero = np.zeros(1)
        idle = Table.pack(zero, zero, zero, zero, zero, zero, zero, np.zeros((1, 1, 4)), zero[None] > 0, zero > 0)
        times = torch.tensor([0.0, *map(float, timesteps)])
        self.cursor, ids = torch.zeros(6, self.chains, dtype=torch.int64), torch.arange(self.chains)
        self.start = torch.tensor([1, 16, 1, 16, 0, 0])[:, None]
        self.states, self.naive = torch.empty(1, self.chains, n), NaiveDDPM(dimensions=1)
        given = {"seed": torch.zeros_like(ids), "chain": ids, "row_vectors": self.net.row_vectors(times)}
        self.bound = BoundWalk(self.states, Table.cat([idle, rows]), self.cursor, self.net.compiled(), **given)

    def walk(self) -> None:
        self.states.normal_()
        self.cursor.copy_(self.start)
        self.bound(self.steps)

    @torch.no_grad()
    def loop(self) -> None:
        self.naive.sample(self.net, (self.chains, self.widths[0]), self.steps, clip=True)

    @property
    def operations(self) -> int:
        return 2 * sum(a * b for a, b in itertools.pairwise(self.widths)) * self.chains * self.steps


def timed(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def measured(case: Chains, seconds: float) -> dict[str, Timing]:
    """The naive loop, the walk (more often, as it is shorter) and the peak in turn."""
    threads = torch.get_num_threads()
    found: dict[str, list[float]] = {"naive loop": [], "walk": [], "multiply-adds": []}
    case.loop(), case.walk()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found["naive loop"]) < 3:
        found["naive loop"].append(timed(case.loop))
        found["walk"] += [timed(case.walk) for _ in range(5)]
        found["multiply-adds"] += [timed(lambda: _cpu.multiply_adds(ROUNDS, threads)) for _ in range(5)]
    return {name: summary(times) for name, times in found.items()}


def told(case: Chains, times: dict[str, Timing]) -> str:
    naive, walk, peak = (times[name] for name in ("naive loop", "walk", "multiply-adds"))
    speed, most = case.operations / walk.best, _cpu.multiply_adds(ROUNDS, torch.get_num_threads()) / peak.best
    goal = GOALS.get(case.chains)
    verdict = "" if goal is None else f" ({'within' if speed >= goal * most else 'BELOW'} {goal:.0%})"
    return (
        f"  {'-'.join(map(str, case.widths))}, {case.chains:>6} chains x {case.steps}: naive {naive.median * 1e3:.3f} "
        f"({naive.best * 1e3:.3f}) ms, walk {walk.median * 1e3:.3f} ({walk.best * 1e3:.3f}); "
        f"{naive.median / walk.median:.1f} times ({naive.best / walk.best:.1f}); "
        f"{speed / 1e9:.0f} of {most / 1e9:.0f} GFLOP/s, {speed / most:.0%}{verdict}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each case")
    parser.add_argument("--write", action="store_true", help="keep the figures under bench/results")
    options = parser.parse_args()
    figures = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        print(f"{machine()['processor']}, {_cpu.instruction_set()}, {threads} threads: median (best)")
        for widths, chains, steps in CASES:
            case = Chains(widths, chains, steps)
            times = figures[f"{widths}, {chains} chains, {threads} threads"] = measured(case, options.seconds)
            print(told(case, times), flush=True)
    if options.write:
        print(f"wrote {write('chain-kernel', figures)}")


if __name__ == "__main__":
    main()
