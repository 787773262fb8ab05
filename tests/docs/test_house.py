"""The house that CONTRIBUTING.md describes: no circle of imports, files and functions that are read in one sitting."""

from __future__ import annotations

import ast
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

grimp = pytest.importorskip("grimp", reason="comes with import-linter, which make lint runs")

import networkx  # noqa: E402

ROOT = Path(__file__).parents[2]
PYTHON = [path for folder in ("engine", "kernels", "tests", "bench") for path in sorted((ROOT / folder).rglob("*.py"))]
PACKAGES = {"ulam": ROOT / "engine" / "ulam", "ulam_kernels": ROOT / "kernels" / "ulam_kernels"}
FILES_AT_THE_TOP, LINES, FUNCTION_LINES = 18, 400, 80
TOP = {
    "engine", "kernels", "csrc", "bindings", "tests", "bench", "docs", "setup.py", "README.md", ".ci", ".clang-format",
    ".gitignore", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "Makefile",
    "constraints.txt", "pyproject.toml",
}  # fmt: skip
LARGEST = 3 << 20  # bytes of a file: the digits' weights take most of it


def test_no_imports_lead_in_a_circle():
    """Those for type checkers alone and those inside of functions count."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None, exclude_type_checking_imports=False)
    imports = networkx.DiGraph()
    for module in graph.modules:
        imports.add_edges_from((module, other) for other in graph.find_modules_directly_imported_by(module))
    assert len(imports) > 200 and imports.has_edge("ulam.engine.sample", "ulam.engine.engine")
    circles = [sorted(circle) for circle in networkx.strongly_connected_components(imports) if len(circle) > 1]
    upward = "ulam.denoiser", "ulam.integrations.diffusers.loading"
    assert imports.has_edge(*upward), "the one import to a higher floor is gone: pyproject.toml still allows it"
    assert circles == []


def test_nothing_strange_is_kept():
    """No wheel, archive or result that fell into the checkout is under version control."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a checkout of git")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = [name for name in listed.split("\0") if name]
    assert {name.partition("/")[0] for name in files} <= TOP
    assert [name for name in files if (ROOT / name).exists() and (ROOT / name).stat().st_size > LARGEST] == []


def test_few_files_lie_at_the_top():
    assert len(list(PACKAGES["ulam"].glob("*.py"))) <= FILES_AT_THE_TOP


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_read_in_one_sitting(path):
    text = path.read_text()
    assert text.count("\n") <= LINES
    long = {name: lines for name, lines in functions(ast.parse(text)) if lines > FUNCTION_LINES}
    assert long == {}


def functions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every function's name and its lines, with its docstring and decorators."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - min(part.lineno for part in (node, *node.decorator_list)) + 1


@pytest.mark.parametrize("path", sorted(ROOT.glob("csrc/**/*.*")), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_native_file_is_read_in_one_sitting(path):
    assert path.read_text().count("\n") <= LINES


@pytest.mark.parametrize("folder", [p.parent for root in PACKAGES.values() for p in sorted(root.rglob("__init__.py"))])
def test_a_folder_says_in_two_lines_what_lives_there(folder):
    said = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    assert said and len([line for line in said.splitlines() if line]) == 2
