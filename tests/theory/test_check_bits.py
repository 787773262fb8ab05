"""The bits per dimension of `ulam check`: of data on 256 and on fewer levels, between other ends, and continuous."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from bound_cases import GAUSSIAN, Mixture, vp
from ulam import Denoiser, bounds, schedules
from ulam.cli import main as cli
from ulam.cli.bits import Kind, bits_per_dim, kind_of

UINT8 = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 40))).float()
SEVENTEEN = torch.from_numpy(np.random.default_rng(1).integers(0, 17, (6, 40))).float()


@pytest.mark.parametrize(
    ("x", "pixels", "expected"),
    [
        (UINT8 / 127.5 - 1, None, "256 bins from -1 to 1"),
        (UINT8 / 255, None, "256 bins from 0 to 1"),
        (UINT8 / 255, (0.0, 1.0), "256 bins from 0 to 1"),
        (3 - UINT8 / 255, (3.0, 2.0), "256 bins from 2 to 3"),
        (SEVENTEEN / 8 - 1, None, "17 bins from -1 to 1"),
        (SEVENTEEN / 16, None, "17 bins from 0 to 1"),
        ((UINT8 > 90).float() * 2 - 1, None, "256 bins from -1 to 1"),
        (torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), None, "density of continuous data"),
        (torch.rand(6, 300, generator=torch.Generator().manual_seed(0)), None, "density of continuous data"),
        (UINT8, None, "density of continuous data"),
    ],
)
def test_what_data_are_is_found(x: torch.Tensor, pixels: tuple[float, float] | None, expected: str) -> None:
    found = kind_of(x, pixels=pixels)
    assert str(found) == expected and found.chosen == "the data"
    if found.bins is not None:
        assert kind_of(x, found.bins, pixels=pixels) == Kind(found.bins, found.ends, "--bins")
        with pytest.raises(ValueError, match=r"^bins: got 19 for data that are not on so many equal levels"):
            kind_of(SEVENTEEN / 16, 19)
    assert kind_of(x, continuous=True).bins is None
    with pytest.raises(ValueError, match=r"^bins: got 17 beside continuous, expected one of them"):
        kind_of(x, 17, True)


@pytest.mark.parametrize(("lo", "hi", "bins"), [(-1.0, 1.0, 17), (0.0, 1.0, 17), (-2.0, 3.0, 5)])
def test_bins_between_any_ends_are_intervals_of_a_normal(lo: float, hi: float, bins: int) -> None:
    """One step, D = c: L_0 = -log2 P(N(c, sigma^2) falls into the bin), its edges halfway between the levels."""
    beta, c = 0.3, lo + 0.3 * (hi - lo)
    schedule = schedules.from_betas([beta])
    levels = np.linspace(lo, hi, bins)
    x = torch.from_numpy(levels[:, None].copy())
    bound = bounds.vlb(Denoiser(lambda x, t: torch.full_like(x, c), schedule, "x0"), x, bins=bins, ends=(lo, hi))
    edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
    law = stats.norm(c, math.sqrt(beta))
    np.testing.assert_allclose(bound.terms[0], -np.log2(law.cdf(edges[1:]) - law.cdf(edges[:-1])), rtol=1e-9)


def test_ends_are_checked() -> None:
    denoiser, x = Denoiser(lambda x, t: x, vp(3)), torch.rand(2, 3)
    for ends, message in (
        ((1.0, 0.0), "ends: got .*, expected .lo, hi. with lo below hi"), ((0.0,), "ends: got .*, expected .lo, hi."),
        ((0.5, 1.0), "x_0: got .*, expected numbers in"), ((0.0, math.inf), "ends: got inf"),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError), match=message):
            bounds.vlb(denoiser, x, ends=ends)


@pytest.mark.parametrize("ends", [(-1.0, 1.0), (0.0, 1.0)])
def test_bits_of_coarse_data_are_their_entropy(ends: tuple[float, float]) -> None:
    """Atoms on 17 levels with the ideal network: above the entropy, and near it with 200 steps."""
    weights, places = [0.5, 0.3, 0.2], np.array([0, 9, 16])
    means = (ends[0] + (ends[1] - ends[0]) * places / 16).tolist()
    atoms = Mixture(weights, means, [0.0, 0.0, 0.0])
    x = atoms.sample((400, 8)).float()
    kind = kind_of(x)
    assert str(kind) == f"17 bins from {ends[0]:g} to 1"
    found = bits_per_dim(atoms.denoiser(vp(200), "x0"), x, {}, kind, noisy=False, batch=150, seed=0)
    exact = float(-(atoms.weights * atoms.weights.log2()).sum())
    assert exact - 4 * found["stderr"] < found["value"] < exact + 0.25 + 4 * found["stderr"]
    assert found["data"] == str(kind) and found["chosen_by"] == "the data"


def test_bits_of_continuous_data_are_those_of_their_density() -> None:
    x = GAUSSIAN.sample((400, 8)).float()
    denoiser = GAUSSIAN.denoiser(vp(60))
    found = bits_per_dim(denoiser, x, {}, kind_of(x), noisy=False, batch=150, seed=0)
    every = bounds.vlb(denoiser, x, decoder="gaussian", variance="beta", seed=1)
    assert abs(found["value"] - every.value) < 4 * math.hypot(found["stderr"], every.stderr)
    exact = float(-GAUSSIAN.log_density(x).mean()) / 8 / math.log(2)
    assert -4 * found["stderr"] < found["value"] - exact < 0.15 + 4 * found["stderr"]
    assert found["data"] == "density of continuous data"


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_few_training_steps_are_all_evaluated(steps: int) -> None:
    x = torch.tensor([[-1.0, 1.0], [1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    denoiser = Denoiser(lambda x, t: torch.tanh(x), vp(steps), "x0")
    found = bits_per_dim(denoiser, x, {}, kind_of(x), noisy=False, batch=4, seed=3)
    assert found["value"] == pytest.approx(bounds.vlb(denoiser, x, clip=(-1, 1), seed=3).value, rel=1e-6)


def test_why_there_are_no_bits_is_said() -> None:
    x = torch.zeros(4, 3)
    denoiser = Denoiser(lambda x, t: x, schedules.ve(0.01, 50.0))
    left = bits_per_dim(denoiser, x, {}, kind_of(x), noisy=False, batch=2, seed=0)
    assert left == {"left_out": "the bound is of DDPM's steps, and needs a vp schedule"}


FACTORY = """
import torch, ulam
def make():
    return ulam.Denoiser(lambda x, t: 0.5 * x, ulam.schedules.vp_linear(40, 1e-3, 0.3), "x0")
