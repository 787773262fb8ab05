"""The pages of docs/ for the tests: their Python, executed block by block in one namespace, as a reader would."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def execute(page: str, blocks: list[str] | None = None) -> dict[str, Any]:
    """The namespace after all blocks of a page, by its path in docs/, or after those given."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, block in enumerate(python_blocks((DOCS / page).read_text()) if blocks is None else blocks):
        exec(compile(block, f"docs/{page}, block {number + 1}", "exec"), namespace)
    return namespace


def uses(text: str) -> dict[int, object]:
    """What the Python of a page calls, reads or passes on of ulam, by its id: not what it only imports, nor words in
    strings and comments. An annotation counts where it says what a call has returned."""
    tree = ast.parse("\n".join(python_blocks(text)))
    imported: dict[str, object] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in (alias for alias in node.names if _ours(alias.name)):
                top = alias.name if alias.asname else alias.name.partition(".")[0]
                imported[alias.asname or top] = importlib.import_module(top)
        elif isinstance(node, ast.ImportFrom) and _ours(node.module or ""):
            for alias in node.names:
                imported[alias.asname or alias.name] = _inside(importlib.import_module(str(node.module)), alias.name)
    return {id(it): it for node in _read(tree) for it in _chain(node, imported)}


def _ours(module: str) -> bool:
    return module.partition(".")[0] in ("ulam", "ulam_kernels")


def _read(tree: ast.AST) -> Iterator[ast.AST]:
    """The names and attributes in a tree, without annotations of arguments and of what has no value."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns") and not (isinstance(tree, ast.AnnAssign) and tree.value is not None):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from ([child] if isinstance(child, (ast.Name, ast.Attribute)) else [])
                yield from _read(child)


def _chain(node: ast.AST, imported: dict[str, object]) -> list[object]:
    """The objects along a.b.c, from an import on."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in imported:
        return []
    found = [imported[node.id]]
    for name in reversed(names):
        found.append(_inside(found[-1], name))
    return [it for it in found if it is not None]


def _inside(it: object, name: str) -> object:
    if isinstance(it, ModuleType) and not hasattr(it, name):
        try:
            return importlib.import_module(f"{it.__name__}.{name}")
        except ModuleNotFoundError:
            return None
    return getattr(it, name, None)
