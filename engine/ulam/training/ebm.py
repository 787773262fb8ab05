"""Train a small energy model by contrastive divergence: `python -m ulam.training.ebm --data digits --out DIR`.

digits: the 1,797 8x8 digits that scikit-learn carries; moons: two half circles in the plane. The energy is that of the
data with Gaussian noise, which keeps Langevin steps of a useful size stable. It is fitted near the data by denoising
score matching first [Vincent 2011], which needs no chains; then contrastive divergence with persistent chains removes
the probability that is elsewhere [Tieleman 2008]. Pictures show E[x | y], the clean data expected for a sample y of the
model [Tweedie]. Writes the weights (moving average, fp16), a picture, data above and
samples below, from chains that start at noise, and a report. All randomness is from `--seed`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from .. import mcmc, noise, pictures
from ..ebm import PersistentChains
from ..files import whole
from ..mcmc import ULA, Energy
from ..models.energies import DIGITS_SHAPE, DIGITS_SIGMA, DIGITS_WIDTH, TiltedGaussian
from ..objectives import contrastive_divergence, denoising_score_matching

FIT_BATCH, BATCH, BUFFER, RESTART = 256, 128, 4096, 0.02
EMA_DECAY, MAX_NORM, WARMUP = 0.999, 1.0, 100
SHOWN = 64  # samples in the picture
PIXELS = 128  # of a panel of the plane's picture


@dataclass(frozen=True)
class Task:
    """A data set, and how its energy is trained.

    sigma: of the noise on the data. step: of ULA. chain_steps: between updates. fits: updates by score matching.
    updates: by contrastive divergence. rate: of learning. sample_steps: of ULA from noise, for the picture.
    """

    name: str
    shape: tuple[int, ...]
    sigma: float
    step: float
    chain_steps: int
    width: int
    fits: int
    updates: int
    rate: float
    sample_steps: int


TASKS = {
    "digits": Task("digits", DIGITS_SHAPE, DIGITS_SIGMA, 0.02, 20, DIGITS_WIDTH, 5_000, 1_500, 1e-3, 1_000),
    "moons": Task("moons", (2,), 0.1, 0.005, 20, 128, 2_000, 1_000, 1e-3, 1_000),
}


def load_data(name: str, seed: int = 0) -> Tensor:
    """The data ``[N, *shape]``: digits in [-1, 1], or points of two half circles about the origin.

    Raises ModuleNotFoundError without scikit-learn, for the digits.
    """
    if name == "digits":
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise ModuleNotFoundError(
                "sklearn: got no such package, expected it for the 8x8 digits: pip install scikit-learn"
            ) from None
        images = torch.from_numpy(load_digits().images).float()
        return (images / 8 - 1)[:, None]
    angle = torch.pi * torch.rand(4096, generator=torch.Generator().manual_seed(seed))
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1)
    lower = torch.stack([0.5 - angle.cos(), 0.25 - angle.sin()], 1)
    return torch.where((torch.arange(4096) % 2 == 0)[:, None], upper, lower)


def new_energy(task: Task, data: Tensor) -> TiltedGaussian:
    """The untrained energy, with the data's moments."""
    flat = data.flatten(1)
    return TiltedGaussian(flat.mean(0), flat.var(0) + task.sigma**2, task.width)


class Training:
    """The energy ``net``, its moving average ``ema``, and their training; all randomness is from the seed."""

    def __init__(self, task: Task, data: Tensor, seed: int) -> None:
        torch.manual_seed(seed)
        self.task, self.data, self.seed = task, data, seed
        self.net, self.ema = new_energy(task, data), new_energy(task, data)
        self.ema.load_state_dict(self.net.state_dict())
        self.generator = torch.Generator().manual_seed(seed)
        self.curve: list[tuple[str, int, float]] = []  # phase, update, mean loss of the last hundred

    def fit(self, updates: int) -> None:
        """Denoising score matching of -grad E."""
        optimizer = torch.optim.Adam(self.net.parameters(), lr=self.task.rate)
        sigma = torch.full((FIT_BATCH,), self.task.sigma)

        def score(x: Tensor, _: Tensor) -> Tensor:
            return Energy(self.net).score(x)

        def loss(update: int) -> Tensor:
            clean = self._rows(FIT_BATCH)
            return denoising_score_matching(score, clean, sigma, seed=self.seed, step=update).mean()

        self._descend("fit", optimizer, loss, updates)

    def contrast(self, updates: int) -> None:
        """Contrastive divergence with persistent chains, started from the Gaussian of the data's moments."""
        task = self.task
        optimizer = torch.optim.Adam(self.net.parameters(), lr=0.3 * task.rate, betas=(0.0, 0.99))
        chains = PersistentChains(
            BUFFER, task.shape, ULA(task.step), restart=RESTART, start=self.net.start, seed=self.seed
        )

        def loss(update: int) -> Tensor:
            clean = self._rows(BATCH)
            noisy = clean + task.sigma * torch.randn(clean.shape, generator=self.generator)
            negatives = chains.sample(self.net, batch=BATCH, steps=task.chain_steps)
            return contrastive_divergence(self.net, noisy, negatives)

        self._descend("contrast", optimizer, loss, updates)

    def _rows(self, count: int) -> Tensor:
        return self.data[torch.randint(len(self.data), (count,), generator=self.generator)]

    def _descend(
        self, phase: str, optimizer: torch.optim.Optimizer, loss: Callable[[int], Tensor], updates: int
    ) -> None:
        peak, recent = optimizer.param_groups[0]["lr"], 0.0
        for update in range(updates):
            optimizer.param_groups[0]["lr"] = peak * min(update / WARMUP, 1.0) * (1 - update / updates)
            value = loss(update)
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), MAX_NORM)
            optimizer.step()
            with torch.no_grad():
                decay = min(EMA_DECAY, (1 + update) / (10 + update))
                torch._foreach_lerp_(list(self.ema.parameters()), list(self.net.parameters()), 1 - decay)
            recent += value.item() / 100
            if (update + 1) % 100 == 0:
                self.curve.append((phase, update + 1, round(recent, 4)))
                print(f"{phase} {update + 1} of {updates}: loss {recent:.4f}", flush=True)
                recent = 0.0