def exploding():
    return ulam.Denoiser(lambda x, t: 0.5 * x, ulam.schedules.ve(0.01, 50.0), "x0")
"""


@pytest.mark.parametrize(
    ("x", "options", "data", "chosen"),
    [
        (SEVENTEEN / 8 - 1, (), "17 bins from -1 to 1", "the data"),
        (SEVENTEEN / 16, ("--bins", "17"), "17 bins from 0 to 1", "--bins"),
        (SEVENTEEN / 8 - 1, ("--continuous",), "density of continuous data", "--continuous"),
    ],
)
def test_the_command_says_what_its_bits_are_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], x: torch.Tensor,
    options: tuple[str, ...], data: str, chosen: str,
) -> None:  # fmt: skip
    (tmp_path / "bits_factory.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    np.savez("data.npz", arr_0=x.numpy())
    own = ["--shape", "40", "--data", "data.npz", "--levels", "2", "--sigmas", "0.5", "1", "--no-plots", "--out", "out"]
    cli.main(["check", "--model", "bits_factory:make", *own, *options])
    assert f"bits/dim (variational bound, {data}): " in capsys.readouterr().out
    report = json.loads(Path("out/check.json").read_text())["bits_per_dim"]
    assert report["data"] == data and report["chosen_by"] == chosen and math.isfinite(report["value"])
    if options:
        assert cli.main(["check", "--model", "bits_factory:exploding", *own, *options]) == 2
        assert "expected a vp schedule for the bound" in capsys.readouterr().err
