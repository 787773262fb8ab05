"""A bulk run whose workers are killed again and again: the same bytes as one that nothing disturbed.

    python -m bench.bulk_torture [--chains 20000] [--every 20] [--workers 1 3 8] [--no-ray]

Two jobs of digits (DDIM, 5 steps, guidance 2 and 1), one thread a worker. First by one that nothing disturbs. Then for
each number of workers: after the first unit, and every ``every`` seconds, one is killed by SIGKILL, and a run that was
killed whole is started again; in the middle the run is stopped by SIGINT and started again. Then once on Ray, actors
killed. Prints the content hash of each export, which must be one.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ulam
from ulam.bulk.store.owners import runs_here

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


def done(folder: Path) -> int:
    """The samples that are finished in a folder."""
    return ulam.bulk.open(folder).status().done_chains if (folder / "plan.json").exists() else 0


def tortured(folder: Path, jobs: Path, every: float, chains: int, *options: str) -> str:
    """Run until all is done, killing unless ``every`` is infinite; the content hash of the export."""
    command = [sys.executable, "-W", "ignore", "-m", "ulam", "run", str(jobs), "--out", str(folder), "--threads", "1"]
    chance, begin, kills, starts = random.Random(0), time.monotonic(), 0, 0
    goals = [] if every == math.inf else [1, chains // 2]  # samples at which to kill, and to stop, whatever the time
    code: int | None = 1
    while code != 0:
        run = subprocess.Popen(
            [*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # ignored in background jobs
        )  # fmt: skip
        starts += 1
        while (code := run.poll()) is None:
            end = time.monotonic() + every
            while time.monotonic() < end and run.poll() is None and not (goals and done(folder) >= goals[0]):
                time.sleep(0.1)
            met = goals.pop(0) if goals and done(folder) >= goals[0] else 0
            if met > 1:
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
    told = f"{kills} killed, {starts} starts, {time.monotonic() - begin:.0f} s, content {found.content}"
    print(f"{' '.join(options) or 'undisturbed'}: {told}", flush=True)
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
        contents = {tortured(Path(place) / "undisturbed", jobs, math.inf, options.chains)}
        contents |= {
            tortured(Path(place) / f"way{number}", jobs, options.every, options.chains, *way)
            for number, way in enumerate(ways)
        }
    print("one content" if len(contents) == 1 else f"{len(contents)} contents")
    return 0 if len(contents) == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
