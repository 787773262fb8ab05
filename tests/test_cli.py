"""The command line as a user and as a hostile one meet it, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import ulam

USER_MODULE = """
import os, signal, time
import torch, ulam

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.5))
    def forward(self, x, t, y=None):
        return x * self.scale

def net(): return Net()
def denoiser(): return ulam.Denoiser(Net(), ulam.schedules.vp_cosine(1000), predicts="v")
def none(): return lambda x, t: None
def small(): return lambda x, t: x[:1]
def slow():
    def net(x, t):
        time.sleep(0.2)
        return x * 0.5
    return net
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(USER_MODULE)
    return tmp_path


def ulam_command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ulam", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_digits_run_leaves_samples_grid_and_report(folder: Path):
    options = [
        "--model",
        "digits",
        "--steps",
        "4",
        "--chains",
        "12",
        "--labels",
        "0-9",
        "--guidance",
        "2",
        "--seed",
        "3",
        "--out",
        "out",
    ]
    ran = ulam_command(folder, "sample", *options)
    assert ran.returncode == 0, ran.stderr
    assert sorted(p.name for p in (folder / "out").iterdir()) == ["grid.png", "report.json", "samples.npz"]
    samples = np.load(folder / "out" / "samples.npz")
    assert samples["arr_0"].dtype == np.uint8 and samples["arr_0"].shape == (12, 28, 28, 1)
    assert samples["arr_1"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report["backend"] == "cpu" and report["fallbacks"] == [] and report["evaluations"] == 48
    assert report["seconds"] > report["network_seconds"] > 0
    assert report["versions"]["ulam"] == ulam.__version__

    # The samples are those of the library, and the grid shows them in order, ten a row, enlarged twice.
    from ulam.loading import load_model

    labels = torch.arange(12) % 10
    model = load_model("digits")
    x = ulam.sample(
        model.denoiser,
        ulam.samplers.DDIM(steps=4),
        model.shape,
        12,
        3,
        cond={"y": labels},
        uncond={"y": torch.full_like(labels, 10)},
        guidance=2.0,
        progress=False,
    )
    expected = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.abs(expected.astype(int) - samples["arr_0"].astype(int)).max() <= 1
    grid = np.asarray(Image.open(folder / "out" / "grid.png"))
    assert grid.shape == (2 * 58 + 2, 10 * 58 + 2)
    assert (grid[60:116, 60:116] == samples["arr_0"][11, :, :, 0].repeat(2, 0).repeat(2, 1)).all()


def test_own_network_with_weights(folder: Path):
    safetensors.torch.save_file({"scale": torch.tensor(0.25)}, folder / "w.safetensors")
    options = [
        "--model",
        "mine:net",
        "--weights",
        "w.safetensors",
        "--shape",
        "3,8,8",
        "--steps",
        "3",
        "--chains",
        "5",
        "--clip",
        "-1",
        "1",
        "--out",
        "out",
    ]
    ran = ulam_command(folder, "sample", *options)
    assert ran.returncode == 0, ran.stderr
    x = ulam.sample(
        ulam.Denoiser(lambda x, t: x * 0.25, ulam.schedules.vp_linear(1000)),
        ulam.samplers.DDIM(steps=3, clip=(-1, 1)),
        (3, 8, 8),
        5,
        progress=False,
    )
    expected = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert (np.load(folder / "out" / "samples.npz")["arr_0"] == expected).all()


def test_own_denoiser_and_samples_that_are_no_pictures(folder: Path):
    ran = ulam_command(
        folder, "sample", *["--model", "mine:denoiser", "--shape", "7", "--steps", "3", "--chains", "5", "--out", "out"]
    )
    assert ran.returncode == 0, ran.stderr
    assert sorted(p.name for p in (folder / "out").iterdir()) == ["report.json", "samples.npz"]
    assert np.load(folder / "out" / "samples.npz")["arr_0"].dtype == np.float32


def broken_weights(folder: Path) -> None:
    whole = safetensors.torch.save({"scale": torch.zeros(1000)})
    (folder / "truncated.safetensors").write_bytes(whole[:-7])
    safetensors.torch.save_file({"other": torch.zeros(1)}, folder / "other.safetensors")
    torch.save({"scale": torch.tensor(1.0)}, folder / "pickled.pt")


OWN = "--model mine:net --shape 3,8,8 --out out"
BAD = {
    "no command": "",
    "unknown command": "simple",
    "no out": "sample --model digits",
    "unknown model": "sample --model dog --out out",
    "unknown module": "sample --model nowhere:net --out out",
    "unknown factory": "sample --model mine:nothing --out out",
    "no shape": "sample --model mine:net --out out",
    "bad shape": "sample --model mine:net --shape 3x8 --out out",
    "zero shape": "sample --model mine:net --shape 3,0 --out out",
    "too many chains": "sample --model digits --chains 99999999999999999999 --out out",
    "zero chains": "sample --model digits --chains 0 --out out",
    "negative chains": "sample --model digits --chains -4 --out out",
    "zero steps": "sample --model digits --steps 0 --out out",
    "negative steps": "sample --model digits --steps=-1 --out out",
    "too many steps": "sample --model digits --steps 1001 --out out",
    "unknown sampler": "sample --model digits --sampler dog --out out",
    "option of another sampler": "sample --model digits --sampler ddpm --eta 1 --out out",
    "unknown label": "sample --model digits --labels 3,10 --out out",
    "bad labels": "sample --model digits --labels 9-0 --out out",
    "nan guidance": "sample --model digits --labels 0-9 --guidance nan --out out",
    "guidance without labels": "sample --model digits --guidance 2 --out out",
    "nan eta": "sample --model digits --eta nan --out out",
    "bad clip": "sample --model digits --clip 1 -1 --out out",
    "bad schedule": f"sample {OWN} --schedule vp_linear(1000,nan)",
    "no schedule": f"sample {OWN} --schedule __import__('os')",
    "bad prediction": f"sample {OWN} --predicts noise",
    "bad device": f"sample {OWN} --device moon",
    "missing device": f"sample {OWN} --device cuda:63",
    "bad backend": f"sample {OWN} --backend dog",
    "huge seed": f"sample {OWN} --seed 99999999999999999999999",
    "missing weights": f"sample {OWN} --weights nowhere.safetensors",
    "truncated weights": f"sample {OWN} --weights truncated.safetensors",
    "pickled weights": f"sample {OWN} --weights pickled.pt",
    "foreign weights": f"sample {OWN} --weights other.safetensors",
    "folder is a file": "sample --model digits --steps 1 --chains 1 --out mine.py",
    "folder cannot be made": "sample --model digits --steps 1 --chains 1 --out /proc/none",
    "network returns None": "sample --model mine:none --shape 3,8,8 --steps 2 --out out/deep",
    "network returns a wrong shape": "sample --model mine:small --shape 3,8,8 --steps 2 --out out",
}


def test_bad_input_is_one_line_and_exit_code_2_and_writes_nothing(folder: Path, capsys, monkeypatch):
    """All in one process: importing torch for each would take minutes."""
    from ulam import cli

    broken_weights(folder)
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    for name, arguments in BAD.items():
        try:
            code = cli.main(arguments.split())
        except SystemExit as stop:
            code = stop.code
        told = capsys.readouterr().err
        assert code == 2, name
        assert told.startswith("ulam: error: ") and told.count("\n") == 1, (name, told)
        assert "Traceback" not in told, name
        after = sorted(p for p in folder.iterdir() if p.name != "__pycache__")
        assert after == before, name


def test_one_of_them_as_a_process(folder: Path):
    ran = ulam_command(folder, "sample", *BAD["network returns None"].split()[1:])
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1 and not (folder / "out").exists()


def interrupt(folder: Path, *arguments: str) -> tuple[int, str]:
    """Start a run and press Ctrl-C once it has said what it does."""
    command = [sys.executable, "-m", "ulam", "sample", "--model", "mine:slow", "--shape", "3,8,8", *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # ignored in background jobs
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def test_ctrl_c_before_any_sample_writes_nothing(folder: Path):
    code, err = interrupt(folder, "--steps", "100", "--chains", "4", "--out", "out")
    assert code == 130 and "0 of 4 samples written" in err and "Traceback" not in err
    assert not (folder / "out").exists()


def test_ctrl_c_keeps_the_samples_that_are_finished(folder: Path):
    code, err = interrupt(folder, "--steps", "2", "--chains", "60", "--slots", "2", "--out", "out")
    assert code == 130 and "Traceback" not in err
    written = np.load(folder / "out" / "samples.npz")["arr_0"]
    assert 0 < len(written) < 60 and f"{len(written)} of 60 samples written" in err
    assert json.loads((folder / "out" / "report.json").read_text())["chains"] == len(written)


def test_full_disk_leaves_no_file(folder: Path, monkeypatch):
    from ulam import output

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output.np, "savez_compressed", full)
    (folder / "out").mkdir()
    with pytest.raises(OSError, match="No space left"):
        output.write_run(folder / "out", torch.zeros(2, 1, 4, 4), None, None, {})
    assert list((folder / "out").iterdir()) == []


def test_samples_that_are_not_finite_are_reported(folder: Path, monkeypatch, capsys):
    from ulam import cli

    (folder / "broken.py").write_text("def net():\n    return lambda x, t: x * float('nan')\n")
    monkeypatch.chdir(folder)
    assert (
        cli.main(
            ["sample", "--model", "broken:net", "--shape", "1,4,4", "--steps", "2", "--chains", "3", "--out", "out"]
        )
        == 0
    )
    assert "3 samples are not finite" in capsys.readouterr().err
    assert json.loads((folder / "out" / "report.json").read_text())["not_finite"] == [0, 1, 2]


def test_info_names_every_backend(folder: Path):
    ran = ulam_command(folder, "info", "--json")
    facts = json.loads(ran.stdout)
    assert ran.returncode == 0 and facts["backends"].keys() == {"cpu", "triton", "cuda", "reference"}
    assert facts["backends"]["cpu"] == "usable"
    assert all(len(reason) > 5 for reason in facts["backends"].values())
