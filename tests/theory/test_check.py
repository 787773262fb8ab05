"""`ulam check`: estimates against closed forms of linear denoisers, verdicts on whole and broken networks."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from ulam import Denoiser, bounds, schedules, sure
from ulam.cli import bits
from ulam.cli import main as cli
from ulam.estimation import measure as check
from ulam.jobs.models import load_model
from ulam.models.mnist import load_mnist5k

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")

VE = schedules.ve(0.01, 50.0)
N, SIGMA = 12, 0.6
ROOT = torch.randn(N, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 3
COVARIANCE = ROOT @ ROOT.T + 0.05 * torch.eye(N, dtype=torch.float64)
EYE = torch.eye(N, dtype=torch.float64)
IDEAL = COVARIANCE @ torch.linalg.inv(COVARIANCE + SIGMA**2 * EYE)
SKEW = IDEAL + 0.3 * torch.randn(N, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def linear(matrix: torch.Tensor) -> Denoiser:
    return Denoiser(lambda x, t: x @ matrix.T, VE, predicts="x0")


def gaussian(count: int) -> torch.Tensor:
    z = torch.randn(count, N, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return z @ torch.linalg.cholesky(COVARIANCE).T


def words(level: check.MeasuredLevel) -> str:
    return "; ".join(text for passed, text in level.verdicts.values() if not passed)


@pytest.mark.parametrize("matrix", [IDEAL, SKEW, 1.2 * IDEAL, EYE], ids=["ideal", "skew", "scaled", "identity"])
def test_every_estimate_is_the_closed_form_of_a_linear_denoiser(matrix: torch.Tensor) -> None:
    (level,) = check.measure(linear(matrix), gaussian(20_000), [SIGMA], batch=5000)
    off = matrix - EYE
    error = float((off @ COVARIANCE @ off.T + SIGMA**2 * matrix @ matrix.T).trace()) / N
    predicted = SIGMA**2 * float(matrix.trace()) / N
    power = matrix @ (COVARIANCE + SIGMA**2 * EYE) @ matrix.T
    variance = COVARIANCE.diagonal()
    expected = {
        "sure": error,
        "error": error,
        "gap": 0.0,
        "predicted": predicted,
        "calibration": predicted / error,
        "slope": float((matrix @ COVARIANCE).trace() / power.trace()),
        "asymmetry": float((matrix - matrix.T).norm() / (2 * matrix.norm())),
    }
    for name, value in expected.items():
        found = getattr(level, name)
        assert abs(found.value - value) <= 4 * found.stderr + 1e-9, (name, found, value)
    assert level.gap.stderr < 0.02 * error and level.sure.stderr < 0.02 * error
    assert level.linear == pytest.approx(float((SIGMA**2 * variance / (SIGMA**2 + variance)).mean()), rel=0.05)


def test_verdicts_on_linear_denoisers_are_those_of_the_closed_forms() -> None:
    x = gaussian(4000)
    found = {name: next(iter(check.measure(linear(matrix), x, [SIGMA]))) for name, matrix in {
        "ideal": IDEAL, "skew": SKEW, "identity": EYE, "zero": 0 * EYE, "nan": math.nan * EYE,
    }.items()}  # fmt: skip
    assert found["ideal"].passed and words(found["ideal"]) == ""
    assert "score is no gradient" in words(found["skew"])
    assert words(found["identity"]).startswith("goes too far") and "worse than a linear" in words(found["identity"])
    assert "over-confident (variance 0.00 of the error)" in words(found["zero"])
    assert not any(passed for passed, _ in found["nan"].verdicts.values())
    assert all(level.verdicts["sure"][0] for name, level in found.items() if name != "nan")  # SURE trusts no model


def test_a_network_that_hides_its_derivative_is_not_measured() -> None:
    hidden = Denoiser(lambda x, t: (x @ IDEAL.T).detach(), VE, predicts="x0")
    with pytest.raises(TypeError, match=r"net: got <lambda>, whose derivative in x .* off finite differences"):
        list(check.measure(hidden, gaussian(4000), [SIGMA]))


def test_mirrored_noise_is_normal_and_cancels_in_length() -> None:
    x = torch.zeros(4000, N, dtype=torch.float64)
    z = check._noise(x, 0, seed=0, row=0)
    for half in (z[::2], z[1::2]):
        assert stats.kstest(half.flatten().numpy(), "norm").pvalue > 1e-3
        assert stats.kstest(half.square().sum(1).numpy(), stats.chi2(N).cdf).pvalue > 1e-3
    torch.testing.assert_close(z[1::2] / z[1::2].norm(dim=1, keepdim=True), -z[::2] / z[::2].norm(dim=1, keepdim=True))
    lengths = z.square().sum(1).view(-1, 2)
    np.testing.assert_allclose(
        stats.chi2(N).cdf(lengths[:, 0].numpy()), stats.chi2(N).sf(lengths[:, 1].numpy()), rtol=1e-4
    )
    wide = check._noise(torch.zeros(400, 784), 0, seed=0, row=0).square().sum(1).view(-1, 2) / 784
    assert wide.mean(1).std() < 0.05 * wide[:, 0].std()


def test_noise_does_not_depend_on_the_batch() -> None:
    x = gaussian(64)
    whole, parts = (next(iter(check.measure(linear(SKEW), x, [SIGMA], batch=batch))) for batch in (64, 10))
    assert parts.error.value == pytest.approx(whole.error.value, rel=1e-12)


def test_noisy_data_give_sure_and_calibration_without_the_clean() -> None:
    y = gaussian(500) + SIGMA * torch.randn(500, N, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (level,) = check.measure(linear(IDEAL), y, [SIGMA], noisy=True, batch=500, seed=3)
    risk = sure.estimate(linear(IDEAL), y, SIGMA, samples=2, seed=3)
    assert level.sure.value == pytest.approx(risk.value, rel=1e-12)
    assert level.sure.stderr == pytest.approx(risk.stderr, rel=1e-12)
    assert level.error is level.gap is level.slope is level.linear is None and level.passed
    (wrong,) = check.measure(linear(0.8 * IDEAL), y, [SIGMA], noisy=True, batch=500)
    assert set(wrong.verdicts) == {"calibration", "symmetry"} and not wrong.verdicts["calibration"][0]


# ------------------------------------------------------------------------------------------------------ the digits


def held_out(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    _, digits = load_mnist5k()
    rows = torch.arange(count) * 500 // count
    return digits.images[rows], digits.labels[rows]


@pytest.mark.long
def test_sure_tracks_the_true_error_of_the_digits_denoiser() -> None:
    """At levels where 320 examples tell SURE to about 2%; `docs/check/check.json` has higher ones."""
    x, labels = held_out(320)
    found = list(check.measure(load_model("digits").denoiser, x, [0.03, 0.05, 0.08, 0.13, 0.2, 0.3], {"y": labels}))
    for level in found:
        assert level.gap.stderr < 0.025 * level.error.value
        assert level.sure.value == pytest.approx(level.error.value, rel=0.05), level
        assert level.passed, words(level)
        assert level.error.value < level.linear / 2


BROKEN = """
import torch
import ulam
from ulam.models import load_digits

