"""Every Python block of every page runs, those of a page in one namespace; pages with other tests are named here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pages import DOCS, execute, python_blocks
from ulam.cli.main import COMMANDS

ELSEWHERE = {  # and what executes their blocks
    "chain_kernel.md": "test_chain_kernel_page", "guidance.md": "test_guidance_page",
    "rollouts.md": "test_rollouts_page", "molecules.md": "test_molecules_page",
    "theory.md": "test_theory", "training.md": "test_training_page",
    "bulk.md": "test_bulk_page", "diffusers.md": "test_diffusers_page",
}  # fmt: skip
PAGES = [str(path.relative_to(DOCS)) for path in sorted(DOCS.rglob("*.md")) if "_build" not in path.parts]
WITH_PYTHON = [page for page in PAGES if python_blocks((DOCS / page).read_text())]
LONGEST = 40  # lines of Python in a recipe


@pytest.mark.parametrize("page", [page for page in WITH_PYTHON if page not in ELSEWHERE])
@pytest.mark.filterwarnings("ignore:.*got a first noise level")
def test_the_python_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    execute(page)


def test_pages_with_tests_of_their_own_are_executed_there() -> None:
    assert set(ELSEWHERE) < set(WITH_PYTHON)
    for page, name in ELSEWHERE.items():
        assert f'"{page}"' in (Path(__file__).with_name(f"{name}.py")).read_text()


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("recipes/") and page in WITH_PYTHON])
def test_a_recipe_is_short_and_checks_what_it_says(page: str) -> None:
    code = "".join(python_blocks((DOCS / page).read_text()))
    assert len([line for line in code.splitlines() if line.strip()]) <= LONGEST
    assert re.search(r"^ *assert ", code, re.MULTILINE)


def test_every_block_of_code_says_its_language() -> None:
    """Python is executed; what is indented or has no language is output or a shell's."""
    for page in PAGES:
        languages = re.findall(r"^```(\S*)\n.*?^```$", (DOCS / page).read_text(), flags=re.MULTILINE | re.DOTALL)
        directives = {"{eval-rst}", "{include}", "{literalinclude}", "{toctree}"}
        assert {*languages} <= {"", "python", "sh", "toml"} | directives, page


def test_every_command_is_in_the_table_of_commands() -> None:
    table = re.findall(r"^\| (`ulam .*?) \|", (DOCS / "install.md").read_text(), flags=re.MULTILINE)
    named = {name for line in table for name in re.findall(r"[a-z]+", line.replace("ulam", ""))}
    assert named == set(COMMANDS)
