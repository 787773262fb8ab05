"""The command line in a process of its own or in this one, on networks of the user's."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ulam.cli.main import main

USER_MODULE = """
import os, signal, time
import torch, ulam

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.5))
    def forward(self, x, t, y=None):
        return x * self.scale

def net(): return Net()
def denoiser(): return ulam.Denoiser(Net(), ulam.schedules.vp_cosine(1000), predicts="v")
def half(): return lambda x, t: x * 0.5
def none(): return lambda x, t: None
def small(): return lambda x, t: x[:1]
def slow():
    def net(x, t):
        with open("calls", "a") as file: file.write(".")
        time.sleep(0.2)
        return x * 0.5
    return net
"""


def wait_for_calls(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    """Until a command in that folder has called mine:slow so many times."""
    calls = folder / "calls"
    while not calls.exists() or calls.stat().st_size < count:
        assert process.poll() is None
        time.sleep(0.01)


def exit_and_error(capsys: pytest.CaptureFixture[str], command: str | list[str]) -> tuple[int, str]:
    """The exit code of a command in this process, and what it says on stderr."""
    try:
        code = main(command.split() if isinstance(command, str) else command)
    except SystemExit as left:
        code = int(left.code or 0)
    return code, capsys.readouterr().err


def ulam_command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ulam", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def here(folder: Path, monkeypatch, *arguments: str) -> int:
    """`ulam sample` in this process: starting one for each run would take minutes."""
    from ulam.cli import main as cli

    monkeypatch.chdir(folder)
    return cli.main(["sample", "--out", "out", *arguments])


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "report.json").read_text())
