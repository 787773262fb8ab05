"""What `ulam.tune` finds for some networks, and what it is worth beside the naive eager loop.

    python -m bench.tuned [--device cuda] [--networks digits MLP U-Net diffusers] [--accuracy 1e-4 1e-2] [--threads 2]

For each network and accuracy: the table of candidates; then the naive loop of DDIM(50) in eager code and the engine as
tuned, by turns in one process, medians, and the root mean square of their samples' difference as a fraction of the
range. --by-hand: and whole runs of every candidate that is accurate enough, by turns, to find the best without `tune`.
--read: a classifier of real digits reads 500 that were drawn as tuned for the coarsest accuracy.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from bench.end_to_end import MLP
from bench.timing import interleaved
from bench.unet import UNet

import ulam
from ulam.models import load_digits
from ulam.models.digits import BETA_END, BETA_START, CLASSES, NULL_CLASS, TRAIN_STEPS

STEPS = 50
VERDICTS = ("chosen", "not the fastest", "no lead over eager", "slower than eager")  # of those accurate enough
SCHEDULE = ulam.schedules.vp_linear(TRAIN_STEPS, BETA_START, BETA_END)


@dataclass(frozen=True)
class Case:
    """A network and a batch of it; ``guidance`` or None."""

    net: torch.nn.Module
    shape: tuple[int, ...]
    slots: int
    guidance: float | None = None

    def job(self, device: torch.device, chains: int) -> dict[str, Any]:
        """Labels in turn, and the unconditional branch."""
        if self.guidance is None:
            return {}
        y = torch.arange(chains, device=device) % CLASSES
        return {"cond": {"y": y}, "uncond": {"y": torch.full_like(y, NULL_CLASS)}, "guidance": self.guidance}


def cases(device: torch.device) -> dict[str, Case]:
    """By name."""
    gpu = device.type == "cuda"
    torch.manual_seed(0)
    return {
        "digits": Case(load_digits().to(device), (1, 28, 28), 256 if gpu else 64, 2.0),
        "MLP": Case(MLP().to(device).eval(), (1, 1, 2), 4096 if gpu else 64),
        "U-Net": Case(UNet().to(device).eval(), (3, 32, 32), 64 if gpu else 4),
    }


def diffusers_case(device: torch.device) -> Case:
    """The U-Net of google/ddpm-cifar10-32 in diffusers, random weights."""
    import diffusers

    class Sample(diffusers.UNet2DModel):  # type: ignore[misc,name-defined]
        """Gives the tensor itself, for the naive loop."""

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return super().forward(x, t).sample  # type: ignore[no-any-return]

    torch.manual_seed(0)
    net = Sample(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        downsample_padding=0,
    )
    return Case(net.to(device).eval(), (3, 32, 32), 64 if device.type == "cuda" else 4)


def naive(case: Case, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """DDIM as people write it [Song 2021, eq. 12], from these states."""
    betas = torch.linspace(BETA_START, BETA_END, TRAIN_STEPS, dtype=torch.float64)
    abar = (1 - betas).cumprod(0).float().to(x.device)
    times = list(range(0, TRAIN_STEPS, TRAIN_STEPS // STEPS))[::-1]
    job = case.job(x.device, len(x))

    def eps(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if case.guidance is None:
            return case.net(x, t)
        cond, uncond = case.net(x, t, job["cond"]["y"]), case.net(x, t, job["uncond"]["y"])
        return uncond + case.guidance * (cond - uncond)

    def loop() -> torch.Tensor:
        with torch.inference_mode():
            state = x
            for i, at in enumerate(times):
                a = abar[at]
                b = abar[times[i + 1]] if i + 1 < len(times) else torch.ones((), device=x.device)
                e = eps(state, torch.full((len(x),), at, device=x.device))
                x0 = (state - (1 - a).sqrt() * e) / a.sqrt()
                state = b.sqrt() * x0 + (1 - b).sqrt() * e
            _wait(x.device)
            return state

    return loop


def measure(
    name: str, case: Case, accuracy: str | float, device: torch.device, budget: float, seconds: float, by_hand: bool
) -> ulam.Tuned:
    """Tune, print the table, and time the whole run beside the naive loop and, by hand, beside each candidate's."""
    denoiser, sampler = ulam.Denoiser(case.net, SCHEDULE), ulam.samplers.DDIM(steps=STEPS)
    job = case.job(device, case.slots)
    begin = time.perf_counter()
    tuned = ulam.tune(
        denoiser, case.shape, sampler=sampler, slots=case.slots, accuracy=accuracy, device=device, cache=False,
        budget=budget, **job,
    )  # fmt: skip
    print(f"\n{name}, accuracy {accuracy}: tuned in {time.perf_counter() - begin:.0f} s\n{tuned}")

    def run(options: ulam.Tuned | ulam.NetworkOptions | None, graphs: bool = True) -> Callable[[], torch.Tensor]:
        engine = ulam.Engine(denoiser, case.shape, case.slots, device, options=options, graphs=graphs)

        def go() -> torch.Tensor:
            submitted = engine.submit(sampler, case.slots, x_init=x, **job)
            samples = engine.run()[submitted]
            _wait(device)
            return samples

        return go

    x = torch.randn(case.slots, *case.shape, generator=torch.Generator().manual_seed(0)).to(device)
    ways = {"naive": naive(case, x), "ulam": run(None), "tuned": run(tuned)}
    accurate = [one for one in tuned.candidates[1:] if by_hand and one.verdict in VERDICTS]
    ways |= {one.name: run(one.options, one.graphs) for one in accurate}
    results = {way: function().float() for way, function in ways.items()}
    timings = {way: timing.median for way, timing in interleaved(ways, seconds, 3).items()}
    span = results["naive"].max() - results["naive"].min()
    for way in ("ulam", "tuned"):
        error = float((results[way] - results["naive"]).square().mean().sqrt() / span)
        told = f"{timings[way]:.3g} s, {timings['naive'] / timings[way]:.2f} times the naive loop"
        print(f"{way}: {told} ({timings['naive']:.3g} s), error {error:.1e}")
    if by_hand:
        best = min(("ulam", *(one.name for one in accurate)), key=timings.__getitem__)
        print(
            f"by hand: the best is {best}, {timings[best]:.3g} s; tuned is {timings[best] / timings['tuned']:.3f} of it"
        )
    sys.stdout.flush()
    return tuned


