"""Train a small energy model by contrastive divergence: `python -m ulam.models.train_ebm --data digits --out DIR`.

digits: the 1,797 8x8 digits that scikit-learn carries; moons: two half circles in the plane. The energy is that of the
data with Gaussian noise, which keeps Langevin steps of a useful size stable; pictures show E[x | y], the clean data
expected for a sample y of the model [Tweedie]. Writes the weights (moving average, fp16), a picture, data above and
samples below, from chains that start at noise, and a report. All randomness is from `--seed`.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from .. import mcmc, noise, output
from ..ebm import PersistentChains, contrastive_divergence
from ..mcmc import ULA, Energy
from .energies import DIGITS_SHAPE, DIGITS_SIGMA, DIGITS_WIDTH, TiltedGaussian
from .train_digits import write_atomically

BATCH, BUFFER, RESTART = 128, 4096, 0.02
EMA_DECAY, MAX_NORM, WARMUP = 0.999, 1.0, 100
SHOWN = 64  # samples in the picture
PIXELS = 128  # of a panel of the plane's picture


@dataclass(frozen=True)
class Task:
    """What is learned, and by which chains: noise ``sigma`` on the data, ULA's ``step``, steps a call and to sample."""

    name: str
    shape: tuple[int, ...]
    sigma: float
    step: float
    chain_steps: int
    width: int
    updates: int
    rate: float
    sample_steps: int


TASKS = {
    "digits": Task("digits", DIGITS_SHAPE, DIGITS_SIGMA, 0.02, 20, DIGITS_WIDTH, 12_000, 1e-3, 2_000),
    "moons": Task("moons", (2,), 0.1, 0.005, 20, 128, 3_000, 1e-3, 2_000),
}


def load_data(name: str, seed: int = 0) -> Tensor:
    """The data ``[N, *shape]``: digits in [-1, 1], or points of two half circles about the origin.

    Raises ModuleNotFoundError without scikit-learn, for the digits.
    """
    if name == "digits":
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise ModuleNotFoundError("the 8x8 digits come with scikit-learn: pip install scikit-learn") from None
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


def train(task: Task, data: Tensor, seed: int, updates: int) -> tuple[TiltedGaussian, list[tuple[int, float]]]:
    """The moving average of the trained energy, and (update, mean E(data) - mean E(negatives)) on the way."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net, ema = new_energy(task, data), new_energy(task, data)
    ema.load_state_dict(net.state_dict())
    optimizer = torch.optim.Adam(net.parameters(), lr=task.rate, betas=(0.0, 0.99))
    chains = PersistentChains(BUFFER, task.shape, ULA(task.step), restart=RESTART, start=net.start, seed=seed)
    curve: list[tuple[int, float]] = []
    recent = 0.0
    for update in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = task.rate * min(update / WARMUP, 1.0) * (1 - update / updates)
        rows = torch.randint(len(data), (BATCH,), generator=generator)
        noisy = data[rows] + task.sigma * torch.randn(BATCH, *task.shape, generator=generator)
        negatives = chains.sample(net, batch=BATCH, steps=task.chain_steps)
        loss = contrastive_divergence(net, noisy, negatives)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), MAX_NORM)
        optimizer.step()
        with torch.no_grad():
            decay = min(EMA_DECAY, (1 + update) / (10 + update))
            torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), 1 - decay)
        recent += loss.item() / 100
        if (update + 1) % 100 == 0:
            curve.append((update + 1, round(recent, 4)))
            print(f"update {update + 1} of {updates}: E(data) - E(negatives) = {recent:.3f}", flush=True)
            recent = 0.0
    return ema.eval().requires_grad_(False), curve


def draw(task: Task, energy: TiltedGaussian, count: int, seed: int) -> Tensor:
    """``count`` clean samples ``[count, *shape]``: ULA from the Gaussian's noise, then E[x | y]."""
    start = energy.start(noise.normal(task.shape, seed=seed, chains=count, tag=noise.INITIAL_STATE))
    chains = mcmc.run(
        Energy(energy), ULA(task.step), chains=count, steps=1, warmup=task.sample_steps, x_init=start, seed=seed
    )
    return denoised(task, energy, chains.x)


def denoised(task: Task, energy: TiltedGaussian, x: Tensor) -> Tensor:
    """E[clean | x] = x - sigma^2 grad E(x), like x."""
    _, score = Energy(energy).bind(x, torch.arange(len(x)), len(x), None)(x, False)
    return x + task.sigma**2 * score


def picture(task: Task, energy: TiltedGaussian, data: Tensor, samples: Tensor) -> Any:
    """Digits: half a picture of data above samples. Plane: the data, exp(-E) and the samples, side by side."""
    if task.name == "digits":
        shown = data[: len(samples)].view_as(samples)
        return output.grid(output.to_pixels(torch.cat([shown, samples])), columns=16)
    edges = np.linspace(-2, 2, PIXELS + 1)
    at = torch.from_numpy((edges[1:] + edges[:-1]) / 2).float()
    y, x = torch.meshgrid(at.flip(0), at, indexing="ij")
    density = (-energy(torch.stack([x, y], 2).view(-1, 2))).exp().view(PIXELS, PIXELS)
    panels = [_histogram(data, edges), density, _histogram(samples, edges)]
    scaled = torch.stack([2 * (panel / panel.max()).clamp(0, 1) - 1 for panel in panels])
    return output.grid(output.to_pixels(scaled[:, None]), columns=3)


def _histogram(points: Tensor, edges: np.ndarray) -> Tensor:
    counts, _, _ = np.histogram2d(points[:, 1].numpy(), points[:, 0].numpy(), bins=[edges, edges])
    return torch.from_numpy(counts[::-1].copy()).float()


def save(out: Path, task: Task, energy: TiltedGaussian, data: Tensor, report: dict[str, Any]) -> None:
    """Write the weights in fp16, the picture of exactly those weights, and the report."""
    weights = {name: tensor.half().contiguous() for name, tensor in energy.state_dict().items()}
    energy.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    samples = draw(task, energy, SHOWN if task.name == "digits" else len(data), seed=1)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / f"{task.name}_ebm.safetensors", safetensors.torch.save(weights))
    write_atomically(out / f"{task.name}_ebm.json", (json.dumps(report, indent=1) + "\n").encode())
    picture(task, energy, data, samples).save(out / f"{task.name}_ebm.png")


def main() -> None:
    """Read the command line, train, sample and write."""
    parser = argparse.ArgumentParser(prog="python -m ulam.models.train_ebm", description=__doc__)
    parser.add_argument("--data", choices=sorted(TASKS), default="digits")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights, the picture and the report")
    parser.add_argument("--updates", type=int, help="of the parameters (default: 12000 digits, 3000 moons)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and noise (default 0)")
    options = parser.parse_args()
    task = TASKS[options.data]
    updates = options.updates or task.updates
    begin, data = time.monotonic(), load_data(task.name)
    energy, curve = train(task, data, options.seed, updates)
    report = {
        "command": f"python -m ulam.models.train_ebm --data {task.name} --updates {updates} --seed {options.seed}",
        "minutes": round((time.monotonic() - begin) / 60, 2),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in energy.parameters()),
        "sigma": task.sigma,
        "step": task.step,
        "energy_gap_curve": curve,
    }
    save(options.out, task, energy, data, report)


if __name__ == "__main__":
    main()
