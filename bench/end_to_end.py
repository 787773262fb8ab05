"""Whole sampling runs: `python -m bench.end_to_end`.

1. Samples per second of the engine and of the naive loop (eager, and with a compiled network) for an MLP, the digits
   U-Net and a U-Net of the size used for CIFAR-10 (35.7 million parameters, random weights), on the device there is. On
   a GPU also with and without whole-tick CUDA graphs.
2. A trace of chains with steps drawn from {10, 20, 50, 100, 250} over fewer slots on the digits network, with and
   without smaller batches for its tail (`ulam.Ladder`), against static batching: batches in the order of arrival, each
   lasting as long as its longest chain.

Prints tables and writes bench/results/end-to-end-DEVICE-DATE.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from bench.naive import NaiveDDPM
from bench.timing import Timing, interleaved, table, write

import ulam
from ulam.models import load_digits
from ulam.models.digits import NULL_CLASS

STEPS = (10, 20, 50, 100, 250)
SCHEDULE = ulam.schedules.vp_linear(1000, 1e-4, 0.02)
Net = Callable[..., torch.Tensor]


class MLP(torch.nn.Module):
    """A two-dimensional toy: 4 layers of 256."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (3, 256, 256, 256, 2)
        layers = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        self.layers = torch.nn.Sequential(*(part for layer in layers for part in (layer, torch.nn.SiLU())))[:-1]

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        flat = torch.cat([x.flatten(1), t.to(x.dtype)[:, None] / 1000], dim=1)
        out: torch.Tensor = self.layers(flat).view_as(x)
        return out


class Unlabelled(torch.nn.Module):
    """The digits network without a class."""

    def __init__(self) -> None:
        super().__init__()
        self.net = load_digits()

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(x, t, torch.full_like(t, NULL_CLASS, dtype=torch.int64))
        return out


