"""`ulam bench`: its report, its last line, what it refuses, what an interrupt leaves."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from cli_cases import exit_and_error, wait_for_calls
from processes import started
from ulam.cli.main import main

QUICK = ["--budget", "1", "--no-compile", "--slots", "4", "--steps", "4"]
MINE = ["--model", "mine:net", "--shape", "3,8,8"]


def test_a_network_of_the_users_own(folder: Path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(folder)
    assert main(["bench", *MINE, *QUICK, "--out", "found"]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = json.loads((folder / "found" / "report.json").read_text())
    quiet = [line for line in lines if not line.startswith("the quartiles of one way are")]  # on a busy machine
    assert len(quiet) <= 16 and len(lines) <= len(quiet) + 1 and lines[-1] == f"ulam: {told['verdict']}"
    assert told["model"] == "mine:net" and told["slots"] == 4 and told["evaluations"] == 4
    assert {"date", "processor", "threads", "gpu", "versions"} <= told["machine"].keys()
    ways = {way["name"]: way for way in told["ways"]}
    assert ways["plain PyTorch"]["timing"]["median"] > 0 and ways["ulam"]["difference"] < 1e-5
    page = (folder / "found" / "report.html").read_text()
    assert page.startswith("<!doctype html>") and page.count("data:image/svg+xml") == 2
    assert sorted(os.listdir(folder / "found")) == ["report.html", "report.json"]


@pytest.mark.parametrize("case", ["mlp", "free"])
def test_built_in_cases(tmp_path: Path, case: str):
    out = ["--out", str(tmp_path / "found"), "--no-plots"]
    assert main(["bench", "--case", case, *QUICK, *out]) == 0
    assert json.loads((tmp_path / "found" / "report.json").read_text())["model"] == case
    assert "<img" not in (tmp_path / "found" / "report.html").read_text()


@pytest.mark.parametrize(
    "given, says",
    [
        ([*MINE, "--budget", "0"], "budget: got 0"),
        ([*MINE, "--budget", "-1"], "budget: got -1"),
        (["--model", "mine:nothing", "--shape", "4"], "model: got 'mine:nothing'"),
        (["--model", "mine:net"], "shape: got none"),
        (["--model", "mine:small", "--shape", "3,8,8"], "model: got a network that fails"),
        (["--model", "mine:none", "--shape", "3,8,8"], "model: got a network that fails"),
        (["--shape", "4"], "shape: got (4,) without a model"),
        ([*MINE, "--case", "mlp"], "case: got mlp beside model"),
        ([*MINE, "--slots", "0"], "slots: got 0"),
        ([*MINE, "--sampler", "ddmi"], "sampler: got 'ddmi'"),
        (["--guidance", "2", "--labels", "1", "--guidance-rescale", "0.5"], "guidance-rescale: got it"),
        ([*MINE, "--out", "mine.py"], "out: got mine.py"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_one_line_and_nothing_is_left(folder: Path, monkeypatch, capsys, given, says):
    monkeypatch.chdir(folder)
    before = sorted(os.listdir(folder))
    code, error = exit_and_error(capsys, ["bench", *given, "--no-plots"])
    assert code == 2 and error.count("\n") == 1 and says in error
    assert sorted(name for name in os.listdir(folder) if name != "__pycache__") == before


def test_without_matplotlib_one_line_says_what_to_do(folder: Path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, error = exit_and_error(capsys, ["bench", *MINE])
    assert code == 2 and error.count("\n") == 1
    assert "pip install 'ulam[plots]', or pass --no-plots" in error


def test_ctrl_c_leaves_nothing_and_says_one_line(folder: Path):
    command = [sys.executable, "-m", "ulam", "bench", "--model", "mine:slow", "--shape", "3,8,8", "--no-plots"]
    process = started(command, folder, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    wait_for_calls(process, folder, 2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and error.splitlines()[-1] == "ulam: interrupted" and "Traceback" not in error
    assert not (folder / "ulam-bench").exists()
