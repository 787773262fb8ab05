"""`ulam sample --save`: every format holds the same samples, and says which job and chain a row is."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from archives import arrays
from cli_cases import here

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")

NET = """
import torch
def net():
    def call(x, t, y):
        return torch.where((y == 2).view(-1, 1, 1, 1) & (t < 500).view(-1, 1, 1, 1), float("nan"), x * 0.5)
    return call
"""
JOBS = """
[[job]]
chains = 4
labels = "1-4"
first = 5
[[job]]
chains = 2
labels = [7]
seed = -3
"""
COLUMNS = {
    "job": [0, 0, 0, 0, 1, 1],
    "chain": [5, 6, 7, 8, 0, 1],
    "seed": [0, 0, 0, 0, -3, -3],
    "label": [1, 2, 3, 4, 7, 7],
    "failed": [-1, 2, -1, -1, -1, -1],
}


@pytest.fixture
def sampled(folder: Path, monkeypatch):
    (folder / "saved.py").write_text(NET)
    (folder / "jobs.toml").write_text(JOBS)

    def run(save: str, out: str) -> Path:
        options = f"--model saved:net --shape 1,4,4 --steps 4 --jobs jobs.toml --save {save}"
        assert here(folder, monkeypatch, *options.split(), "--out", out) == 1  # one chain fails
        report = json.loads((folder / out / "report.json").read_text())
        there = sorted(path.name for path in (folder / out).iterdir())
        assert there == sorted(report["files"]) and len(there) == 3
        return folder / out

    return run


def test_all_formats_hold_the_same_rows(sampled):
    told = arrays(sampled("npz", "a") / "samples.npz")
    whole = safetensors.numpy.load_file(sampled("safetensors", "b") / "samples.safetensors")
    pictures = sampled("png", "c") / "samples"
    rows = list(csv.DictReader((pictures / "samples.csv").read_text().splitlines()))
    assert told["arr_1"].tolist() == COLUMNS["label"]
    for name, values in COLUMNS.items():
        assert whole[name].tolist() == values == [int(row[name]) for row in rows]
        assert name == "label" or told[name].tolist() == values
    assert np.isnan(whole["x"][1]).all() and np.isfinite(whole["x"][[0, 2, 3, 4, 5]]).all()
    for i, row in enumerate(rows):
        expected = np.nan_to_num((whole["x"][i, 0] + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
        assert (told["arr_0"][i, :, :, 0] == expected).all()
        with Image.open(pictures / row["file"]) as picture:
            assert (np.asarray(picture) == expected).all()
    assert rows[4]["file"] == "job-001-chain-000000000000-seed--3.png"


def test_a_run_removes_the_samples_of_an_earlier_one(sampled):
    """They are not what the new report is about."""
    assert (sampled("npz", "out") / "samples.npz").exists()
    assert not (sampled("safetensors", "out") / "samples.npz").exists()


def test_a_folder_of_pictures_is_never_written_over(sampled, folder: Path, monkeypatch, capsys):
    sampled("png", "out")
    options = "--model saved:net --shape 1,4,4 --steps 4 --jobs jobs.toml --save png --out out"
    assert here(folder, monkeypatch, *options.split()) == 2
    assert "where samples is no file" in capsys.readouterr().err