net = load_digits()
schedule = ulam.schedules.vp_linear(1000, 1e-4, 0.02)
def wrong_time(): return lambda x, t, y: net(x, 0.7 * t, y)
def scaled(): return lambda x, t, y: 1.1 * net(x, t, y)
def rough(): return lambda x, t, y: net(x, t, y) + 0.3 * torch.sin(20 * x.flip(3))
def whole(): return net
"""
EXPECTED = {"wrong_time": "over-confident", "scaled": "over-confident", "rough": "score is no gradient"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    x, labels = held_out(24)
    pixels = ((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "data.npz", arr_0=pixels, arr_1=labels.numpy())
    (tmp_path / "broken_digits.py").write_text(BROKEN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


OWN = (
    "--shape",
    "1,28,28",
    "--data",
    "data.npz",
    "--pixels",
    "-1",
    "1",
    "--levels",
    "2",
    "--sigmas",
    "0.5",
    "1",
    "--out",
    "out",
)


@pytest.mark.parametrize("factory", EXPECTED)
def test_a_broken_denoiser_is_exposed(folder: Path, capsys: pytest.CaptureFixture[str], factory: str) -> None:
    code = cli.main(["check", "--model", f"broken_digits:{factory}", "--no-plots", *OWN])
    told = capsys.readouterr()
    assert code == 1 and EXPECTED[factory] in told.out and "check failed at sigma" in told.err
    assert not json.loads((folder / "out" / "check.json").read_text())["passed"]


def test_a_whole_one_passes_and_leaves_a_report_and_a_picture(folder: Path) -> None:
    command = [sys.executable, "-m", "ulam", "check", "--model", "broken_digits:whole", *OWN]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    lines = [line.split() for line in ran.stdout.splitlines()]
    assert [line[0] for line in lines[2:4]] == ["0.5", "1"] and all(line[-1] == "ok" for line in lines[2:4])
    report = json.loads((folder / "out" / "check.json").read_text())
    assert report["passed"] and [level["sigma"] for level in report["levels"]] == [0.5, 1.0]
    x, labels = held_out(24)
    bound = bounds.vlb(load_model("digits").denoiser, x, {"y": labels}, sampled=bits.STEPS, clip=(-1, 1))
    assert report["bits_per_dim"]["value"] == pytest.approx(bound.value, rel=1e-3)
    assert report["bits_per_dim"]["stderr"] == pytest.approx(bound.stderr, rel=1e-2)
    assert report["bits_per_dim"]["data"] == "256 bins from -1 to 1" and "bound, 256 bins from -1 to 1): " in ran.stdout
    expected = list(check.measure(load_model("digits").denoiser, x, [0.5, 1.0], {"y": labels}))
    for level, found in zip(expected, report["levels"], strict=True):
        assert found["error"]["value"] == pytest.approx(level.error.value, rel=1e-3)
        assert all(verdict["passed"] for verdict in found["verdicts"].values())
    image = np.asarray(Image.open(folder / "out" / "check.png").convert("RGB"))
    assert image.min() < 50 and image.max() > 250


def test_noisy_data_from_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, labels = held_out(20)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    np.savez(folder / "noisy.npz", arr_0=(x + 0.5 * noise).numpy(), arr_1=labels.numpy())
    options = ["--data", "noisy.npz", "--noisy", "0.5", "--out", "out", "--no-plots"]
    assert cli.main(["check", "--model", "digits", *options]) == 0
    report = json.loads((folder / "out" / "check.json").read_text())
    assert report["levels"][0]["error"] is None
    assert report["bits_per_dim"] == {"left_out": "the bound needs clean data"}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (
            ["--model", "broken_digits:whole", "--shape", "1,28,28"],
            "data: got none, expected examples",
        ),
        (["--model", "digits", "--data", "none.npz"], "data: got none.npz, which is no file, expected an npz"),
        (["--model", "digits", "--data", "broken_digits.py"], "expected an npz of plain arrays"),
        (["--model", "digits", "--data", "empty.npz"], "without arr_0, expected"),
        (["--model", "digits", "--data", "small.npz"], "expected float \\[N, 1, 28, 28\\]"),
        (
            ["--model", "digits", "--data", "labels.npz"],
            "got the label 12 in arr_1, expected 0 to 9, the",
        ),
        (["--model", "digits", "--sigmas", "2", "1"], "sigmas: got 2 1"),
        (["--model", "digits", "--sigmas", "0.001", "1"], "sigma: got 0.001, expected numbers in"),
        (["--model", "digits", "--levels", "1"], "levels: got 1"),
        (["--model", "digits", "--chains", "3"], "chains: got 3"),
        (["--model", "digits", "--batch", "3", "--chains", "4"], "batch: got 3, expected an even number"),
        (
            ["--model", "digits", "--bins", "17"],
            "bins: got 17 for data that are not on so many equal levels from -1 to 1",
        ),
        (["--model", "digits", "--bins", "1"], "bins: got 1, expected 2 to 65536 levels"),
        (["--model", "digits", "--bins", "256", "--noisy", "0.5"], "bins: got 256 beside noisy, expected neither"),
        (["--model", "digits", "--continuous", "--noisy", "0.5"], "continuous: got it beside noisy, expected neither"),
        (
            ["--model", "broken_digits:whole", "--shape", "1,8,8", "--data", "small.npz"],
            "pixels: got none for uint8 data, expected what black and white were",
        ),
    ],
)
def test_bad_input_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str], options, named: str) -> None:
    np.savez(folder / "empty.npz", other=np.zeros(3))
    np.savez(folder / "small.npz", arr_0=np.zeros((6, 8, 8, 1), dtype=np.uint8))
    np.savez(folder / "labels.npz", arr_0=np.zeros((6, 1, 28, 28), dtype=np.float32), arr_1=np.arange(6) * 3)
    assert cli.main(["check", *options, "--no-plots", "--out", "out"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and re.search(named, told), told


def test_a_missing_matplotlib_is_said_before_the_work(folder: Path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(["check", "--model", "digits", "--out", "out"]) == 2
    assert "matplotlib: got no such package" in capsys.readouterr().err and not (folder / "out").exists()
