"""1,000 digits by workers that are killed: one content. `make bulk-torture`: 20,000, eight workers, Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_digits_are_the_same_however_often_workers_are_killed():
    command = [sys.executable, "-m", "bench.bulk_torture", "--chains", "1000", "--every", "6", "--workers", "1", "3"]
    done = subprocess.run([*command, "--no-ray"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("one content\n"), done.stdout + done.stderr
    undisturbed, *tortured, _ = done.stdout.splitlines()
    assert " 0 killed, 1 starts" in undisturbed and len(tortured) == 2, done.stdout
    assert all(" 0 killed" not in line and " 1 starts" not in line for line in tortured), done.stdout
