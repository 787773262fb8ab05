"""The pages of docs/ for the tests: their Python, executed block by block in one namespace, as a reader would."""

from __future__ import annotations

import re
from pathlib import Path
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
