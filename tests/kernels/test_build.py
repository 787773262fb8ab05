"""A build that would change results refuses to load and says why."""

from __future__ import annotations

import argparse
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CPU = ("operations", "portable", "select", "self_check", "torch_normal")
SOURCES = ["bindings/cpu.cpp", *(f"csrc/cpu/{name}.cpp" for name in CPU)]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to build the extension in other ways")


INCLUDE = ["-Icsrc/include", "-Icsrc/cpu"]
CHECK = """#include <cstdio>
#include "kernels.h"
int main() {
  const char* difference = ulam::cpu::self_check(ulam::cpu::portable_kernels);
  std::puts(difference ? difference : "none");
}
"""


def copied(folder: Path, altered: tuple[str, str, str] | None) -> None:
    """The native sources, with a file altered: (name, text, text instead)."""
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    shutil.copytree(ROOT / "bindings", folder / "bindings")
    if altered:
        name, old, new = altered
        text = (folder / "csrc" / name).read_text()
        assert text.count(old) == 1
        (folder / "csrc" / name).write_text(text.replace(old, new))


def built(folder: Path, *flags: str, altered: tuple[str, str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Build the extension (portable path alone) with these flags, a file of it altered, and import it."""
    import pybind11

    copied(folder, altered)
    include = [*INCLUDE, f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    options = ["-O1", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-DULAM_NO_X86", *flags, *include]
    subprocess.run(["g++", *options, *SOURCES, "-o", f"_cpu{suffix}"], cwd=folder, check=True, capture_output=True)
    run = [sys.executable, "-c", "import torch, _cpu; print(_cpu.instruction_sets())"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(run, cwd=folder, env=environment, capture_output=True, text=True)


def what_the_check_says(folder: Path, altered: tuple[str, str, str]) -> str:
    """What the check at import finds in the portable path, with one of its headers altered."""
    copied(folder, altered)
    (folder / "check.cpp").write_text(CHECK)
    sources = ["check.cpp", *(f"csrc/cpu/{name}.cpp" for name in ("self_check", "operations", "portable", "select"))]
    options = ["-O0", "-std=c++17", "-fopenmp", "-DULAM_NO_X86", *INCLUDE]
    subprocess.run(["g++", *options, *sources, "-o", "check"], cwd=folder, check=True, capture_output=True)
    return subprocess.run(["./check"], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.long
def test_portable_build_loads(tmp_path: Path):
    """What machines other than x86-64 build."""
    ran = built(tmp_path)
    assert ran.returncode == 0 and ran.stdout.strip() == "['portable']", ran.stderr


@pytest.mark.long
def test_fast_math_build_refuses_to_load(tmp_path: Path):
    ran = built(tmp_path, "-ffast-math")
    assert ran.returncode != 0 and "ImportError" in ran.stderr and "fast-math" in ran.stderr


@pytest.mark.long
def test_build_with_other_noise_refuses_to_load(tmp_path: Path):
    ran = built(tmp_path, altered=("include/ulam/noise.h", "0x1.ffffd6p-1f", "0x1.ffffd8p-1f"))
    assert ran.returncode != 0 and ran.stderr.splitlines()[-1] == (
        "ImportError: ulam_kernels._cpu was miscompiled (portable): its normals are not those of noise-v1; "
        "rebuild it without fast-math options, or with another compiler"
    )


@pytest.mark.parametrize(
    "right, wrong, difference",
    [
        pytest.param(
            "__builtin_popcount(reached);",
            "__builtin_popcount(reached) - (at == 0);",
            "its quantiles are not",
            marks=pytest.mark.long,
        ),
        ("kGroup<V> ? count : kGroup<V>;  //", "kGroup<V> ? 1 : kGroup<V>;  //", "its norms are not"),
        pytest.param("*has_nan = true", "*has_nan = false", "its quantiles do not pass NaN", marks=pytest.mark.long),
    ],
)
def test_the_check_at_import_sees_other_reductions(right: str, wrong: str, difference: str, tmp_path: Path):
    """A lane miscounted, a rest of which one element is summed, a NaN that is not seen."""
    assert what_the_check_says(tmp_path, ("cpu/reduce.h", right, wrong)).startswith(difference)


@pytest.fixture
def setup_py(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of setup.py, which builds nothing here; no CUDA folder is named by the environment."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    for name in ("CUDA_HOME", "CUDA_PATH", "ULAM_CUDA_ARCHITECTURES", "ULAM_SANITIZE"):
        monkeypatch.delenv(name, raising=False)
    return runpy.run_path("setup.py")


def nvcc_in(folder: Path) -> str:
    """A program that knows three architectures."""
    path = folder / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\necho compute_80 compute_90 compute_100\n")
    path.chmod(0o755)
    return str(path)


def test_nvcc_is_found_in_its_usual_folder_too(
    setup_py: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """CUDA_HOME, then the path, then /usr/local/cuda, which is often on no path."""
    find = setup_py["find_nvcc"]
    assert find.__globals__["CUDA_FOLDER"] == "/usr/local/cuda"
    usual, on_path, home = (nvcc_in(tmp_path / name) for name in ("usual", "path", "home"))
    find.__globals__["CUDA_FOLDER"] = str(tmp_path / "usual")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert find() == usual
    monkeypatch.setenv("PATH", str(Path(on_path).parent))
    assert find() == on_path
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert find() == home


def test_one_architecture_may_be_asked_for(
    setup_py: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    targets, nvcc = setup_py["cuda_targets"], nvcc_in(tmp_path)
    every = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in (80, 90, 100)]
    assert targets(nvcc) == [*every, "-gencode=arch=compute_100,code=compute_100"]
    monkeypatch.setenv("ULAM_CUDA_ARCHITECTURES", "90")
    assert targets(nvcc) == [every[1], "-gencode=arch=compute_90,code=compute_90"]
    monkeypatch.setenv("ULAM_CUDA_ARCHITECTURES", "75")
    with pytest.raises(OSError, match="ULAM_CUDA_ARCHITECTURES: got 75, expected some of compute_80"):
        targets(nvcc)


@pytest.mark.parametrize("nvcc", ["none", "fails"])
def test_a_build_without_cuda_leaves_no_older_cuda_kernels(
    setup_py: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nvcc: str
) -> None:
    """They would load beside the new Python, and be out of date."""
    from setuptools import Distribution

    monkeypatch.chdir(tmp_path)
    command = setup_py["BuildExtension"](Distribution({"ext_modules": [setup_py["cpu"]], "name": "ulam"}))
    command.inplace, command.build_lib, command.build_temp = True, "lib", "temp"
    command.finalize_options()
    earlier = [Path(folder) / command.get_ext_filename("ulam_kernels._cuda") for folder in ("lib", "kernels")]
    for file in earlier:
        file.parent.mkdir(parents=True)
        file.touch()
    monkeypatch.setattr("setuptools.command.build_ext.build_ext.build_extensions", lambda self: None)
    if nvcc == "fails":
        command.extensions.append(setup_py["cuda"])
        monkeypatch.setitem(setup_py["find_nvcc"].__globals__, "find_nvcc", lambda: nvcc_in(tmp_path / "home"))
    command.compiler = argparse.Namespace(_compile=None)
    command.build_extensions()
    assert not any(file.exists() for file in earlier)


@pytest.mark.parametrize("checks", [None, "address,undefined", "thread"])
def test_a_sanitizer_is_built_into_the_cpu_kernels_alone(checks: str | None, monkeypatch: pytest.MonkeyPatch):
    """Of the default build nothing changes; -O1 and the checks come behind the flags that they are contrary to."""
    asked: dict[str, Any] = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("setuptools.setup", asked.update)
    monkeypatch.setattr("shutil.which", lambda *_, **__: "nvcc")
    monkeypatch.delenv("ULAM_SANITIZE", raising=False)
    if checks:
        monkeypatch.setenv("ULAM_SANITIZE", checks)
    runpy.run_path("setup.py")
    names = [extension.name for extension in asked["ext_modules"]]
    compiled, linked = asked["ext_modules"][0].extra_compile_args, asked["ext_modules"][0].extra_link_args
    sanitized = [flag for flag in (*compiled, *linked) if "sanitize" in flag]
    if not checks:
        assert names == ["ulam_kernels._cpu", "ulam_kernels._cuda"] and not sanitized and "-O1" not in compiled
        return
    assert names == ["ulam_kernels._cpu"] and f"-fsanitize={checks}" in compiled and f"-fsanitize={checks}" in linked
    assert compiled.index("-O1") > compiled.index("-O3") and "-fno-wrapv" in compiled
    assert "-fno-sanitize-recover=all" in compiled
