"""The extensions, compiled where they lie, for the GPU that is present and without pyproject.toml.

Setuptools before 77 cannot read this project's, and a machine may have any. So setup.py runs in a folder that holds
links to what it needs and nothing else. Nothing is compiled again while sources, compilers and Python are the same.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

LINKED = {"setup.py": "setup.py", "csrc": "csrc", "bindings": "bindings", "ulam_kernels": "kernels/ulam_kernels"}
COMMAND = [sys.executable, "setup.py", "build_ext", "--inplace"]
MODULES = ("_cpu", "_cuda")


def folder(root: Path, architecture: str) -> Path:
    """The folder to run setup.py in, with its links; what is compiled stays there."""
    here = root / "build" / f"gpu-check-{architecture}"
    here.mkdir(parents=True, exist_ok=True)
    for name, target in LINKED.items():
        link = here / name
        if not link.is_symlink():
            link.symlink_to(root / target)
    return here


def built(root: Path) -> dict[str, Path]:
    """The extensions that are there, for this Python."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    paths = {name: root / "kernels/ulam_kernels" / f"{name}{suffix}" for name in MODULES}
    return {name: path for name, path in paths.items() if path.exists()}


def key(root: Path, architecture: str) -> str:
    """What the extensions depend on: sources, tools, architecture, Python."""
    digest = hashlib.sha256(f"{architecture} {sys.version} {tools()}".encode())
    for name in ("setup.py", "csrc", "bindings"):
        path = root / name
        for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(root)} {file.stat().st_size} ".encode() + file.read_bytes())
    return digest.hexdigest()


def tools() -> str:
    """What the compilers print as their versions."""
    said = []
    for name in ("c++", "nvcc", "/usr/local/cuda/bin/nvcc"):
        if (tool := shutil.which(name)) is not None:
            said.append(subprocess.run([tool, "--version"], capture_output=True, text=True).stdout)
    return "\n".join(said)


def current(root: Path, architecture: str) -> bool:
    """Whether both extensions are built, and from these sources."""
    note = root / "build" / f"gpu-check-{architecture}" / "built.json"
    if not note.exists() or len(built(root)) < len(MODULES):
        return False
    sums = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in built(root).items()}
    return bool(json.loads(note.read_text()) == {"key": key(root, architecture), "files": sums})


def remember(root: Path, architecture: str) -> None:
    """Record that what is built now comes from these sources."""
    sums = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in built(root).items()}
    note = root / "build" / f"gpu-check-{architecture}" / "built.json"
    note.write_text(json.dumps({"key": key(root, architecture), "files": sums}))
