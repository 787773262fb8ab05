"""What the forward process and a denoising loss cost beside the plain formula, in one process, interleaved.

    python bench/training.py [--rounds 500] [--threads 1]

Plain: z = randn_like(x), x_t = alpha[t] x + sigma[t] z, the mean of (net(x_t, t) - z)^2, and backward. Medians of
perf_counter in microseconds; every round calls each once, so that a change of clock meets all.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import count

import torch

import ulam
from ulam import objectives

SHAPES = ((64, 2), (256, 2), (64, 1, 8, 8), (64, 3, 32, 32))


def network(shape: tuple[int, ...]) -> torch.nn.Module:
    if len(shape) == 1:
        ends = torch.nn.Linear(shape[0], 128), torch.nn.Linear(128, shape[0])
    else:
        ends = torch.nn.Conv2d(shape[0], 16, 3, padding=1), torch.nn.Conv2d(16, shape[0], 3, padding=1)
    return torch.nn.Sequential(ends[0], torch.nn.SiLU(), ends[1])


def calls(size: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    schedule = ulam.schedules.vp_linear(1000)
    alpha, sigma = (level.float() for level in schedule.levels(torch.arange(1000)))
    x, t, net = torch.randn(size), torch.randint(0, 1000, size[:1]), network(size[1:])
    one, steps = (-1, *[1] * (len(size) - 1)), count()
    denoiser = ulam.Denoiser(lambda x, t: net(x), schedule)

    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        z = torch.randn_like(x)
        return alpha[t].view(one) * x + sigma[t].view(one) * z, z

    def plain_loss() -> None:
        x_t, z = plain()
        (net(x_t) - z).pow(2).mean().backward()
        net.zero_grad()

    def loss() -> None:
        objectives.denoising(denoiser, x, t, step=next(steps)).mean().backward()
        net.zero_grad()

    return {
        "plain": plain, "add_noise": lambda: objectives.add_noise(x, t, schedule, step=next(steps)),
        "plain loss": plain_loss, "denoising": loss,
    }  # fmt: skip


def medians(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for k in range(rounds + 10):
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            if k >= 10:  # what is made once has been made
                taken[name].append(time.perf_counter() - begin)
    return {name: 1e6 * statistics.median(times) for name, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for size in SHAPES:
        rounds = options.rounds if torch.Size(size).numel() < 1e5 else options.rounds // 10
        taken = medians(calls(size), rounds)
        noising, training = taken["add_noise"] / taken["plain"], taken["denoising"] / taken["plain loss"]
        numbers = ", ".join(f"{name} {number:.0f}" for name, number in taken.items())
        print(
            f"{'x'.join(map(str, size)):12} add_noise {noising:.2f}, denoising {training:.2f} of plain ({numbers} us)"
        )


if __name__ == "__main__":
    main()
