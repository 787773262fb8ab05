"""Are the generated digits what was asked for, and are they new? `python bench/digits_quality.py`

A classifier trained on the real training images alone reads 1,000 generated digits. The distance from each
generated image to its nearest training image is compared with that of real images the denoiser never saw.
"""

import argparse
import itertools
import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ulam
from ulam.models import load_digits
from ulam.models.digits import BETA_END, BETA_START, CLASSES, NULL_CLASS, TRAIN_STEPS
from ulam.models.mnist import Digits, load_mnist5k
from ulam.training.digits import augment, batches

CLASSIFIER_STEPS = 700
PEAK_RATE = 3e-3
COPY_RATIO = 1 / 3  # Yoon et al. 2023: a copy is three times nearer to one training image than to any other
COPIES_ALLOWED = 0.01
QUANTILES = (0.01, 0.1, 0.5, 0.9)


def classifier() -> nn.Sequential:
    """Images [B, 1, 28, 28] -> logits [B, 10]."""

    def block(c_in: int, c_out: int) -> list[nn.Module]:
        return [nn.Conv2d(c_in, c_out, 3, padding=1), nn.GroupNorm(8, c_out), nn.ReLU(), nn.MaxPool2d(2)]

    head = [nn.Flatten(), nn.Dropout(0.3), nn.Linear(96 * 3 * 3, CLASSES)]
    return nn.Sequential(*block(1, 32), *block(32, 64), *block(64, 96), *head)


def train_classifier(training: Digits, seed: int = 0) -> nn.Sequential:
    """A classifier trained on rotated, scaled and shifted real images; about half a minute on two threads."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = classifier()
    optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK_RATE, weight_decay=0.01)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, CLASSIFIER_STEPS)
    for _, (images, labels) in zip(range(CLASSIFIER_STEPS), batches(training, generator), strict=False):
        loss = F.cross_entropy(net(augment(images, 15, 0.1, 2, generator)), labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        cosine.step()
    return net.eval()


@torch.inference_mode()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """The share of images [N, 1, 28, 28] that the classifier reads as labels [N], overall and per class."""
    right = (net(images).argmax(1) == labels).double()
    of_class = [right[labels == label].mean().item() for label in range(CLASSES)]
    overall = right.mean().item()
    return {"overall": overall, "interval_95": wilson(overall, len(right)), "of_class": of_class}


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of Wilson (1927) for a share seen in `count` trials; it holds at a share of 1 too."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / (1 + z * z / count)
    return centre - reach, min(centre + reach, 1.0)


def generate(count: int, steps: int = 50, guidance: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(images [count, 1, 28, 28] in about [-1, 1], labels [count] that cycle 0..9), by DDIM."""
    schedule = ulam.schedules.vp_linear(TRAIN_STEPS, beta_start=BETA_START, beta_end=BETA_END)
    denoiser = ulam.Denoiser(load_digits(), schedule, predicts="eps")
    labels = torch.arange(count) % CLASSES
    images = ulam.sample(
        denoiser, ulam.samplers.DDIM(steps=steps), shape=(1, 28, 28), chains=count, seed=seed, slots=64,
        cond={"y": labels}, guidance=guidance, uncond={"y": torch.full_like(labels, NULL_CLASS)},
    )  # fmt: skip
    return images, labels


def nearest(images: Tensor, training: Tensor) -> dict[str, Any]:
    """L2 distances (pixels in [0, 1]) of images [N, 1, 28, 28] to the nearest training image, in quantiles.

    Training images [M, 1, 28, 28] count at the best of their shifts by up to one pixel, as training saw them.
    `copies` is the share nearer to one training image than COPY_RATIO of the distance to the second.
    """
    pixels = (images.clamp(-1, 1).flatten(1) + 1) / 2
    distance = torch.full((len(images), len(training)), math.inf)
    for shift in itertools.product((-1, 0, 1), repeat=2):
        known = (training.roll(shift, dims=(2, 3)).flatten(1) + 1) / 2
        distance = torch.minimum(distance, torch.cdist(pixels, known))
    first, second = distance.topk(2, dim=1, largest=False).values.unbind(1)
    quantiles = first.quantile(torch.tensor(QUANTILES)).tolist()
    return {
        "mean": first.mean().item(),
        "least": first.min().item(),
        "quantiles": {f"{q:g}": value for q, value in zip(QUANTILES, quantiles, strict=True)},
        "copies": (first < COPY_RATIO * second).double().mean().item(),
    }


def quality(images: Tensor, labels: Tensor, classifier_seed: int = 0) -> dict[str, Any]:
    """The report on generated images [N, 1, 28, 28] and the labels [N] that were asked for."""
    training, held_out = load_mnist5k()
    reader = train_classifier(training, classifier_seed)
    distances = {
        "generated": nearest(images, training.images),
        "held_out": nearest(held_out.images, training.images),
    }
    return {
        "count": len(images),
        "real_held_out_accuracy": accuracy(reader, held_out.images, held_out.labels),
        "generated_accuracy": accuracy(reader, images, labels),
        "nearest_training_image": distances,
        "generated_are_copies": distances["generated"]["copies"] > COPIES_ALLOWED,
    }


def show(report: dict[str, Any]) -> None:
    """Print the report for a person."""
    for name in ("real_held_out_accuracy", "generated_accuracy"):
        entry = report[name]
        classes = " ".join(f"{label}:{share:.3f}" for label, share in enumerate(entry["of_class"]))
        low, high = entry["interval_95"]
        print(f"{name:22s} {entry['overall']:.4f}  95%: {low:.4f} to {high:.4f}  {classes}")
    print("L2 distance to the nearest training image (pixels in [0, 1]; shifts of up to one pixel)")
    for name, entry in report["nearest_training_image"].items():
        quantiles = "  ".join(f"{q}: {value:.2f}" for q, value in entry["quantiles"].items())
        print(f"  {name:9s}  mean {entry['mean']:.2f}  least {entry['least']:.2f}  quantiles {quantiles}")
        print(f"  {'':9s}  nearer than a third of the second nearest: {entry['copies']:.4f}")
    verdict = "ARE copies" if report["generated_are_copies"] else "are not copies"
    print(f"the generated digits {verdict} of training images")


def main() -> None:
    """Read the command line, generate, judge, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the report there, as JSON")
    parser.add_argument("--count", type=int, default=1000, help="digits to generate (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the generated digits (default 0)")
    options = parser.parse_args()
    report = quality(*generate(options.count, seed=options.seed)) | {"seed": options.seed}
    show(report)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
