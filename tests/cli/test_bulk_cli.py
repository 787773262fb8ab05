"""`ulam run`, `status`, `verify`, `export` and `merge`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ulam.cli import main as cli

JOBS = """
model = "mine:net"
shape = [2]
schedule = "vp_cosine(1000)"
slots = 32
unit = 32
[[job]]
sampler = "ddim"
steps = 3
spacing = "trailing"
chains = 96
"""


@pytest.fixture
def jobs(folder: Path, monkeypatch) -> Path:
    monkeypatch.chdir(folder)
    (folder / "jobs.toml").write_text(JOBS)
    return folder


@pytest.fixture
def done(jobs: Path, capsys) -> Path:
    assert cli.main(["run", "jobs.toml", "--out", "out"]) == 0
    capsys.readouterr()
    return jobs


def units(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "units").rglob("*.safetensors")}


def refused(capsys, *arguments: str) -> str:
    """The one line that a refused command prints."""
    assert cli.main(list(arguments)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_the_life_of_a_folder(done, capsys):
    first = units(done / "out")
    assert len(first) == 3
    assert cli.main(["status", "out", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["units"], told["done_units"], told["done_chains"], told["failed"]) == (3, 3, 96, 0)
    assert cli.main(["status", "out"]) == 0
    assert "3 of 3 units, 96 of 96 samples" in capsys.readouterr().out
    assert cli.main(["status", "out", "--watch"]) == 0
    assert cli.main(["verify", "out"]) == 0
    assert cli.main(["verify", "out", "--recompute", "2"]) == 0
    assert cli.main(["run", "out"]) == 0
    assert units(done / "out") == first
    assert cli.main(["export", "out", "--to", "npz", "all.npz"]) == 0
    assert (done / "all.npz").exists()
    assert "all.npz" in refused(capsys, "export", "out", "--to", "npz", "all.npz")


def test_verify_finds_a_changed_byte(done, capsys):
    path = next((done / "out" / "units").rglob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    assert cli.main(["verify", "out"]) == 1
    assert path.stem[:12] in capsys.readouterr().err


def test_merge_gives_what_is_missing(done, capsys):
    first = units(done / "out")
    assert cli.main(["run", "jobs.toml", "--out", "other"]) == 0
    next((done / "other" / "units").rglob("*.safetensors")).unlink()
    assert "other" in refused(capsys, "export", "other", "--to", "npz", "other.npz")
    assert cli.main(["merge", "other", "out"]) == 0
    assert units(done / "other") == first


def test_keys_before_the_tables_are_spelled_either_way(jobs, capsys):
    for spelled in ("channels-last = true", "channels_last = true"):
        (jobs / "jobs.toml").write_text(spelled + JOBS)
        assert cli.main(["run", "jobs.toml", "--out", "out"]) == 0, capsys.readouterr().err
    capsys.readouterr()
    (jobs / "jobs.toml").write_text("channels-last = true\nchannels_last = true" + JOBS)
    assert "expected one of them" in refused(capsys, "run", "jobs.toml", "--out", "out")


@pytest.mark.parametrize(
    "old, new, said",
    [
        ('model = "mine:net"', "", "model: got None"),
        ("slots = 32", "slotz = 32", "slotz"),
        ("steps = 3", "steps = 3\nstepz = 3", "stepz"),
        ("steps = 3", "steps = 3\npriority = 1", "job 1: priority: got 1"),
        ("slots = 32", "slots = 33", "slots: got 33"),
    ],
)
def test_bad_files_get_one_line(jobs, capsys, old, new, said):
    (jobs / "jobs.toml").write_text(JOBS.replace(old, new))
    assert said in refused(capsys, "run", "jobs.toml", "--out", "out")
    assert not (jobs / "out").exists()


def test_bad_arguments_get_one_line(jobs, capsys):
    assert "out: got none" in refused(capsys, "run", "jobs.toml")
    for command in (["status", "none"], ["verify", "none"], ["merge", "none", "none"]):
        assert "none" in refused(capsys, *command)
    assert "none" in refused(capsys, "export", "none", "--to", "npz", "x.npz")


def test_two_processes_of_torchrun_share_a_folder(done):
    command = [sys.executable, "-m", "ulam", "run", "jobs.toml", "--out", "together", "--threads", "1"]
    place = {"WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(command, env={**os.environ, **place, "RANK": str(i), "LOCAL_RANK": str(i)}) for i in range(2)
    ]
    assert [one.wait(60) for one in both] == [0, 0]
    found = units(done / "together")
    assert len(found) == 3
    assert cli.main(["run", "jobs.toml", "--out", "alone", "--threads", "1"]) == 0
    assert found == units(done / "alone")


def test_status_and_help_need_no_torch(done):
    """Its import takes longer than all that they do, and four times their memory."""
    for arguments, told in (
        (["status", "out"], "3 of 3 units"),
        (["status", "out", "--json"], "96"),
        (["--help"], "mcmc"),
    ):
        code = f"import sys; sys.modules['torch'] = None\nfrom ulam.cli.main import main\nmain({arguments})"
        ran = subprocess.run([sys.executable, "-c", code], cwd=done, capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0 and told in ran.stdout, ran.stderr
