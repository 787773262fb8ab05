"""docs/programs: five short programs, executed as a reader would, at a reduced size, and held to what they print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from archives import arrays
from pages import DOCS

PROGRAMS = DOCS / "programs"
LONGEST = 40  # lines of code


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+\.\d+|\d+", text)]


def guided(out: str, folder: Path) -> None:
    assert numbers(out)[0] > 95 and (folder / "classes.gif").stat().st_size > 1000


def reaches(out: str, folder: Path) -> None:
    before, after = numbers(out)
    assert after < before / 3


def covers(out: str, folder: Path) -> None:
    intercept, slope, _, drawn = out.splitlines()
    for line, truth in ((intercept, 1.0), (slope, 2.0)):
        _, _, low, high = numbers(line)
        assert low < truth < high
    assert numbers(drawn)[-2] > 300


def keeps(out: str, folder: Path) -> None:
    assert out.startswith("96 images") and arrays(folder / "images.npz")["arr_0"].shape == (96, 8, 8, 3)


def agrees(out: str, folder: Path) -> None:
    (sampled, true), (mean, spread, _) = (numbers(line) for line in out.splitlines())
    assert abs(sampled - true) < 0.1 and 1.27 < mean < 1.30 and 0.02 < spread < 0.06


CASES: dict[str, tuple[int, Callable[[str, Path], None]]] = {
    "class_guidance": (800, guided), "control_loop": (800, reaches), "posterior": (100, covers),
    "pipeline_to_folder": (96, keeps), "table_and_molecule": (1500, agrees),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_program_runs_and_says_what_it_should(name: str, tmp_path: Path) -> None:
    if name == "pipeline_to_folder":
        pytest.importorskip("diffusers", reason="diffusers is not installed")
    size, check = CASES[name]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    command = [sys.executable, str(PROGRAMS / f"{name}.py"), str(size)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    check(done.stdout, tmp_path)


def test_every_program_is_short_and_on_the_page() -> None:
    files = {path.stem: path.read_text() for path in PROGRAMS.glob("*.py")}
    page = (PROGRAMS / "index.md").read_text()
    assert files.keys() == CASES.keys() == set(re.findall(r"literalinclude\} (\w+)\.py", page))
    for name, text in files.items():
        lines = [line for line in text.splitlines() if line.strip()]
        assert len(lines) <= LONGEST, (name, len(lines))
