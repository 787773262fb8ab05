"""A build that would change results refuses to load and says why."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CPU = ("dispatch", "kernels_portable", "likelihood", "likelihood_portable", "mcmc", "mcmc_portable", "select", "tick",
       "torch_normal")  # fmt: skip
SOURCES = ["bindings/cpu.cpp", *(f"csrc/cpu/{name}.cpp" for name in CPU)]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to build the extension in other ways")


def built(folder: Path, *flags: str, altered: tuple[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Build the extension (portable path alone) with these flags, one constant of the noise altered, and import it."""
    import pybind11

    shutil.copytree(ROOT / "csrc", folder / "csrc")
    shutil.copytree(ROOT / "bindings", folder / "bindings")
    if altered:
        header = folder / "csrc" / "include" / "ulam" / "noise.h"
        text = header.read_text()
        assert text.count(altered[0]) == 1
        header.write_text(text.replace(*altered))
    include = ["-Icsrc/include", "-Icsrc/cpu", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    options = ["-O1", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-DULAM_NO_X86", *flags, *include]
    subprocess.run(["g++", *options, *SOURCES, "-o", f"_cpu{suffix}"], cwd=folder, check=True, capture_output=True)
    run = [sys.executable, "-c", "import torch, _cpu; print(_cpu.instruction_sets())"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(run, cwd=folder, env=environment, capture_output=True, text=True)


def test_portable_build_loads(tmp_path: Path):
    """What machines other than x86-64 build."""
    ran = built(tmp_path)
    assert ran.returncode == 0 and ran.stdout.strip() == "['portable']", ran.stderr


def test_fast_math_build_refuses_to_load(tmp_path: Path):
    ran = built(tmp_path, "-ffast-math")
    assert ran.returncode != 0 and "ImportError" in ran.stderr and "fast-math" in ran.stderr


def test_build_with_other_noise_refuses_to_load(tmp_path: Path):
    ran = built(tmp_path, altered=("0x1.ffffd6p-1f", "0x1.ffffd8p-1f"))
    assert ran.returncode != 0 and "ImportError" in ran.stderr and "noise-v1" in ran.stderr
