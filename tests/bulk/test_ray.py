"""Workers on a real Ray cluster of this machine: the same bytes, actors that die are replaced, one line for errors."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
import torch

pytest.importorskip("ray", reason="Ray is not installed")

import ulam
from bulk_cases import SCHEDULE, Breaks, Slow, job, labelled
from processes import started
from ulam import bulk

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of Ray's sockets and log files
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
JOBS = """
model = "mine:net"
shape = [2, 3]
slots = 32
unit = 32
[[job]]
steps = 10
spacing = "trailing"
chains = 512
"""
SUPPORT = Path(__file__).parent.parent / "support"


def plan(net: torch.nn.Module, chains: int = 256) -> bulk.Plan:
    denoiser = ulam.Denoiser(net, SCHEDULE)
    return bulk.Plan(job(denoiser=denoiser, chains=chains, cond=labelled(chains)), slots=32, unit=32)


def units(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "units").rglob("*.safetensors")}


@pytest.fixture
def token(monkeypatch) -> str:
    """In the environment of all processes that a test starts."""
    monkeypatch.setenv("ULAM_TEST", str(uuid.uuid4()))
    return os.environ["ULAM_TEST"]


def running(token: str) -> set[str]:
    """The processes with this token."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if token.encode() in path.read_bytes():
                found.add(path.parent.name)
    return found


@pytest.mark.long
def test_an_actor_that_is_killed_is_replaced_and_the_bytes_are_the_same(tmp_path, monkeypatch, token):
    """The first actor that holds a lease is killed by SIGKILL; afterwards nothing of Ray is left."""
    monkeypatch.syspath_prepend(str(SUPPORT))
    given = plan(Slow())
    bulk.run(given, tmp_path / "one", 1, threads=1, progress=False)
    killed: list[int] = []

    def kill() -> None:
        while not killed:
            for lease in (tmp_path / "ray" / "leases").glob("*"):
                if (words := lease.read_text().split("-")) and len(words) == 4:
                    killed.append(int(words[2]))
                    os.kill(killed[0], signal.SIGKILL)
                    return
            time.sleep(0.02)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    folder = bulk.run(given, tmp_path / "ray", 2, launcher="ray", threads=1, progress=False)
    thread.join(1)
    assert killed and killed[0] != os.getpid()
    assert units(tmp_path / "ray") == units(tmp_path / "one") and len(units(tmp_path / "one")) == 8
    assert folder.verify().passed and not list((tmp_path / "ray" / "leases").iterdir())
    end = time.monotonic() + 150
    while running(token) and time.monotonic() < end:
        time.sleep(0.2)
    assert running(token) == set()


def test_an_error_in_the_network_is_one_line(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SUPPORT))
    y = torch.arange(64) % 8
    y[40] = 9
    denoiser = ulam.Denoiser(Breaks(), SCHEDULE)
    given = bulk.Plan(job(denoiser=denoiser, chains=64, cond={"y": y}), slots=32, unit=32)
    with pytest.raises(bulk.WorkerError, match=r"NetworkError: .*a class that it does not know") as caught:
        bulk.run(given, tmp_path / "a", 1, launcher="ray", threads=1, progress=False)
    assert "\n" not in str(caught.value)
    assert len(bulk.open(tmp_path / "a").status().errors) >= 1


@pytest.mark.long
def test_an_interrupt_ends_the_command_and_its_cluster(tmp_path, token):
    """Ctrl-C in the middle: within ten seconds, one line, exit code 130; the rest is done by another launcher."""
    (tmp_path / "mine.py").write_text("from bulk_cases import Slow as net\n")
    (tmp_path / "jobs.toml").write_text(JOBS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(SUPPORT)])}
    command = [sys.executable, "-m", "ulam", "run", "jobs.toml", "--out", "out", "--threads", "1"]
    run = started([*command, "--workers", "2", "--launcher", "ray"], tmp_path, env=environment)
    end = time.monotonic() + 150
    while not list((tmp_path / "out").glob("units/*/*")) and time.monotonic() < end:
        time.sleep(0.05)
    begin = time.monotonic()
    run.send_signal(signal.SIGINT)
    _, told = run.communicate(timeout=30)
    assert time.monotonic() - begin < 10
    assert run.returncode == 130 and told.strip().splitlines()[-1] == "ulam: interrupted" and "Traceback" not in told
    assert running(token) == set()
    done = len(units(tmp_path / "out"))
    assert 1 <= done < 16
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert len(units(tmp_path / "out")) == 16