def read(tuned: ulam.Tuned, device: torch.device) -> None:
    """Print how many of 500 digits, drawn as tuned, a classifier reads as asked."""
    from bench.digits_quality import accuracy, train_classifier

    from ulam.models.mnist import load_mnist5k

    training, _ = load_mnist5k()
    case = cases(device)["digits"]
    y = torch.arange(500, device=device) % CLASSES
    images = ulam.sample(
        ulam.Denoiser(case.net, SCHEDULE), ulam.samplers.DDIM(steps=STEPS), case.shape, 500, device=device,
        options=tuned, **case.job(device, 500),
    )  # fmt: skip
    print(f"read as asked: {accuracy(train_classifier(training), images.float().cpu(), y.cpu())['overall']:.3f}")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--networks", nargs="*", default=["digits", "MLP", "U-Net", "diffusers"])
    parser.add_argument("--accuracy", type=float, nargs="*", default=[1e-4, 1e-2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of tuning a network and accuracy")
    parser.add_argument("--seconds", type=float, default=20.0, help="of the timed runs of a network and accuracy")
    parser.add_argument("--by-hand", action="store_true")
    parser.add_argument("--read", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.networks:
        for accuracy in options.accuracy:
            case = diffusers_case(options.device) if name == "diffusers" else cases(options.device)[name]
            given = options.device, options.budget, options.seconds, options.by_hand
            tuned = measure(name, case, accuracy, *given)
        if name == "digits" and options.read:
            read(tuned, options.device)


if __name__ == "__main__":
    main()
