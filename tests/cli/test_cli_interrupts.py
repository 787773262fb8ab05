"""Ctrl-C during a run: what is kept and what is written."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from archives import arrays
from cli_cases import told, wait_for_calls
from processes import started


def interrupt(folder: Path, *arguments: str) -> tuple[int, str]:
    """Start a run and press Ctrl-C in the seventh evaluation of its network."""
    command = [sys.executable, "-m", "ulam", "sample", "--model", "mine:slow", "--shape", "3,8,8", *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = started(command, folder, env=environment)
    wait_for_calls(process, folder, 7)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def test_ctrl_c_before_any_sample_writes_nothing(folder: Path):
    code, err = interrupt(folder, "--steps", "100", "--chains", "4", "--out", "out")
    assert code == 130 and "0 of 4 samples written" in err and "Traceback" not in err
    assert not (folder / "out").exists()


def test_ctrl_c_keeps_the_samples_that_are_finished(folder: Path):
    code, err = interrupt(folder, "--steps", "2", "--chains", "60", "--slots", "2", "--out", "out")
    assert code == 130 and "Traceback" not in err
    written = arrays(folder / "out" / "samples.npz")["arr_0"]
    assert 0 < len(written) < 60 and f"{len(written)} of 60 samples written" in err
    assert json.loads((folder / "out" / "report.json").read_text())["chains"] == len(written)


def test_ctrl_c_may_let_the_batch_end(folder: Path):
    code, err = interrupt(
        folder, *["--steps", "20", "--chains", "9", "--slots", "3", "--on-interrupt", "drain", "--out", "out"]
    )
    assert code == 130 and "finishing the chains" in err and "3 of 9 samples written" in err
    assert told(folder)["cancelled"] == 6 and len(arrays(folder / "out" / "samples.npz")["arr_0"]) == 3


def test_ctrl_c_while_torch_is_imported_is_one_line(folder: Path):
    process = started([sys.executable, "-m", "ulam", "info"], folder)
    maps = Path(f"/proc/{process.pid}/maps")
    while "libtorch_cpu" not in maps.read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "ulam: interrupted\n")
