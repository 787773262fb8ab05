"""How the tests are laid out: files that stand alone, in folders, and what they share in tests/support."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
SUPPORT = sorted((TESTS / "support").glob("*.py"))
FILES = sorted(TESTS.rglob("test_*.py"))


def imported(path: Path) -> set[str]:
    """The modules that a file imports, at its top, in a function or as a plugin of pytest."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytest_plugins":
            names.add(ast.literal_eval(node.value))
    return names


def test_no_test_file_is_imported() -> None:
    tests = {path.stem for path in FILES}
    assert len(tests) == len(FILES)  # pytest imports them by these names
    assert {path.name: sorted(tests & imported(path)) for path in [*FILES, *SUPPORT] if tests & imported(path)} == {}


def test_every_test_file_is_in_a_folder_of_what_it_tests() -> None:
    assert FILES and all(path.parent.parent == TESTS and path.parent.name != "support" for path in FILES)


def test_every_support_module_is_used() -> None:
    scripts = {"sanitize"}  # of the Makefile
    used = set[str]().union(*(imported(path) for path in [*FILES, *SUPPORT])) | scripts
    assert [path.stem for path in SUPPORT if path.stem not in used] == []
    assert "tests/support/sanitize.py" in (TESTS.parent / "Makefile").read_text()


def test_importing_ulam_loads_nothing_that_takes_seconds() -> None:
    heavy = "torch._dynamo", "torch._inductor", "triton", "sklearn", "matplotlib", "diffusers", "transformers"
    code = f"import sys, ulam; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