def draw(task: Task, energy: TiltedGaussian, count: int, seed: int) -> Tensor:
    """``count`` clean samples ``[count, *shape]``: ULA from the Gaussian's noise, then E[x | y]."""
    start = energy.start(noise.normal_for(noise.FIRST_STATE, task.shape, seed=seed, chains=count))
    chains = mcmc.run(
        Energy(energy), ULA(task.step), chains=count, steps=1, warmup=task.sample_steps, x_init=start, seed=seed
    )
    return denoised(task, energy, chains.x)


def denoised(task: Task, energy: TiltedGaussian, x: Tensor) -> Tensor:
    """E[clean | x] = x - sigma^2 grad E(x), like x."""
    with torch.no_grad():
        return x + task.sigma**2 * Energy(energy).score(x)


def picture(task: Task, energy: TiltedGaussian, data: Tensor, samples: Tensor) -> Any:
    """Digits: half a picture of data above samples. Plane: the data, exp(-E) and the samples, side by side."""
    if task.name == "digits":
        shown = data[: len(samples)].view_as(samples)
        return pictures.grid(pictures.to_pixels(torch.cat([shown, samples])), columns=16)
    edges = np.linspace(-2, 2, PIXELS + 1)
    at = torch.from_numpy((edges[1:] + edges[:-1]) / 2).float()
    y, x = torch.meshgrid(at.flip(0), at, indexing="ij")
    density = (-energy(torch.stack([x, y], 2).view(-1, 2))).exp().view(PIXELS, PIXELS)
    panels = [_histogram(data, edges), density, _histogram(samples, edges)]
    scaled = torch.stack([2 * (panel / panel.max()).clamp(0, 1) - 1 for panel in panels])
    return pictures.grid(pictures.to_pixels(scaled[:, None]), columns=3)


def _histogram(points: Tensor, edges: np.ndarray) -> Tensor:
    counts, _, _ = np.histogram2d(points[:, 1].numpy(), points[:, 0].numpy(), bins=[edges, edges])
    return torch.from_numpy(counts[::-1].copy()).float()


def save(out: Path, task: Task, energy: TiltedGaussian, data: Tensor, report: dict[str, Any]) -> None:
    """Write the weights in fp16, the picture of exactly those weights, and the report."""
    weights = {name: tensor.half().contiguous() for name, tensor in energy.state_dict().items()}
    energy.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    samples = draw(task, energy, SHOWN if task.name == "digits" else len(data), seed=1)
    out.mkdir(parents=True, exist_ok=True)
    with whole(out / f"{task.name}_ebm.safetensors", out / f"{task.name}_ebm.json") as (network, record):
        network.write_bytes(safetensors.torch.save(weights))
        record.write_text(json.dumps(report, indent=1) + "\n")
    picture(task, energy, data, samples).save(out / f"{task.name}_ebm.png")


def main() -> None:
    """Read the command line, train, sample and write."""
    parser = argparse.ArgumentParser(prog="python -m ulam.training.ebm", description=__doc__)
    parser.add_argument("--data", choices=sorted(TASKS), default="digits")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights, the picture and the report")
    parser.add_argument("--fits", type=int, help="updates by score matching (default: 5000 digits, 2000 moons)")
    parser.add_argument("--updates", type=int, help="by contrastive divergence (default: 1500 digits, 1000 moons)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and noise (default 0)")
    options = parser.parse_args()
    task = TASKS[options.data]
    fits = task.fits if options.fits is None else options.fits
    updates = task.updates if options.updates is None else options.updates
    begin = time.monotonic()
    training = Training(task, load_data(task.name), options.seed)
    training.fit(fits)
    training.contrast(updates)
    energy = training.ema.eval().requires_grad_(False)
    told = f"--data {task.name} --fits {fits} --updates {updates} --seed {options.seed}"
    report = {
        "command": f"python -m ulam.training.ebm {told}",
        "minutes": round((time.monotonic() - begin) / 60, 2),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in energy.parameters()),
        "sigma": task.sigma,
        "step": task.step,
        "losses": training.curve,
    }
    save(options.out, task, energy, training.data, report)


if __name__ == "__main__":
    main()
