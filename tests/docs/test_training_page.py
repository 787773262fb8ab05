"""docs/training.md does what it says: its models train, their samples pass, its scripts run on two ranks."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ulam.cli import samplers_page

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "training.md").read_text()
HEAD, *SECTIONS = re.split(r"^## (?=\d)", PAGE.split("## Sources\n")[0], flags=re.MULTILINE)
SCRIPTS = {
    name: code
    for code in re.findall(r"```python\n(# \w+\.py: .*?)```", PAGE, flags=re.DOTALL)
    for name in re.findall(r"^# (\w+\.py): ", code)
}
ON_TWO_RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def blocks(section: str) -> list[str]:
    return re.findall(r"```python\n(?!# \w+\.py: )(.*?)```", section, flags=re.DOTALL)


def execute(section: str, namespace: dict[str, Any]) -> None:
    title = section.splitlines()[0]
    for number, block in enumerate(blocks(section)):
        exec(compile(block, f"docs/training.md, {title}, block {number}", "exec"), namespace)


@pytest.fixture(scope="module")
def begun() -> dict[str, Any]:
    """The page up to its first section, which is all that the others build on."""
    namespace: dict[str, Any] = {}
    for section in (HEAD, SECTIONS[0]):
        execute(section, namespace)
    return namespace


@pytest.mark.long
@pytest.mark.parametrize("section", SECTIONS[1:], ids=lambda section: section.splitlines()[0])
def test_a_section_runs_and_its_claims_hold(begun: dict[str, Any], section: str) -> None:
    execute(section, dict(begun))


def test_every_training_passes_its_step_and_is_checked() -> None:
    for section in SECTIONS[2:8]:
        assert "    assert reached(" in section or "\nassert reached(" in section
        losses = re.findall(r"objectives\.(\w+)\((?!\))", section)
        told = re.findall(r"objectives\.\w+\(.*\bstep=", section)
        assert len(told) >= len([loss for loss in losses if loss != "contrastive_divergence"])


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_on_two_ranks(name: str, tmp_path: Path) -> None:
    """Where what it imports is installed; else its syntax is checked."""
    compile(SCRIPTS[name], name, "exec")
    package = name.removeprefix("train_").removesuffix(".py")
    if package != "ddp" and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    (tmp_path / name).write_text(SCRIPTS[name])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*ON_TWO_RANKS, name], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_the_page_has_the_three_recipes() -> None:
    assert list(SCRIPTS) == ["train_ddp.py", "train_accelerate.py", "train_lightning.py"]


def test_every_source_is_listed_and_no_other() -> None:
    body, sources = PAGE.split("## Sources\n")
    listed = re.findall(r"^- ([^:]*): \S", sources, flags=re.MULTILINE)
    text = re.sub(r"```python.*?```", lambda block: " ".join(re.findall("#.*", block[0])), body, flags=re.DOTALL)
    assert samplers_page.citations(text) == set(listed)
    assert listed == sorted(listed, key=str.lower)
