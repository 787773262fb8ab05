"""`ulam compare`: errors against exact answers, the picture, what is refused, what an interrupt leaves."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import ulam
from cli_cases import exit_and_error, wait_for_calls
from processes import started
from ulam.cli.comparison import compared, energy_coefficient
from ulam.cli.main import main
from ulam.jobs.tables import make_job
from ulam.models.built_in import Model

pytest.importorskip("matplotlib")

GAUSS = """
import torch, ulam

SCHEDULE = ulam.schedules.vp_linear(1000)
VARIANCES = torch.tensor(SCHEDULE.variances, dtype=torch.float32)

def make():
    def net(x, t):
        v = VARIANCES[t.round().long()].view(-1, *[1] * (x.dim() - 1))
        return v.sqrt() * x / (0.25 * (1 - v) + v)
    return net

def make_nan():
    return lambda x, t: x * float("nan")
"""


@pytest.fixture
def gauss(folder: Path, monkeypatch) -> Path:
    (folder / "gauss.py").write_text(GAUSS)
    monkeypatch.chdir(folder)
    return folder


def gaussian() -> Model:
    """Data of N(0, 1/4), whose exact flow maps z at full noise to z / 2 (nearly: alpha_T is 0.006)."""
    namespace: dict = {}
    exec(GAUSS, namespace)
    return Model("gauss", ulam.Denoiser(namespace["make"](), namespace["SCHEDULE"]), (2,))


def test_errors_are_those_against_the_exact_flow_and_law():
    model = gaussian()
    specs = {
        (name, steps): make_job({"sampler": name, "steps": steps, "chains": 400}, model, torch.device("cpu"))
        for name in ("dpmpp_2m", "ddpm")
        for steps in (4, 16)
    }
    engine = ulam.Engine(model.denoiser, (2,), 400)
    done: list[int] = []
    found = compared(model, specs, 60, engine, done.append)
    z = ulam.noise.normal((2,), seed=0, chains=400, tag=1)
    for steps in (4, 16):
        cell = found.cells["dpmpp_2m", steps]
        exact = float((cell.x - z / 2).square().mean().sqrt())
        assert cell.error == pytest.approx(exact, rel=0.1) and cell.chance is None
        assert cell.evaluations == steps and cell.seconds > 0
    assert found.cells["dpmpp_2m", 4].error > 4 * found.cells["dpmpp_2m", 16].error
    few, many = found.cells["ddpm", 4], found.cells["ddpm", 16]
    assert few.error > 3 * many.error and few.chance == many.chance and 0 < few.chance < 0.01
    assert not torch.equal(found.long_runs["ddpm"][:400], found.long_runs["ddpm"][400:])
    assert sum(done) > 400 * (2 * (4 + 16) + 3 * 60)


def test_the_energy_coefficient_is_0_for_one_law_and_1_for_laws_apart():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 1000, 3, generator=generator)
    assert energy_coefficient(x, y) < 0.005 and energy_coefficient(x, x) == pytest.approx(0, abs=1e-12)
    assert energy_coefficient(x, y + 1000) > 0.99
    # two points at distance 1: D^2 = 2, 2 E|X - Y| = 2; a fair coin against one side: D^2 = 2/2 - 1/2 = 1/2, of 1
    assert energy_coefficient(torch.zeros(2, 1), torch.ones(2, 1)) == pytest.approx(1.0)
    assert energy_coefficient(torch.tensor([[0.0], [1.0]]), torch.zeros(2, 1)) == pytest.approx(0.5)


@pytest.mark.parametrize("shape, ending", [("1,6,6", "png"), ("2", "pdf"), ("1", "png"), ("5", "png")])
def test_a_picture_of_every_kind_of_sample(gauss: Path, capsys, shape: str, ending: str):
    out = f"found.{ending}"
    given = ["--samplers", "ddim,ddpm", "--steps", "3,5", "--chains", "5", "--reference", "10"]
    assert main(["compare", "--model", "gauss:make", "--shape", shape, *given, "--out", out]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[2:6]] == [
        [name, steps, steps] for name in ("ddim", "ddpm") for steps in ("3", "5")
    ]
    assert lines[-1] == f"ulam: wrote {out}" and len(lines) <= 15
    if ending == "png":
        picture = Image.open(out)
        assert picture.width > 400 and len(picture.convert("L").getcolors()) > 3
    else:
        assert Path(out).read_bytes().startswith(b"%PDF")


def test_samples_that_are_not_finite_are_told(gauss: Path, capsys):
    given = ["--samplers", "ddim", "--steps", "3", "--chains", "5", "--reference", "10"]
    assert main(["compare", "--model", "gauss:make_nan", "--shape", "2", *given, "--out", "f.png"]) == 0
    assert "nan" in capsys.readouterr().out


@pytest.mark.parametrize(
    "given, says",
    [
        (["--out", "f.jpg"], "out: got f.jpg, expected a file that ends in .png or .pdf"),
        (["--out", "gauss.py/f.png"], "out: got gauss.py"),
        (["--steps", "5,0"], "steps: got '5,0'"),
        (["--steps", "200"], "reference: got 100, expected more steps than the 200"),
        (["--reference", "1"], "reference: got 1"),
        (["--samplers", "ddim,"], "samplers: got 'ddim,'"),
        (["--samplers", "ddmi"], "sampler: got 'ddmi'"),
        (["--samplers", "repaint"], "samplers: got repaint"),
        (["--chains", "0"], "chains: got 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_one_line_and_nothing_is_left(gauss: Path, capsys, given, says):
    before = sorted(os.listdir(gauss))
    code, error = exit_and_error(capsys, ["compare", "--model", "gauss:make", "--shape", "2", "--out", "f.png", *given])
    assert code == 2 and error.count("\n") == 1 and says in error
    assert sorted(name for name in os.listdir(gauss) if name != "__pycache__") == before


def test_without_matplotlib_one_line_says_what_to_do(gauss: Path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, error = exit_and_error(capsys, ["compare", "--model", "gauss:make", "--shape", "2", "--out", "f.png"])
    assert code == 2 and error.count("\n") == 1 and "pip install 'ulam[plots]'" in error


def test_ctrl_c_leaves_nothing_and_says_one_line(folder: Path):
    command = [sys.executable, "-m", "ulam", "compare", "--model", "mine:slow", "--shape", "3,8,8", "--out", "f.png"]
    process = started(command, folder, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    wait_for_calls(process, folder, 2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and error.splitlines()[-1] == "ulam: interrupted" and "Traceback" not in error
    assert sorted(name for name in os.listdir(folder) if name != "__pycache__") == ["calls", "mine.py"]
