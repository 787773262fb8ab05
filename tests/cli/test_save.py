"""`ulam sample --save`: in each format the same samples, and which job and chain each is."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from archives import arrays
from cli_cases import here, told

JOBS = """
[[job]]
chains = 3
seed = -7
labels = "4-6"

[[job]]
chains = 2
first = 40
labels = 9
"""
MODEL = ["--model", "mine:net", "--shape", "1,8,8", "--steps", "2", "--sampler", "ddim"]
COLUMNS = {
    "jobs": [0, 0, 0, 1, 1],
    "chains": [0, 1, 2, 40, 41],
    "seeds": [-7, -7, -7, 0, 0],
    "failed_rows": [-1] * 5,
}
LABELS = [4, 5, 6, 9, 9]

pytestmark = pytest.mark.filterwarnings("ignore:steps")


@pytest.fixture
def jobs(folder: Path) -> Path:
    (folder / "jobs.toml").write_text(JOBS)
    return folder


def test_each_format_says_which_job_and_chain_a_row_is(jobs: Path, monkeypatch):
    assert here(jobs, monkeypatch, *MODEL, "--jobs", "jobs.toml") == 0
    npz = arrays(jobs / "out" / "samples.npz")
    assert {name: npz[name].tolist() for name in COLUMNS} == COLUMNS and npz["arr_1"].tolist() == LABELS
    assert told(jobs)["files"] == ["samples.npz", "grid.png", "report.json"]

    assert here(jobs, monkeypatch, *MODEL, "--jobs", "jobs.toml", "--save", "safetensors") == 0
    assert sorted(os.listdir(jobs / "out")) == ["grid.png", "report.json", "samples.safetensors"]
    found = safetensors.numpy.load_file(jobs / "out" / "samples.safetensors")
    assert {name: found[name].tolist() for name in COLUMNS} == COLUMNS and found["labels"].tolist() == LABELS
    pixels = ((found["x"] + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
    assert found["x"].dtype == np.float32 and (pixels[:, 0] == npz["arr_0"][..., 0]).all()

    assert here(jobs, monkeypatch, *MODEL, "--jobs", "jobs.toml", "--save", "png") == 0
    assert sorted(os.listdir(jobs / "out")) == ["grid.png", "report.json", "samples"]
    assert told(jobs)["files"] == ["samples", "grid.png", "report.json"]
    with (jobs / "out" / "samples" / "samples.csv").open() as file:
        table = list(csv.DictReader(file))
    names = [
        f"{row}-job-{j}-chain-{c}-seed-{s}.png" for row, (j, c, s, _) in enumerate(zip(*COLUMNS.values(), strict=True))
    ]
    assert [row["file"] for row in table] == names and [int(row["label"] or -1) for row in table] == LABELS
    pictures = np.stack([np.asarray(Image.open(jobs / "out" / "samples" / name)) for name in names])
    assert (pictures == npz["arr_0"][..., 0]).all()


def test_each_format_says_which_chain_failed(folder: Path, monkeypatch):
    """A network that is lost in the second chain of the first job, and in the first of the second."""
    (folder / "lost.py").write_text(
        "import torch\n"
        "def net():\n"
        "    return lambda x, t, y: torch.where((y == 5).reshape(-1, 1, 1, 1), torch.nan, x * 0.5)\n"
    )
    (folder / "jobs.toml").write_text(JOBS.replace("labels = 9", 'labels = "5,6"'))
    failed = []
    for save in ("npz", "safetensors", "png"):
        arguments = ["--model", "lost:net", "--shape", "1,8,8", "--steps", "2", "--jobs", "jobs.toml", "--save", save]
        assert here(folder, monkeypatch, *arguments) == 1
        assert [entry["sample"] for entry in told(folder)["chains_failed"]] == [1, 3]
        if save == "npz":
            found = arrays(folder / "out" / "samples.npz")
            failed.append(found["failed_rows"].tolist())
            assert not found["arr_0"][[1, 3]].any() and found["arr_0"][[0, 2, 4]].any()
        elif save == "safetensors":
            found = safetensors.numpy.load_file(folder / "out" / "samples.safetensors")
            failed.append(found["failed_rows"].tolist())
            assert np.isnan(found["x"]).all((1, 2, 3)).tolist() == [False, True, False, True, False]
        else:
            with (folder / "out" / "samples" / "samples.csv").open() as file:
                failed.append([int(row["failed_row"] or -1) for row in csv.DictReader(file)])
    row = failed[0][1]
    assert row >= 0 and failed == [[-1, row, -1, row, -1]] * 3


def test_a_later_run_replaces_pictures_and_nothing_else(folder: Path, monkeypatch, capsys):
    run = [*MODEL, "--save", "png", "--chains"]
    assert here(folder, monkeypatch, *run, "3") == 0 and here(folder, monkeypatch, *run, "2") == 0
    samples = folder / "out" / "samples"
    assert len(list(samples.iterdir())) == 3
    assert here(folder, monkeypatch, *MODEL, "--chains", "2") == 0
    assert not samples.exists() and (folder / "out" / "samples.npz").exists()
    samples.mkdir()
    (samples / "mine.png").touch()
    capsys.readouterr()
    assert here(folder, monkeypatch, *run, "2") == 2
    error = "ulam: error: out: got out, where samples is not of an earlier run, expected another folder\n"
    assert capsys.readouterr().err == error
    assert here(folder, monkeypatch, *MODEL, "--chains", "2") == 0
    assert os.listdir(samples) == ["mine.png"]


def test_pictures_of_what_is_none_are_refused(folder: Path, monkeypatch, capsys):
    assert here(folder, monkeypatch, "--model", "mine:net", "--shape", "4", "--save", "png") == 2
    error = "ulam: error: save: got png for samples of shape [4], expected pictures [1 or 3, H, W]\n"
    assert capsys.readouterr().err == error and not (folder / "out").exists()


@pytest.mark.parametrize("save", ["npz", "png", "safetensors"])
def test_a_full_disk_leaves_the_samples_elsewhere_whole(save: str, folder: Path, monkeypatch, capsys):
    synced, calls = os.fsync, []

    def full(file: int) -> None:
        calls.append(file)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        synced(file)

    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(os, "fsync", full)
    (folder / "out").mkdir()
    (folder / "out" / "report.json").write_text("of an earlier run")
    assert here(folder, monkeypatch, *MODEL, "--chains", "2", "--save", save) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device; everything is in " in error
    assert os.listdir(folder / "out") == ["report.json"]
    assert (folder / "out" / "report.json").read_text() == "of an earlier run"
    rescued = Path(error.rpartition("everything is in ")[2])
    name = {"npz": "samples.npz", "png": "samples", "safetensors": "samples.safetensors"}[save]
    assert sorted(os.listdir(rescued)) == ["grid.png", "report.json", name]