class Cifar(torch.nn.Module):
    """The U-Net of Ho et al. 2020 for CIFAR-10, from diffusers."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers.models.unets.unet_2d import UNet2DModel

        down = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D")
        up = ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D")
        self.net: Net = UNet2DModel(
            sample_size=32, block_out_channels=(128, 256, 256, 256), down_block_types=down, up_block_types=up
        )

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(x, t, return_dict=False)[0]
        return out


def networks(device: torch.device) -> dict[str, tuple[Net, tuple[int, ...], int]]:
    """Name: network, shape of the whole batch, steps."""
    gpu = device.type == "cuda"
    torch.manual_seed(0)
    return {
        "MLP": (MLP().to(device).eval(), (1024, 1, 1, 2), 100),
        "digits U-Net": (Unlabelled().to(device).eval(), (256 if gpu else 32, 1, 28, 28), 100 if gpu else 5),
        "CIFAR-size U-Net": (Cifar().to(device).eval(), (128 if gpu else 2, 3, 32, 32), 50 if gpu else 2),
    }


def candidates(net: Net, shape: tuple[int, ...], steps: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """The same DDPM run, in ours and in theirs."""
    denoiser = ulam.Denoiser(net, SCHEDULE)
    sampler = ulam.samplers.DDPM(timesteps=tuple(range(steps - 1, -1, -1)))
    naive, compiled = NaiveDDPM(device=device), torch.compile(net)

    def run(**options: Any) -> Callable[[], object]:
        engine = ulam.Engine(denoiser, shape[1:], shape[0], device, **options)

        def go() -> None:
            engine.submit(sampler, shape[0])
            engine.run()
            _wait(device)

        return go

    def loop(network: Net) -> Callable[[], object]:
        def go() -> None:
            with torch.inference_mode():
                x = torch.randn(shape, device=device)
                for i in reversed(range(steps)):
                    t = torch.full((shape[0],), i, device=device)
                    x = naive.step(x, network(x, t), t)
            _wait(device)

        return go

    found = {"ulam": run(), "naive loop": loop(net), "naive loop, compiled": loop(compiled)}
    found["ulam, compiled"] = run(options=ulam.NetworkOptions(compile=True))
    if device.type == "cuda":
        found["ulam, no CUDA graphs"] = run(graphs=False)
    return found


def trace(chains: int, slots: int, device: torch.device, alone: int, shorten: int = 1) -> dict[str, float]:
    """The mixed trace, continuously and statically batched, and how many of some chains differ from runs alone."""
    denoiser = ulam.Denoiser(load_digits().to(device), SCHEDULE)
    generator = torch.Generator().manual_seed(0)
    steps = [STEPS[i] // shorten for i in torch.randint(len(STEPS), (chains,), generator=generator).tolist()]
    samplers = {n: ulam.samplers.DDPM(steps=n) for n in set(steps)}

    def submit(engine: ulam.Engine, places: range) -> list[ulam.Job]:
        y = torch.tensor([place % 10 for place in places])
        return [
            engine.submit(samplers[steps[place]], [place], cond={"y": y[k : k + 1]}) for k, place in enumerate(places)
        ]

    def new_engine(ladder: ulam.Ladder | None = None) -> ulam.Engine:
        return ulam.Engine(denoiser, (1, 28, 28), slots, device, ladder=ladder)

    def continuously(ladder: ulam.Ladder | None) -> tuple[dict[int, torch.Tensor], dict[str, float]]:
        engine, busy = new_engine(ladder), [0, 0]
        submit(engine, range(1))
        engine.run()
        warm = dataclasses.replace(engine.report)
        submit(engine, range(chains))
        begin, results = time.perf_counter(), {}

        def watch(_: int) -> None:
            if engine.waiting:
                busy[:] = engine.report.ticks - warm.ticks, engine.report.evaluations - warm.evaluations

        for group in engine.finished(watch):
            results[int(group.job.chain_ids[0])] = group.states[0].cpu()
        seconds, report = time.perf_counter() - begin, engine.report
        return results, {
            "seconds": seconds,
            "ticks": report.ticks - warm.ticks,
            "occupancy_until_queue_empty": busy[1] / max(busy[0], 1) / slots,
            "occupancy": sum(steps) / (report.rows - warm.rows),
            "network_seconds": report.network_seconds - warm.network_seconds,
        }

    results, figures = continuously(None)
    with_ladder, figures_with_ladder = continuously(ulam.Ladder(tolerance=1e-6))

    static = new_engine()
    submit(static, range(1))
    static.run()
    before, begin = static.report.ticks, time.perf_counter()
    for first in range(0, chains, slots):
        submit(static, range(first, min(first + slots, chains)))
        static.run()
    _wait(device)
    static_seconds, static_ticks = time.perf_counter() - begin, static.report.ticks - before

    single, different = new_engine(), 0
    for place in range(0, chains, max(chains // alone, 1)):
        (job,) = submit(single, range(place, place + 1))
        different += not torch.equal(single.run()[job][0].cpu(), results[place])
    return {
        "chains": chains,
        "slots": slots,
        **figures,
        **{f"{name}_with_ladder": value for name, value in figures_with_ladder.items()},
        "static_seconds": static_seconds,
        "static_ticks": static_ticks,
        "wall_ratio": figures["seconds"] / static_seconds,
        "wall_ratio_with_ladder": figures_with_ladder["seconds"] / static_seconds,
        "chains_that_differ_from_a_run_alone": different,
        "chains_that_differ_with_ladder": sum(not torch.equal(x, with_ladder[chain]) for chain, x in results.items()),
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing a network")
    parser.add_argument("--chains", type=int, default=512, help="of the trace (0: none)")
    parser.add_argument("--slots", type=int, default=64, help="of the trace")
    parser.add_argument("--shorten", type=int, default=1, help="divide the trace's steps by this")
    parser.add_argument("--alone", type=int, default=8, help="chains of the trace that are run alone too")
    parser.add_argument("--only-trace", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    figures: dict[str, dict[str, Timing]] = {}
    rates: dict[str, dict[str, float]] = {}
    for name, (net, shape, steps) in {} if options.only_trace else networks(device).items():
        timings = interleaved(candidates(net, shape, steps, device), seconds=options.seconds, least=3)
        title = f"{name}, {shape[0]} chains, {steps} steps"
        figures[title] = timings
        rates[title] = {row: shape[0] / timing.median for row, timing in timings.items()}
        print(table(title, timings, ours="ulam", unit=1e-3, name="ms"))
        print("  samples/s: " + ", ".join(f"{row} {rate:.1f}" for row, rate in rates[title].items()), flush=True)
    told = trace(options.chains, options.slots, device, options.alone, options.shorten) if options.chains else {}
    for name, value in told.items():
        print(f"  trace: {name} {value:.4g}")
    name = f"trace-{device.type}" if options.only_trace else f"end-to-end-{device.type}"
    print(f"wrote {write(name, figures, samples_per_second=rates, trace=told)}")


if __name__ == "__main__":
    main()
