"""The command line from end to end: whole runs, and bad input reported in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import ulam
from archives import arrays
from cli_cases import ulam_command

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")


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
    samples = arrays(folder / "out" / "samples.npz")
    assert samples["arr_0"].dtype == np.uint8 and samples["arr_0"].shape == (12, 28, 28, 1)
    assert samples["arr_1"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report["backend"] == "cpu" and report["fallbacks"] == [] and report["evaluations"] == 48
    assert report["seconds"] > report["network_seconds"] > 0
    assert report["versions"]["ulam"] == ulam.__version__

    # The samples are those of the library, and the grid shows them in order, ten a row, enlarged twice.
    from ulam.jobs.models import load_model

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
    assert (arrays(folder / "out" / "samples.npz")["arr_0"] == expected).all()


def test_own_denoiser_and_samples_that_are_no_pictures(folder: Path):
    ran = ulam_command(
        folder, "sample", *["--model", "mine:denoiser", "--shape", "7", "--steps", "3", "--chains", "5", "--out", "out"]
    )
    assert ran.returncode == 0, ran.stderr
    assert sorted(p.name for p in (folder / "out").iterdir()) == ["report.json", "samples.npz"]
    assert arrays(folder / "out" / "samples.npz")["arr_0"].dtype == np.float32


def broken_weights(folder: Path) -> None:
    whole = safetensors.torch.save({"scale": torch.zeros(1000)})
    (folder / "truncated.safetensors").write_bytes(whole[:-7])
    safetensors.torch.save_file({"other": torch.zeros(1)}, folder / "other.safetensors")
    torch.save({"scale": torch.tensor(1.0)}, folder / "pickled.pt")


def broken_jobs(folder: Path) -> None:
    (folder / "empty.toml").write_text("")
    (folder / "other.toml").write_text("[task]\nsteps = 3\n")
    (folder / "bad.toml").write_text("[[job]]\nsteps = 3\n[[job]]\nchains = 2.5\n")
    Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(folder / "known.png")


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
    "no jobs file": f"sample {OWN} --jobs nowhere.toml",
    "jobs file is not TOML": f"sample {OWN} --jobs mine.py",
    "jobs file without jobs": f"sample {OWN} --jobs empty.toml",
    "jobs file with another table": f"sample {OWN} --jobs other.toml",
    "bad job": f"sample {OWN} --jobs bad.toml",
    "option of no sampler": f"sample {OWN} --option dog=3",
    "option without a value": f"sample {OWN} --option order",
    "bad option": f"sample {OWN} --sampler unipc --option order=ten",
    "clip and threshold": f"sample {OWN} --clip -1 1 --threshold 0.9",
    "bad threshold": f"sample {OWN} --threshold 2",
    "bad sigmas": f"sample {OWN} --sampler euler --sigmas 1,2",
    "base class of samplers": f"sample {OWN} --sampler gridsampler",
    "bad slots": f"sample {OWN} --slots many",
    "no slots": f"sample {OWN} --slots 0",
    "bad policy": f"sample {OWN} --policy dog",
    "bad interval": "sample --model digits --labels 0-9 --guidance 2 --guidance-interval 5 1 --out out",
    "interval without guidance": "sample --model digits --labels 0-9 --guidance-interval 1 5 --out out",
    "unknown rule": "sample --model digits --labels 0-9 --guidance 2 --guidance-rule apx --out out",
    "bad rule": "sample --model digits --labels 0-9 --guidance 2 --guidance-rule apg:eta=much --out out",
    "bad rescale": "sample --model digits --labels 0-9 --guidance 2 --guidance-rescale 2 --out out",
    "known without repaint": f"sample {OWN} --known known.png --mask known.png",
    "repaint without known": f"sample {OWN} --sampler repaint",
    "no known file": f"sample {OWN} --sampler repaint --known nowhere.png --mask known.png",
    "known of another size": f"sample {OWN} --sampler repaint --known known.png --mask known.png",
    "known is no picture": f"sample {OWN} --sampler repaint --known mine.py --mask known.png",
    "previews of no pictures": "sample --model mine:net --shape 7 --out out --preview-every 2",
    "previews every 0": f"sample {OWN} --preview-every 0",
    "bad autocast": f"sample {OWN} --autocast fp8",
    "folder is a file": "sample --model digits --steps 1 --chains 1 --out mine.py",
    "folder cannot be made": "sample --model digits --steps 1 --chains 1 --out /proc/none",
    "network returns None": "sample --model mine:none --shape 3,8,8 --steps 50 --out out/deep",
    "network returns a wrong shape": "sample --model mine:small --shape 3,8,8 --steps 50 --out out",
}


def test_bad_input_is_one_line_and_exit_code_2_and_writes_nothing(folder: Path, capsys, monkeypatch):
    """All in one process: importing torch for each would take minutes."""
    from ulam.cli import main as cli

    broken_weights(folder)
    broken_jobs(folder)
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


def test_info_names_every_backend(folder: Path):
    ran = ulam_command(folder, "info", "--json")
    facts = json.loads(ran.stdout)
    assert ran.returncode == 0 and facts["backends"].keys() == {"cpu", "triton", "cuda", "reference"}
    assert facts["backends"]["cpu"] == "usable"
    assert all(len(reason) > 5 for reason in facts["backends"].values())
