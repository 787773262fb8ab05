"""Workers that are killed, stopped and mixed: the same bytes, each unit once, one line for what is refused."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from processes import started
from ulam import bulk
from ulam.cli import main as cli

SUPPORT = Path(__file__).parent.parent / "support"
JOBS = """
model = "mine:net"
shape = [2, 3]
null-class = 7
slots = 32
unit = 32
[[job]]
steps = 5
spacing = "trailing"
chains = 512
labels = "0-6"
guidance = 2.0
[[job]]
sampler = "ddpm"
chains = 500
labels = "0-6"
guidance = 1.5
steps = 5
"""
UNITS = 32


@pytest.fixture
def place(tmp_path: Path, monkeypatch) -> Path:
    """A folder with jobs.toml and a network that takes 30 ms."""
    (tmp_path / "mine.py").write_text("from bulk_cases import Slow as net\n")
    (tmp_path / "jobs.toml").write_text(JOBS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SUPPORT), *filter(None, sys.path)]))
    return tmp_path


COMMAND = [sys.executable, "-W", "ignore", "-m", "ulam", "run", "jobs.toml", "--threads", "1", "--out", "out"]


def start(place: Path, *arguments: str) -> subprocess.Popen[str]:
    return started([*COMMAND, *arguments], place, stdout=subprocess.DEVNULL)


def units(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "units").rglob("*.safetensors")}


def children(process: int) -> list[int]:
    """The workers that a process has started, by their command."""
    found = subprocess.run(["pgrep", "-P", str(process), "-f", "spawn_main"], capture_output=True, text=True).stdout
    return [int(line) for line in found.split()]


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.endswith(".partial")] + os.listdir(folder / "leases")


@pytest.fixture(scope="module")
def right(tmp_path_factory) -> dict[str, bytes]:
    """The units of one worker that nothing disturbed."""
    place = tmp_path_factory.mktemp("right")
    (place / "mine.py").write_text("from bulk_cases import Slow as net\n")
    (place / "jobs.toml").write_text(JOBS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT), *filter(None, sys.path)])}
    subprocess.run(COMMAND, cwd=place, env=environment, check=True, capture_output=True)
    found = units(place / "out")
    assert len(found) == UNITS
    return found


def test_workers_that_are_killed_are_started_again(place: Path, right: dict[str, bytes]):
    run = start(place, "--workers", "2")
    chance = random.Random(0)
    for killed in range(3):
        wait_for(lambda killed=killed: len(units(place / "out")) > 4 * killed + 1 or run.poll() is not None)
        if workers := children(run.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(workers), signal.SIGKILL)
    _, told = run.communicate(timeout=120)
    assert run.returncode == 0 and "Traceback" not in told, told
    assert units(place / "out") == right and leftovers(place / "out") == []


def test_what_a_worker_was_writing_when_it_was_killed_is_gone_by_the_end(place: Path, right: dict[str, bytes]):
    run = start(place, "--workers", "2")
    wait_for(lambda: len(list((place / "out" / "workers").glob("[!.]*.json"))) == 2)
    killed = next(iter((place / "out" / "workers").glob("[!.]*.json")))
    os.kill(int(killed.stem.split("-")[-2]), signal.SIGKILL)
    for folder in ("workers", "units/00", "errors"):
        (place / "out" / folder).mkdir(exist_ok=True, parents=True)
        (place / "out" / folder / f".half.{killed.stem}.1.partial").write_bytes(b"half")
    _, told = run.communicate(timeout=120)
    assert run.returncode == 0 and "Traceback" not in told, told
    assert units(place / "out") == right and leftovers(place / "out") == []


@pytest.mark.long
def test_a_run_killed_whole_goes_on_with_other_workers(place: Path, right: dict[str, bytes]):
    """The process that started the workers is killed, too: they stop by themselves."""
    run = start(place, "--workers", "2")
    wait_for(lambda: len(units(place / "out")) > 3)
    workers = children(run.pid)
    run.kill()
    run.communicate()
    wait_for(lambda: not any(Path(f"/proc/{worker}/fd/0").exists() for worker in workers), 15)
    assert 0 < len(units(place / "out")) < UNITS
    assert bulk.open(place / "out").status().running == 0
    run = start(place)
    _, told = run.communicate(timeout=120)
    assert run.returncode == 0, told
    assert units(place / "out") == right and leftovers(place / "out") == []


def test_three_workers_give_the_bytes_of_one(place: Path, right: dict[str, bytes]):
    run = start(place, "--workers", "3")
    _, told = run.communicate(timeout=120)
    assert run.returncode == 0, told
    assert units(place / "out") == right and leftovers(place / "out") == []
    for name, data in right.items():
        (place / "one" / "units" / name[:2]).mkdir(parents=True, exist_ok=True)
        (place / "one" / "units" / name[:2] / name).write_bytes(data)
    shutil.copy(place / "out" / "plan.json", place / "one")
    exports = [bulk.open(place / folder).export("npz", place / f"{folder}.npz") for folder in ("out", "one")]
    assert exports[0] == exports[1] and exports[0].rows == 1012
    assert (place / "out.npz").read_bytes() == (place / "one.npz").read_bytes()


def test_two_launchers_in_one_folder_share_the_work(place: Path, right: dict[str, bytes]):
    runs = [start(place), start(place, "--workers", "2")]
    for run in runs:
        _, told = run.communicate(timeout=120)
        assert run.returncode == 0, told
    assert units(place / "out") == right and leftovers(place / "out") == []
    assert bulk.open(place / "out").verify().foreign == []


@pytest.mark.parametrize(("workers", "number", "code"), [(1, signal.SIGINT, 130), (2, signal.SIGTERM, 143)])
def test_a_signal_stops_within_ten_seconds_and_loses_no_finished_unit(place, right, workers, number, code):
    run = start(place, "--workers", str(workers))
    wait_for(lambda: len(units(place / "out")) > 2)
    before, begin = units(place / "out"), time.monotonic()
    run.send_signal(number)
    _, told = run.communicate(timeout=30)
    assert time.monotonic() - begin < 10
    assert run.returncode == code and told.splitlines()[-1] == "ulam: interrupted" and "Traceback" not in told
    after = units(place / "out")
    assert before.items() <= after.items() <= right.items() and leftovers(place / "out") == []


# ------------------------------------------------------------------------------------------------- refusals


def refused(capsys, *arguments: str) -> str:
    capsys.readouterr()
    assert cli.main(["run", "jobs.toml", "--out", "out", *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]
    return line


FAST = JOBS.replace("= 512", "= 64").replace("= 500", "= 32")


@pytest.fixture
def fast(place: Path, monkeypatch) -> Path:
    monkeypatch.syspath_prepend(str(SUPPORT))
    (place / "fast.py").write_text("from bulk_cases import Net as net\n")
    (place / "jobs.toml").write_text(FAST.replace("mine:net", "fast:net"))
    assert cli.main(["run", "jobs.toml", "--out", "out", "--threads", "1"]) == 0
    return place


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("chains = 64", "chains = 65", "chains: got 65 in job 1, expected 64"),
        ("guidance = 2.0", "guidance = 2.5", "guidance: got those of SHA-256"),
        ('"0-6"\nguidance = 2.0', '"1-6"\nguidance = 2.0', "cond: got those"),
        ("steps = 5", "steps = 6", "sampler: got DDIM(steps=6"),
        ("guidance = 1.5", "guidance = 1.5\nseed = 4", "seed: got 4 in job 2, expected 0"),
        ("unit = 32", "unit = 64", "unit: got 64, expected 32"),
        ("slots = 32", "slots = 64", "slots: got those"),
        ("unit = 32", 'unit = 32\nformat = "npz"', "format: got npz, expected safetensors"),
        ("[[job]]\nsampler", "[[job]]\nchains = 5\n[[job]]\nsampler", "jobs: got 3, expected 2"),
    ],
)
def test_another_plan_in_the_folder_is_refused_by_name(fast: Path, capsys, old: str, new: str, named: str):
    before = units(fast / "out")
    text = (fast / "jobs.toml").read_text()
    assert old in text
    (fast / "jobs.toml").write_text(text.replace(old, new, 1))
    assert refused(capsys).startswith(f"ulam: error: {named}")
    assert units(fast / "out") == before


def test_changed_weights_under_the_same_path_are_refused(fast: Path, capsys, monkeypatch):
    (fast / "fast.py").write_text("from bulk_cases import Net\ndef net():\n    return Net(0.31)\n")
    monkeypatch.delitem(sys.modules, "fast")
    assert refused(capsys).startswith("ulam: error: weights: got those of SHA-256 ")


def test_another_environment_is_refused_by_name_or_accepted(fast: Path, capsys):
    before = units(fast / "out")
    assert "threads 2 (not 1)" in refused(capsys, "--threads", "2")
    first = min((fast / "out" / "units").rglob("*.safetensors"))
    first.unlink()
    assert cli.main(["run", "out", "--threads", "2", "--allow-environment"]) == 0
    after = units(fast / "out")
    assert len(after) == len(before) and before.keys() - after.keys() == {first.name}
    assert cli.main(["run", "out"]) == 0 and bulk.open("out").verify().passed
    assert units(fast / "out") == after


def test_a_read_only_folder_is_one_line(fast: Path, capsys, monkeypatch):
    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    got = f"ulam: error: out: got {fast / 'out'}, expected a folder that can be written to"
    assert refused(capsys) == f"{got}: Read-only file system"
