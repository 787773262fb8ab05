"""The model that comes with the package: its record, its rows, and what it draws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bench.digits_quality import generate, quality

from ulam import models
from ulam.models.digits import NULL_CLASS
from ulam.models.mnist import load_mnist5k
from ulam.training.digits import eps_loss

FOLDER = Path(models.__file__).parent
RECORD = json.loads((FOLDER / "digits.json").read_text())


def test_weights_are_small_and_recorded():
    assert (FOLDER / "digits.safetensors").stat().st_size <= 2_000_000
    parameters = sum(p.numel() for p in models.load_digits().parameters())
    assert RECORD["parameters"] == parameters and RECORD["complete"]
    curve = RECORD["loss_curve"]
    assert len(curve) > 20 and curve[-1][1] < curve[0][1]
    training, held_out = load_mnist5k()
    assert RECORD["split"]["training"] == {"images": 4500, "rows_sha256": training.rows_sha256}
    assert RECORD["split"]["held_out"] == {"images": 500, "rows_sha256": held_out.rows_sha256}


def test_held_out_loss_is_the_recorded_one():
    """Another draw of t and eps than the record's."""
    _, held_out = load_mnist5k()
    recorded, loss = RECORD["held_out_eps_loss"], eps_loss(models.load_digits(), held_out, draws=2, seed=7)
    error = (recorded["standard_error"] ** 2 + loss["standard_error"] ** 2) ** 0.5
    assert abs(loss["mean"] - recorded["mean"]) < 5 * error
    assert recorded["mean"] < 0.028


@torch.inference_mode()
def test_rows_are_independent():
    net = models.load_digits()
    x, t = torch.randn(6, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(6) * 150.0
    y = torch.tensor([0, 3, NULL_CLASS, 9, 1, 2])
    whole = net(x, t, y)
    other = torch.where(torch.arange(6).view(-1, 1, 1, 1) == 2, x, torch.randn_like(x))
    assert torch.equal(net(other, t, y)[2], whole[2])
    assert (net(x[2:3], t[2:3], y[2:3])[0] - whole[2]).abs().max() < 1e-4


@pytest.fixture(scope="module")
def report():
    return quality(*generate(1000))


@pytest.mark.long
def test_a_classifier_of_real_digits_reads_what_was_asked_for(report):
    assert report["real_held_out_accuracy"]["overall"] >= 0.96
    assert report["generated_accuracy"]["overall"] >= 0.97


@pytest.mark.long
def test_generated_digits_are_not_copies(report):
    distances = report["nearest_training_image"]
    assert not report["generated_are_copies"]
    assert distances["generated"]["quantiles"]["0.1"] > 0.5 * distances["held_out"]["quantiles"]["0.1"]
