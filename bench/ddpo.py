"""DDPO on the digits: the network that comes along learns to draw symmetric digits, in ten minutes on two cores.

`python -m bench.ddpo` fine-tunes it by policy gradients [Black 2024, DDPO-IS]: sample with DDIM at eta = 1,
reward each picture, and step along the clipped, weighted log-probabilities of all rows. The reward is minus the mean
distance of a picture to its mirror image. It prints the mean reward of each iteration beside the spread of such means
before training, and `--write` keeps the curve under bench/results and pictures before and after in docs/ddpo.png.
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bench.timing import write

import ulam
from ulam.models import load_digits
from ulam.pictures import grid, to_pixels
from ulam.rollouts import log_prob, sample

SAMPLER = ulam.samplers.DDIM(steps=10, eta=1.0, spacing="trailing")
SHAPE, CHAINS = (1, 28, 28), 64
PAIRS = 128  # (chain, row) pairs of a gradient
MOST, CLIP = 5.0, 1e-2  # advantages are clipped to the first, ratios to 1 +- the second
BATCHES = 10  # of the spread before training


def symmetry(x: torch.Tensor) -> torch.Tensor:
    """Minus the mean distance of pictures ``[n, 1, H, W]`` to their mirror images."""
    return -(x.clamp(-1, 1) - x.clamp(-1, 1).flip(-1)).abs().flatten(1).mean(1)


def labels(chains: int) -> torch.Tensor:
    return torch.arange(chains) % 10


def train(seconds: float, rate: float, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    before = ulam.Denoiser(load_digits(), ulam.schedules.vp_linear(1000, 1e-4, 0.02))
    denoiser = replace(before, net=copy.deepcopy(before.net))
    weights = [weight.requires_grad_() for weight in denoiser.net.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=rate)
    cond = {"y": labels(CHAINS)}
    means = torch.stack([
        symmetry(ulam.sample(before, SAMPLER, SHAPE, CHAINS, 1000 + k, cond=cond, progress=False)).mean()
        for k in range(BATCHES)
    ])  # fmt: skip
    start, spread = float(means.mean()), float(means.std())
    print(f"before: mean reward {start:.4f}, spread of the means of {CHAINS} chains {spread:.4f}", flush=True)
    curve, begin, seed = [], time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        trajectory = sample(denoiser, SAMPLER, SHAPE, CHAINS, seed, cond=cond)
        rewards = symmetry(trajectory.x)
        curve.append(float(rewards.mean()))
        advantages = ((rewards - rewards.mean()) / rewards.std()).clamp(-MOST, MOST)
        sampled, noisy = trajectory.log_prob, torch.nonzero(trajectory.stochastic).flatten()
        pairs = torch.cartesian_prod(torch.arange(CHAINS), noisy)
        pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))]
        for places, rows in (part.T for part in pairs.split(PAIRS)):
            ratio = (log_prob(denoiser, trajectory, pairs=(places, rows)) - sampled[places, rows]).exp()
            gain = torch.min(ratio * advantages[places], ratio.clamp(1 - CLIP, 1 + CLIP) * advantages[places])
            optimiser.zero_grad()
            (-gain.mean()).backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
        seed += 1
        if seed % 10 == 0:
            took, last = time.perf_counter() - begin, curve[-5:]
            gained = (sum(last) / len(last) - start) / spread
            print(f"{took:5.0f} s, iteration {seed}: mean reward {last[-1]:.4f}, {gained:+.1f} spreads", flush=True)
    last = curve[-10:]
    pictures = [
        ulam.sample(one, SAMPLER, SHAPE, 20, 5, cond={"y": labels(20)}, progress=False) for one in (before, denoiser)
    ]
    return {
        "start": start, "spread": spread, "curve": curve, "seconds": time.perf_counter() - begin, "rate": rate,
        "gained_in_spreads": (sum(last) / len(last) - start) / spread, "pictures": pictures, "threads": threads,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--rate", type=float, default=1e-4, help="of AdamW")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="keep the curve and the pictures")
    options = parser.parse_args()
    found = train(options.seconds, options.rate, options.threads)
    pictures = found.pop("pictures")
    print(f"gained {found['gained_in_spreads']:.1f} spreads of means in {found['seconds']:.0f} s")
    if options.write:
        grid(to_pixels(torch.cat(pictures)), 10).save(Path(__file__).parents[1] / "docs" / "ddpo.png")
        print(f"wrote {write('ddpo', {}, **found)}")


if __name__ == "__main__":
    main()
