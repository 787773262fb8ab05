"""A bulk run whose workers are killed again and again: the same bytes as one that nothing disturbed.

    python -m bench.bulk_torture [--chains 20000] [--every 20] [--workers 1 3 8] [--no-ray]

Two jobs of digits (DDIM, 5 steps, guidance 2 and 1), one thread a worker. For each number of workers: every ``every``
seconds one is killed by SIGKILL, and a run that was killed whole is started again; in the middle the run is stopped by
SIGINT and started again. Then once on Ray, an actor killed. Prints the content hash of each export, which must be one.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ulam
from ulam.bulk.owners import runs_here

JOBS = """
model = "digits"
slots = 64
unit = 64
[[job]]
steps = 5
chains = {}
labels = "0-9"
guidance = 2.0
[[job]]
steps = 5
chains = {}
labels = "0-9"
guidance = 1.0
seed = 1
"""


def workers_of(folder: Path) -> list[int]:
    """The processes of this machine that work in a folder."""
    names = [path.stem for path in (folder / "workers").glob("*.json")]
    return [int(name.split("-")[-2]) for name in names if runs_here(name)]


def tortured(folder: Path, jobs: Path, every: float, chains: int, *options: str) -> str:
    """Run until all is done, killing; the content hash of the export."""
    command = [sys.executable, "-W", "ignore", "-m", "ulam", "run", str(jobs), "--out", str(folder), "--threads", "1"]
    chance, begin, kills, starts, stopped = random.Random(0), time.monotonic(), 0, 0, False
    code: int | None = 1
    while code != 0:
        run = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        starts += 1
        while (code := run.poll()) is None:
            end = time.monotonic() + every
            while time.monotonic() < end and run.poll() is None:
                time.sleep(0.1)
            half = (folder / "plan.json").exists() and ulam.bulk.open(folder).status().done_chains > chains // 2
            if half and not stopped:
                stopped = True
                run.send_signal(signal.SIGINT)
                run.wait(10)
            elif found := workers_of(folder):
                os.kill(chance.choice(found), signal.SIGKILL)
                kills += 1
        told = run.stderr.read() if run.stderr else ""
        if code not in (0, 130, -signal.SIGKILL):
            raise SystemExit(f"exit code {code}: {told}")
    verdict = ulam.bulk.open(folder).verify()
    assert verdict.passed and not verdict.foreign, verdict
    found = ulam.bulk.open(folder).export("npz", folder.with_suffix(".npz"))
    assert found.rows == chains, found
    seconds = time.monotonic() - begin
    print(f"{' '.join(options)}: {kills} killed, {starts} starts, {seconds:.0f} s, content {found.content}", flush=True)
    return str(found.content)


def main() -> int:
    """The torture; 1 unless all contents are one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=20_000)
    parser.add_argument("--every", type=float, default=20.0, help="seconds between two kills")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 3, 8])
    parser.add_argument("--no-ray", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        jobs = Path(place) / "jobs.toml"
        jobs.write_text(JOBS.format(options.chains // 2, options.chains - options.chains // 2))
        ways = [["--workers", str(count)] for count in options.workers]
        ways += [] if options.no_ray else [["--workers", "2", "--launcher", "ray"]]
        contents = {
            tortured(Path(place) / f"way{number}", jobs, options.every, options.chains, *way)
            for number, way in enumerate(ways)
        }
    print("one content" if len(contents) == 1 else f"{len(contents)} contents")
    return 0 if len(contents) == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
