"""Paths as callers write them."""

from __future__ import annotations

from pathlib import Path

from ulam_kernels.arguments import described


def full_path(folder: str | Path, name: str = "folder") -> Path:
    """Its absolute path, since workers and users change folders, with ``~`` as the shell reads it.

    Raises TypeError or ValueError for what is no path.
    """
    if not isinstance(folder, (str, Path)) or not str(folder) or not str(folder).isprintable():
        raise TypeError(f"{name}: got {described(folder)}, expected a path")
    return Path(folder).expanduser().absolute()
