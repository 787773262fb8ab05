"""Commands disturbed from outside: closed pipes, signals, full disks, other runs; odd values in files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ulam
from archives import arrays
from ulam.cli import main as cli
from ulam.files import parse_json, parse_toml, whole, writable_folder
from ulam.jobs.models import parse_schedule
from ulam.jobs.tables import make_job, make_sampler, read_jobs
from ulam.models.built_in import Model

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")

MODULE = """
import time
import torch

def net():
    return lambda x, t: torch.tanh(x)

def slow():
    def call(x, t):
        time.sleep(0.05)
        return torch.tanh(x)
    return call
"""
PICTURES = Model("mine", ulam.Denoiser(lambda x, t: x, ulam.schedules.vp_linear(1000)), (1, 8, 8))
CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "edges.py").write_text(MODULE)
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ulam", *arguments]


def started(folder: Path, *arguments: str, **options) -> subprocess.Popen[str]:
    ran = command("sample", "--model", "edges:slow", "--shape", "1,8,8", "--out", "out", *arguments)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(ran, cwd=folder, env=environment, text=True, stderr=subprocess.PIPE, **options)
    return process


# ------------------------------------------------------------------------------------------ streams and signals


@pytest.mark.parametrize("stdout", ["gone", "closed"])
def test_a_reader_that_goes_away_is_no_failure(folder: Path, stdout: str):
    ran = command("sample", "--model", "edges:net", "--shape", "1,8,8", "--steps", "2", "--chains", "2", "--out", "out")
    if stdout == "gone":
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(ran, cwd=folder, stdout=writing, stderr=subprocess.PIPE, text=True)
        os.close(writing)
    else:
        done = subprocess.run(
            ran, cwd=folder, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: (os.close(0), os.close(1))
        )
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert arrays(folder / "out" / "samples.npz")["arr_0"].shape == (2, 8, 8, 1)


def test_sigterm_keeps_the_samples_that_are_finished(folder: Path):
    process = started(folder, "--steps", "2", "--chains", "60", "--slots", "2", stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(1.5)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and "Traceback" not in err
    written = arrays(folder / "out" / "samples.npz")["arr_0"]
    assert 0 < len(written) < 60 and f"{len(written)} of 60 samples written" in err


def test_signals_are_left_alone_in_other_threads(folder: Path, monkeypatch):
    monkeypatch.chdir(folder)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(cli.main(["info"])))
    thread.start()
    thread.join()
    assert codes == [0] and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_warnings_are_lines_of_the_command(folder: Path):
    ran = command("sample", "--model", "edges:net", "--shape", "1,8,8", "--steps", "2", "--chains", "2", "--out", "out")
    done = subprocess.run(ran, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("ulam: warning: steps: got a first noise level of sigma/alpha 3.443 without x_init")


# --------------------------------------------------------------------------------------------- folders and files


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (
            ["mcmc", "--target", "gaussian", "--sampler", "mala", "--step", "0.1", "--steps", "20", "--chains", "4"],
            "draws.npz",
        ),
        (["check", "--model", "digits", "--chains", "4", "--sigmas", "0.4", "0.5", "--levels", "2"], "check.json"),
    ],
)
@pytest.mark.parametrize("times", [1, 2])
def test_what_chains_and_checks_computed_does_not_go_with_a_full_disk(
    command: list[str], name: str, times: int, tmp_path: Path, monkeypatch, capsys
):
    synced, calls = os.fsync, []

    def full(file: int):
        calls.append(file)
        if len(calls) <= times:
            raise OSError(28, "No space left on device")
        synced(file)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(os, "fsync", full)
    assert cli.main([*command, "--no-plots", "--out", "out"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(
        "ulam: error: out: got out, expected a folder that can be written to: No space left on device; "
    )
    if times == 1:
        assert (Path(told.rpartition("everything is in ")[2]) / name).stat().st_size > 0
    else:
        assert told.endswith("nor elsewhere: No space left on device")
    assert not (tmp_path / "out").exists()


def test_two_processes_do_not_share_a_folder(folder: Path):
    first = started(folder, "--steps", "100", "--chains", "2", stdout=subprocess.PIPE)
    assert first.stdout is not None
    first.stdout.readline()
    time.sleep(1.0)
    try:
        second = started(folder, "--steps", "2", "--chains", "2", stdout=subprocess.DEVNULL)
        _, err = second.communicate(timeout=120)
        assert second.returncode == 2 and "another process writes, expected another folder" in err
    finally:
        first.kill()
        first.communicate()
    with writable_folder(folder / "out"):
        pass  # the killed one holds it no more


def test_what_a_killed_process_left_half_written_goes(tmp_path: Path):
    orphan, own = tmp_path / ".samples.npz.99999999.0.partial", tmp_path / f".grid.png.{os.getpid()}.0.partial"
    for path in (orphan, own, tmp_path / "other.partial"):
        path.touch()
    with writable_folder(tmp_path):
        assert not orphan.exists() and own.exists() and (tmp_path / "other.partial").exists()


def test_files_appear_together_or_not_at_all(tmp_path: Path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("old")
    with pytest.raises(RuntimeError), whole(a, b) as (first, second):
        first.write_text("new")
        second.write_text("new")
        raise RuntimeError
    assert a.read_text() == "old" and sorted(tmp_path.iterdir()) == [a]
    link = tmp_path / "link"
    link.symlink_to(a)
    with whole(link, b) as (first, second):
        first.write_text("new")
        second.write_text("new")
    assert link.is_symlink() and a.read_text() == b.read_text() == "new"


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', "[NaN]", "[1e400", "[" * 10**5, "1" * 5000, "", "\x00"])
def test_json_that_is_none_is_told_in_a_line(text: str):
    with pytest.raises(ValueError, match=r"^here: got .*, expected JSON$") as caught:
        parse_json("here", text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a = 1\na = 2", "a = [" * 5000, "a", "\x00"])
def test_toml_that_is_none_is_told_in_a_line(text: str):
    with pytest.raises(ValueError, match=r"^here: got .*, expected TOML$") as caught:
        parse_toml("here", text)
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------- values of jobs


@pytest.mark.parametrize("steps", [1.5, "3", 3.0, float("nan"), True, [3], "1e2"])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "unipc", "lcm", "repaint"])
def test_steps_that_are_no_whole_number_are_refused_not_replaced(name: str, steps: object):
    with pytest.raises((ValueError, TypeError), match="steps") as caught:
        make_sampler(name, {"steps": steps})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "table, message",
    [
        ({"weight": "x"}, "weight: got 'x', expected a finite number"),
        ({"deadline": "x"}, "deadline: got 'x'"),
        ({"weight": float("nan")}, "weight: got nan"),
        ({"deadline": True}, "deadline: got True"),
        ({"weight": 10**400}, "weight: got 1000"),
        ({"labels": [2**70]}, "labels: got "),
        ({"labels": 1.5}, "labels: got 1.5"),
        ({"chains": 1.5}, "chains: got 1.5"),
        ({"seed": "x"}, "seed: got 'x'"),
    ],
    ids=str,
)
def test_values_of_a_job_are_refused_by_their_keys(table: dict[str, object], message: str):
    with pytest.raises((ValueError, TypeError), match=message):
        make_job(table, PICTURES, CPU)


def test_keys_of_a_job_may_be_spelled_as_the_options_are(tmp_path: Path):
    path = tmp_path / "jobs.toml"
    path.write_text(
        '[[job]]\nsampler = "ddim"\nsteps = 3\nlabels = [0]\nguidance = 2.0\nguidance-interval = [100, 700]\n'
    )
    digits = Model("digits", PICTURES.denoiser, (1, 28, 28), classes=10, null_class=10)
    (spec,) = read_jobs(path, {}, digits, CPU)
    assert spec.submit["guidance_interval"] == [100, 700]
    path.write_text("[[job]]\nguidance-interval = [1, 2]\nguidance_interval = [1, 2]\n")
    with pytest.raises(ValueError, match="job 1: keys: got one spelled with - and with _"):
        read_jobs(path, {}, digits, CPU)


@pytest.mark.parametrize(
    "text", ["vp_linear(steps=1000,steps=3)", "vp_linear(10000000000)", "vp_cosine(steps=10000000000)"]
)
def test_schedules_that_cannot_be_are_refused_in_a_line(text: str):
    with pytest.raises(ValueError, match="steps") as caught:
        parse_schedule(text)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------- pictures


def known(path: Path, name: str = "known") -> torch.Tensor:
    job = {"sampler": "repaint", "steps": 3, "known": str(path), "mask": str(path)}
    return make_job(job, PICTURES, CPU).submit[name].tensor


def test_sixteen_bits_are_read_as_such(tmp_path: Path):
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert np.allclose(known(tmp_path / "deep.png")[0], values / 32767.5 - 1, atol=1e-6)
    assert np.allclose(known(tmp_path / "deep.png", "mask")[0], values / 65535, atol=1e-6)


@pytest.mark.parametrize("kind", ["float", "nan", "eps", "bomb", "truncated", "wide"])
def test_pictures_that_are_none_are_refused_in_a_line(tmp_path: Path, kind: str):
    path = tmp_path / "odd.tiff"
    if kind in ("float", "nan"):
        Image.fromarray(np.full((8, 8), np.nan if kind == "nan" else 0.5, dtype=np.float32)).save(path)
    elif kind == "eps":
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    elif kind == "bomb":
        Image.new("1", (30000, 30000)).save(path, compression="group4")
    elif kind == "truncated":
        Image.new("L", (8, 8)).save(tmp_path / "whole.png")
        path.write_bytes((tmp_path / "whole.png").read_bytes()[:40])
    else:
        Image.fromarray(np.full((8, 8), 70000, dtype=np.int32)).save(path)
    with pytest.raises(ValueError, match="known: got ") as caught:
        known(path)
    assert "\n" not in str(caught.value)


def test_pixels_of_data_to_check_need_the_range_that_the_network_knows(tmp_path: Path):
    from ulam.cli.examples import read_examples

    pixels = np.arange(8 * 64, dtype=np.uint8).reshape(8, 8, 8, 1)
    np.savez(tmp_path / "data.npz", arr_0=pixels)
    with pytest.raises(ValueError, match=r"pixels: got none for uint8 data, expected .* --pixels 0 1"):
        read_examples(tmp_path / "data.npz", (1, 8, 8))
    for black, white in ((-1.0, 1.0), (0.0, 1.0)):
        x = read_examples(tmp_path / "data.npz", (1, 8, 8), (black, white)).x
        assert torch.allclose(
            x.flatten(), torch.from_numpy(pixels).flatten() / 255 * (white - black) + black, atol=1e-6
        )
    (tmp_path / "data.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(ValueError, match="expected an npz of plain arrays"):
        read_examples(tmp_path / "data.npz", (1, 8, 8))


def test_the_report_says_what_was_asked_for(folder: Path, monkeypatch):
    """The files of a run that nothing disturbed."""
    monkeypatch.chdir(folder)
    arguments = ["sample", "--model", "edges:net", "--shape", "1,8,8", "--steps", "2", "--chains", "2", "--out", "out"]
    assert cli.main(arguments) == 0
    assert json.loads((folder / "out" / "report.json").read_text())["files"] == [
        "samples.npz",
        "grid.png",
        "report.json",
    ]
