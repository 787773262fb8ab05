"""Who wrote a file: a process of this or another machine, and whether it still runs."""

from __future__ import annotations

import os
import re
import socket
import time
from functools import cache
from pathlib import Path


def owner() -> str:
    """This process: its machine and process namespace, its number, and when it began, in ticks since the boot."""
    return f"{_machine()}-{os.getpid()}-{_begin(os.getpid())}"


@cache
def _machine() -> str:
    host = re.sub(r"\W", "_", socket.gethostname())
    try:
        space = re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))
    except OSError:
        space = "0"
    return f"{host}-{space}"


def _begin(process: int) -> str | None:
    """When a process of this machine began; None if there is none, or if it is dead and not yet buried."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]


def runs_here(name: str) -> bool | None:
    """Whether the process of this name runs; None for one of another machine."""
    machine, _, rest = name.rpartition("-")[0].rpartition("-")
    begin = name.rpartition("-")[2]
    if machine != _machine() or not re.fullmatch("[0-9]{1,18}", rest):
        return None
    return _begin(int(rest)) == begin


def is_alive(name: str, file: Path, patience: float) -> bool:
    """Whether the process that writes a file runs: for one of another machine, whether the file is younger than
    ``patience`` seconds by this machine's clock, or from the future.
    """
    here = runs_here(name)
    if here is not None:
        return here
    try:
        return time.time() - file.stat().st_mtime < patience
    except OSError:
        return False
