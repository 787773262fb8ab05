"""Whole chains of a small network in one native call, beside what people run instead and the machine's peak.

`python -m bench.chain_kernel` runs an MLP with SiLU and an embedding of the time, 14-256-256-256-14 under 50 DDPM steps
with clipping and noise at 1 to 1,024 chains, and 2-64-64-2 at 10^5 chains and 100 steps: the naive loop in eager
PyTorch, an engine tick by tick, an engine that walks whole chains, `ulam.sample`, `ulam.Policy`, and the walk alone, in
bf16 too.
All are interleaved in one process with the fused multiply-adds that measure the peak; on a busy machine the best of
many short runs says more than the median, and both are printed. `--compiled` adds the naive loop with its network under
torch.compile, `--grid` other widths, chains and steps, `--write` keeps the figures.

What to expect: an evaluation is 2 x (multiplications) operations. From 16 chains on, a block of 2 vectors of chains by
12 columns (AVX2, of half the registers: 6) loads 14 vectors for 24 multiply-adds (8 for 12), and has more sums than a
multiply-add takes cycles at two a cycle: the multiply-adds bind, less the activations (18 operations a vector and a
division, four vectors in step). At one chain every weight is read once for one multiply-add: the caches' bandwidth
binds, 540 KB a step. What depends on the time alone is computed once a row by the kernel, and again in every evaluation
by the naive loop.
"""

from __future__ import annotations

import argparse
import itertools
import time
import warnings
from collections.abc import Callable, Iterator

import torch
from bench.naive import NaiveDDPM
from bench.timing import Timing, machine, summary, write
from bench.walk_cases import PLANE, POLICY, Net

import ulam
from ulam_kernels import _cpu

CASES = [(POLICY, chains, 50) for chains in (1, 8, 64, 1024)] + [(PLANE, 100_000, 100)]
GRID = [
    ((14, width, width, width, 14), chains, steps)
    for width in (64, 128, 256, 512)
    for chains in (1, 16, 256, 10_000)
    for steps in (10, 100)
] + [(PLANE, 1_000_000, 10)]
ROUNDS = 20_000  # of multiply-adds: a fraction of a millisecond
MOST_SLOTS = 4096  # of an engine
LONG = 0.2  # seconds: what takes longer is not repeated before the naive loop's next turn
REPEATS = 5
GOALS = {64: 0.75, 1024: 0.75, 100_000: 0.5}  # shares of the peak


def ways(
    widths: tuple[int, ...], chains: int, steps: int, compiled: bool
) -> Iterator[tuple[str, Callable[[], object]]]:
    """(name, run) of each way to sample these chains by the last `steps` timesteps of DDPM."""
    torch.manual_seed(0)
    net, n = Net(widths).eval(), widths[0]
    naive = NaiveDDPM(dimensions=1)

    def loop(called: Callable[..., torch.Tensor]) -> Callable[[], object]:
        with torch.no_grad():
            naive.sample(called, (chains, n), steps, clip=True)

        def run() -> None:
            with torch.no_grad():
                naive.sample(called, (chains, n), steps, clip=True)

        return run

    yield "naive loop", loop(net)
    if compiled:
        yield "naive loop, compiled", loop(torch.compile(net))
    denoiser = ulam.Denoiser(net, ulam.schedules.vp_linear(1000))
    program = denoiser.program(ulam.samplers.DDPM(timesteps=tuple(range(steps - 1, -1, -1)), clip=(-1, 1)))

    def engine(chain_kernel: str) -> Callable[[], object]:
        made = ulam.Engine(denoiser, (n,), min(chains, MOST_SLOTS), chain_kernel=chain_kernel)

        def run() -> None:
            made.submit(program, chains, 0)
            made.run()

        return run

    yield "engine, tick by tick", engine("off")
    yield "engine", engine("on")
    yield "sample", lambda: ulam.sample(denoiser, program, (n,), chains, 0, chain_kernel="on", progress=False)
    policy = ulam.Policy(denoiser, program, (n,), chains)
    yield "policy", policy
    yield "walk", walk_of(policy)
    for precision in ("bf16", "bf16_dot"):
        yield f"walk, {precision}", walk_of(ulam.Policy(denoiser, program, (n,), chains, precision=precision))


def walk_of(policy: ulam.Policy) -> Callable[[], object]:
    """The walk of a policy alone."""

    def walk() -> None:
        policy._walker.begin(policy._ids, 0)
        policy._walker.run()

    return walk


def operations(widths: tuple[int, ...], chains: int, steps: int) -> int:
    return 2 * sum(a * b for a, b in itertools.pairwise(widths)) * chains * steps


def timed(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def measured(widths: tuple[int, ...], chains: int, steps: int, seconds: float, compiled: bool) -> dict[str, Timing]:
    """All ways and the peak in turn; what is short more often."""
    threads = torch.get_num_threads()
    functions = dict(ways(widths, chains, steps, compiled))
    functions["multiply-adds"] = lambda: _cpu.multiply_adds(ROUNDS, threads)
    for function in functions.values():
        function()
    often = {name: 1 if "naive" in name or timed(run) > LONG else REPEATS for name, run in functions.items()}
    found: dict[str, list[float]] = {name: [] for name in functions}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found["naive loop"]) < 3:
        for name, run in functions.items():
            found[name] += [timed(run) for _ in range(often[name])]
    return {name: summary(times) for name, times in found.items()}


def told(widths: tuple[int, ...], chains: int, steps: int, times: dict[str, Timing]) -> str:
    naive, walk, peak = (times[name] for name in ("naive loop", "walk", "multiply-adds"))
    speed = operations(widths, chains, steps) / walk.best
    most = _cpu.multiply_adds(ROUNDS, torch.get_num_threads()) / peak.best
    goal = GOALS.get(chains)
    verdict = "" if goal is None else f" ({'within' if speed >= goal * most else 'BELOW'} {goal:.0%})"
    lines = [
        f"  {'-'.join(map(str, widths))}, {chains} chains x {steps}: the walk has {speed / 1e9:.0f} of "
        f"{most / 1e9:.0f} GFLOP/s, {speed / most:.0%}{verdict}"
    ]
    for name, took in times.items():
        if name != "multiply-adds":
            lines.append(
                f"    {name:<22} {took.median * 1e3:>10.3f} ms ({took.best * 1e3:.3f})   "
                f"{naive.median / took.median:5.1f} times ({naive.best / took.best:.1f})"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each case")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--compiled", action="store_true", help="torch.compile beside them")
    parser.add_argument("--grid", action="store_true", help="widths 64 to 512, 1 to 10^6 chains, 10 and 100 steps")
    parser.add_argument("--write", action="store_true", help="keep the figures under bench/results")
    options = parser.parse_args()
    figures = {}
    warnings.filterwarnings("ignore", message="timesteps: got a first noise level")
    for threads in options.threads:
        torch.set_num_threads(threads)
        print(f"{machine()['processor']}, {_cpu.instruction_set()}, {threads} threads: median (best)")
        for widths, chains, steps in GRID if options.grid else CASES:
            times = measured(widths, chains, steps, options.seconds, options.compiled)
            figures[f"{widths}, {chains} chains, {steps} steps, {threads} threads"] = times
            print(told(widths, chains, steps, times), flush=True)
    if options.write:
        print(f"wrote {write('chain-kernel-grid' if options.grid else 'chain-kernel', figures)}")


if __name__ == "__main__":
    main()
