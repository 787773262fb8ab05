"""Processes that tests start, watch and interrupt."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any


def started(command: list[Any], folder: Path, **options: Any) -> subprocess.Popen[str]:
    """A process in a folder, with its output and errors to be read as text.

    Ctrl-C ends it as usual, also where the tests run in the background, whose processes ignore it.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(command, cwd=folder, text=True, preexec_fn=_as_in_the_foreground, **pipes)


def _as_in_the_foreground() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
