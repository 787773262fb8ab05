"""Ray clusters that are joined, missing or too small, and actors that cannot live: one line each."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("ray", reason="Ray is not installed")

from bulk_cases import job
from processes import started
from ulam import bulk
from ulam.bulk.workers.local_workers import DEATHS, Deaths, WorkerError
from ulam.bulk.workers.shares import Share

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of Ray's sockets and log files
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SUPPORT = Path(__file__).parent.parent / "support"
NETWORKS = """
import os
import signal
import warnings

from bulk_cases import Net, Slow


class Dies(Net):
    def forward(self, *inputs, **named):
        os.kill(os.getpid(), signal.SIGKILL)


class Warns(Net):
    def forward(self, *inputs, **named):
        warnings.warn("the network has an opinion")
        return super().forward(*inputs, **named)
"""
PROGRESS = re.compile(r"ulam: \d+% \(")
JOBS = """
model = "mine:{network}"
shape = [2, 3]
slots = 32
unit = 32
[[job]]
steps = 5
spacing = "trailing"
chains = 256
"""


def start(folder: Path, network: str, *options: str, **variables: str) -> subprocess.Popen[str]:
    """`ulam run` with a network of NETWORKS, as in the foreground."""
    (folder / "mine.py").write_text(NETWORKS)
    (folder / "jobs.toml").write_text(JOBS.format(network=network))
    command = [sys.executable, "-m", "ulam", "run", "jobs.toml", "--out", f"{network}", "--launcher", "ray", *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(SUPPORT)]), **variables}
    return started(command, folder, env=environment)


def end(run: subprocess.Popen[str]) -> tuple[int, list[str], list[str]]:
    """The exit code, and the lines of both streams, without the progress that a slow run tells every ten seconds."""
    shown, told = run.communicate(timeout=240)
    return run.returncode, shown.splitlines(), [line for line in told.splitlines() if not PROGRESS.match(line)]


@pytest.fixture
def cluster():
    """The address of a cluster of two CPUs that knows nothing of this checkout, and what a process needs to join it."""
    folder = tempfile.mkdtemp(prefix="ray-")  # short: Ray's sockets lie in it
    joining = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | joining
    options = ["--head", "--block", "--num-cpus=2", "--port=0", f"--temp-dir={folder}", "--include-dashboard=false"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options, "--disable-usage-stats"]
    log = Path(folder, "told")
    with log.open("w") as told:
        head = subprocess.Popen(command, cwd=folder, env=environment, stdout=told, stderr=told)
    try:
        late = time.monotonic() + 60
        while not (found := re.search(r"--address='([^']+)'", log.read_text())) and time.monotonic() < late:
            assert head.poll() is None, log.read_text()
            time.sleep(0.1)
        assert found, log.read_text()
        yield found[1], joining, head
    finally:
        head.terminate()
        head.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.long
def test_a_cluster_that_runs_is_joined_and_goes_on(tmp_path, cluster):
    """Too many workers are refused; two import what the command imports, and what both warn of is told once. SIGTERM
    ends the command alone.
    """
    address, joining, head = cluster
    options = "--address", address, "--threads", "1", "--workers"
    code, _, told = end(start(tmp_path, "Warns", *options, "3", **joining))
    assert (
        code == 2 and len(told) == 1 and re.search(r"workers: got 3 with 1 CPUs each, expected at most the 2 ", told[0])
    )
    code, _, told = end(start(tmp_path, "Warns", *options, "2", **joining))
    assert (code, told) == (0, ["ulam: warning: the network has an opinion"])
    assert bulk.open(tmp_path / "Warns").verify().passed
    run = start(tmp_path, "Slow", *options, "2", **joining)
    late = time.monotonic() + 60
    while not list(tmp_path.glob("Slow/units/*/*")) and time.monotonic() < late:
        time.sleep(0.02)
    run.terminate()
    assert end(run)[::2] == (143, ["ulam: interrupted"]) and head.poll() is None


@pytest.mark.long
def test_actors_that_always_die_end_the_run_in_one_line(tmp_path):
    """Without what Ray has to say of each death."""
    code, shown, told = end(start(tmp_path, "Dies", "--threads", "1", "--workers", "1"))
    assert code == 1 and len(shown) == 1 and len(told) == 1
    assert f"workers: got {DEATHS} deaths of one without a finished unit" in told[0]


def test_deaths_are_counted_for_each_worker():
    """A machine that is lost takes all its workers with it; only one that dies again and again is given up."""
    deaths, shares = Deaths(), [Share(rank, 8) for rank in range(8)]
    for _ in range(DEATHS - 1):
        for share in shares:
            deaths.add(share, "SIGKILL")
    deaths.forget()
    for _ in range(DEATHS - 1):
        deaths.add(shares[0], "SIGKILL")
    with pytest.raises(WorkerError, match="the last: SIGTERM"):
        deaths.add(shares[0], "SIGTERM")


@pytest.mark.parametrize(
    "address, error",
    [("127.0.0.1:1", ConnectionError), ("auto", ConnectionError), ("here", ValueError), ("ray://a:1", ValueError)],
)
def test_an_address_where_no_cluster_is_gets_one_line(tmp_path, monkeypatch, address, error):
    """Soon: Ray itself tries for minutes."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # what auto stands for
    with pytest.raises(error, match=r"^address: got '.*', expected [^\n]*$"):
        bulk.run(bulk.Plan(job()), tmp_path, 1, launcher="ray", address=address, progress=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_gpus_are_counted_where_the_workers_will_be(tmp_path):
    with pytest.raises(
        ValueError, match=r"workers: got 2 with 1 CPUs and 1 GPU each, expected at most the 0 that the clu"
    ):
        plan = bulk.Plan(job(), device="cuda")
        bulk.run(plan, tmp_path, 2, launcher="ray", threads=1, progress=False)


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"^launcher: got ray, .* pip install 'ulam\[ray\]'$"):
        bulk.run(bulk.Plan(job()), tmp_path, 1, launcher="ray", progress=False)
