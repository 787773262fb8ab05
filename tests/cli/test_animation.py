"""`ulam sample`'s pictures of chains: animations, previews, grids of several jobs, points of a plane."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ulam
from cli_cases import exit_and_error, here
from ulam.cli.frames import FRAMES, Frames
from ulam.cli.scatter import span_of
from ulam.pictures import grid, same_size, titled, to_pixels

STRIP = 21  # pixels of a title
TWO_JOBS = """
[[job]]
steps = 5
chains = 4
[[job]]
sampler = "ddpm"
steps = 6
chains = 2
seed = 3
"""


def own() -> ulam.Denoiser:
    return ulam.Denoiser(lambda x, t: x * 0.5, ulam.schedules.vp_linear(1000))


def test_frames_hold_the_states_of_the_chains_on_their_way(tmp_path: Path):
    engine = ulam.Engine(own(), (3, 8, 8), slots=3)  # fewer than chains: groups of them begin later
    program = ulam.samplers.DDIM(5).program(own().schedule)
    frames = Frames(tmp_path / "f.gif", "x", (3, 8, 8))
    job = engine.submit(program, 7, 0, callback=frames)
    frames.jobs, frames.titles = [job], ["title"]
    results = engine.run()[job]
    for at in range(1, 6):
        expected = ulam.sample(own(), program[:at], (3, 8, 8), 7, 0, slots=3, progress=False)
        assert torch.equal(frames._found[0, at], expected)
    frames.write([results])
    with Image.open(tmp_path / "f.gif") as made:
        assert made.n_frames == 6
        made.seek(5)
        last = np.asarray(made.convert("RGB")).astype(int)
        assert made.info["duration"] > 1000
    expected_last = np.asarray(titled([("title: result", grid(to_pixels(results), 3))])).astype(int)
    assert last.shape == expected_last.shape and np.abs(last - expected_last)[STRIP:].mean() < 8  # 256 colours


def test_frames_are_of_one_size() -> None:
    small, large = Image.new("L", (3, 5), 200), Image.new("L", (4, 2), 100)
    first, second = same_size([small, large])
    assert first.size == second.size == (4, 5)
    assert np.asarray(first)[:, :3].min() == 200 and not np.asarray(first)[:, 3].any()
    assert np.asarray(second)[:2].min() == 100 and not np.asarray(second)[2:].any()


def test_a_long_run_has_few_frames_and_jobs_end_together(folder: Path, monkeypatch):
    (folder / "jobs.toml").write_text(TWO_JOBS.replace("steps = 6", "steps = 200"))
    given = "--model mine:half --shape 1,8,8 --jobs jobs.toml --animate way.gif --preview x --slots 3"
    assert here(folder, monkeypatch, *given.split()) == 0
    with Image.open("way.gif") as made:
        assert 20 < made.n_frames <= FRAMES + 1
    assert not Path("out/previews").exists()


def test_previews_by_themselves_are_about_ten(folder: Path, monkeypatch):
    given = "--model mine:half --shape 1,8,8 --steps 40 --chains 4 --preview x"
    assert here(folder, monkeypatch, *given.split()) == 0
    names = sorted(os.listdir("out/previews"))
    assert len(names) == 10 and names[0] == "job-000-row-0003.png"
    program = ulam.samplers.DDIM(40).program(own().schedule)
    expected = grid(to_pixels(ulam.sample(own(), program[:4], (1, 8, 8), 4, 0, progress=False)), 2)
    assert np.array_equal(np.asarray(Image.open(f"out/previews/{names[0]}")), np.asarray(expected))


def test_animations_and_previews_share_a_callback(folder: Path, monkeypatch):
    given = "--model mine:half --shape 1,8,8 --steps 90 --chains 4 --preview-every 10 --animate f.gif"
    assert here(folder, monkeypatch, *given.split()) == 0
    assert [name[-8:-4] for name in sorted(os.listdir("out/previews"))] == [f"{k:04d}" for k in range(9, 90, 10)]
    with Image.open("f.gif") as made:
        assert made.n_frames == 90 // 3 + 1


def test_a_grid_of_several_jobs_keeps_them_apart_under_their_titles(folder: Path, monkeypatch):
    (folder / "jobs.toml").write_text(TWO_JOBS)
    given = "--model mine:half --shape 1,8,8 --jobs jobs.toml"
    assert here(folder, monkeypatch, *given.split()) == 0
    made = np.asarray(Image.open("out/grid.png"))
    first = ulam.sample(own(), ulam.samplers.DDIM(5), (1, 8, 8), 4, 0, progress=False)
    second = ulam.sample(own(), ulam.samplers.DDPM(steps=6), (1, 8, 8), 2, 3, progress=False)
    top = STRIP
    for x in (first, second):
        expected = np.asarray(grid(to_pixels(x), 2))
        height, width = expected.shape
        assert np.array_equal(made[top : top + height, :width], expected)
        assert made[top - STRIP : top].max() > 200  # letters
        top += height + STRIP
    assert made.shape[0] == top - STRIP


@pytest.mark.parametrize("shape", ["2", "1,1,2"])
def test_points_of_a_plane_are_drawn_and_animated(folder: Path, monkeypatch, shape: str):
    pytest.importorskip("matplotlib")
    given = ["--model", "mine:half", "--shape", shape, "--steps", "4", "--chains", "30"]
    shown = ["--animate", "f.gif"] if shape == "2" else []
    assert here(folder, monkeypatch, *given, *shown) == 0
    files = json.loads(Path("out/report.json").read_text())["files"]
    assert "scatter.png" in files
    with Image.open("out/scatter.png") as made:
        assert made.width > 250
    if shown:
        with Image.open("f.gif") as made:
            assert made.n_frames == 5
    assert here(folder, monkeypatch, "--model", "mine:half", "--shape", "1,8,8", "--steps", "4", "--chains", "3") == 0
    assert "scatter.png" not in os.listdir("out"), "it would be of other samples"


def test_without_matplotlib_points_are_saved_without_a_picture(folder: Path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    given = ["--model", "mine:half", "--shape", "2", "--steps", "4", "--chains", "3"]
    assert here(folder, monkeypatch, *given) == 0
    assert sorted(os.listdir("out")) == ["report.json", "samples.npz"]
    code, error = exit_and_error(capsys, ["sample", *given, "--animate", "f.gif", "--out", "out"])
    assert code == 2 and error.count("\n") == 1 and "pip install 'ulam[plots]'" in error


def test_axes_are_of_one_length_around_all_finite_points():
    points = torch.tensor([[0.0, 0.0], [4.0, 1.0], [float("nan"), 9.0]])
    (a, b), (c, d) = span_of(points)
    assert b - a == pytest.approx(d - c) and a < 0 and b > 4 and (c + d) / 2 == pytest.approx(0.5)
    assert span_of(points[2:]) == ((-1.0, 1.0), (-1.0, 1.0))


@pytest.mark.parametrize(
    "given, says",
    [
        ("--shape 1,8,8 --animate f.png", "animate: got f.png, expected a file that ends in .gif"),
        ("--shape 5 --animate f.gif", "animate: got it for samples of shape [5]"),
        ("--shape 1,8,8 --animate nowhere/f.gif", "animate: got nowhere/f.gif"),
        ("--shape 1,8,8 --animate mine.py/f.gif", "animate: got mine.py/f.gif"),
        ("--shape 2 --preview x", "preview: got it for samples of shape [2]"),
        ("--shape 1,8,8 --preview eps", "preview: invalid choice"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_left(folder: Path, monkeypatch, capsys, given: str, says: str):
    monkeypatch.chdir(folder)
    code, error = exit_and_error(capsys, ["sample", "--model", "mine:half", *given.split(), "--out", "out"])
    assert code == 2 and error.count("\n") == 1 and says in error
    assert not (folder / "out").exists()
