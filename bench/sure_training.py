"""Denoisers trained on noisy digits alone, and the same with the clean ones: `python -m bench.sure_training`.

scikit-learn's 1,797 digits of 8x8 pixels, in [-1, 1], every fifth held out. `ulam.objectives.sure` is given
observations y = x + sigma z alone, supervised training x too; networks, observations, batches, steps and averages of
the weights are equal. Every step observes its digits anew; with `--once` there is one observation of each digit, and
both overfit it, SURE more. Printed are mean squared errors on observations of the held-out digits.
"""

from __future__ import annotations

import argparse
import math

import torch
from sklearn.datasets import load_digits
from torch import nn

import ulam
from ulam import noise, objectives

SIGMAS = (0.4, 0.8)
BATCH, RATE, AVERAGED = 256, 2e-3, 0.995
SEEN, HELD_OUT = 1, 2  # seeds of the noise on the training digits, and on those held out


class Network(nn.Module):
    """eps of digits [B, 1, 8, 8]."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        layers = nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 64)
        self.layers = nn.Sequential(nn.Flatten(), *layers)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(x).view_as(x)
        return out


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Training and held-out digits, [N, 1, 8, 8] in [-1, 1]."""
    x = torch.from_numpy(load_digits().data).float().view(-1, 1, 8, 8) / 8 - 1
    held_out = torch.arange(len(x)) % 5 == 0
    return x[~held_out], x[held_out]


def observed(x: torch.Tensor, rows: torch.Tensor, sigma: float, seed: int, time: int) -> torch.Tensor:
    """The observations of these rows of x at a time, each row's own."""
    return x[rows] + sigma * noise.normal(tuple(x.shape[1:]), seed=seed, chains=rows, row=time)


def train(supervised: bool, x: torch.Tensor, sigma: float, steps: int, once: bool) -> ulam.Denoiser:
    """A denoiser trained for so many steps."""
    torch.manual_seed(0)
    net, generator = Network(), torch.Generator().manual_seed(0)
    averaged = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGED)
    )
    optimiser = torch.optim.Adam(net.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    denoiser, level = denoiser_of(net), torch.full((BATCH,), sigma)
    for step in range(steps):
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        y = observed(x, rows, sigma, SEEN, 0 if once else step)
        if supervised:
            loss = (y - sigma * net(y, level) - x[rows]).square().flatten(1).mean(1)
        else:
            loss = objectives.sure(denoiser, y, sigma, step=step, samples=4)
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
        schedule.step()
        averaged.update_parameters(net)
    return denoiser_of(averaged.module)


def denoiser_of(net: nn.Module) -> ulam.Denoiser:
    return ulam.Denoiser(net, ulam.schedules.ve(0.01, 50.0))


def errors(denoiser: ulam.Denoiser, x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Mean squared errors on observations of clean digits, [N]."""
    y = observed(x, torch.arange(len(x)), sigma, HELD_OUT, 0)
    return (ulam.tweedie.mean(denoiser, y, sigma) - x).square().flatten(1).mean(1)


def compare(sigma: float, steps: int, once: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The errors on held-out digits, trained by SURE and supervised, [N] each."""
    x, held_out = digits()
    by_sure, by_truth = (
        errors(train(supervised, x, sigma, steps, once), held_out, sigma) for supervised in (False, True)
    )
    return by_sure, by_truth


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sure_training", description=__doc__)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--sigma", type=float, nargs="*", default=SIGMAS)
    parser.add_argument("--once", action="store_true", help="one observation of each digit, the same in every step")
    options = parser.parse_args()
    for sigma in options.sigma:
        by_sure, by_truth = compare(sigma, options.steps, options.once)
        apart, scale, root = by_sure - by_truth, 100 / float(by_truth.mean()), math.sqrt(len(by_truth))
        print(
            f"sigma {sigma}: error {float(by_sure.mean()):.5f} by SURE, {float(by_truth.mean()):.5f} supervised: "
            f"{float(apart.mean()) * scale:+.1f}% +- {float(apart.std()) / root * scale:.1f}%",
            flush=True,
        )


if __name__ == "__main__":
    main()
