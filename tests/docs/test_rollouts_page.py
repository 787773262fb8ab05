"""docs/rollouts.md: its blocks run, in one namespace, and the weights receive a gradient."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGE = (Path(__file__).parents[2] / "docs" / "rollouts.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_blocks_run() -> None:
    namespace: dict[str, Any] = {}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"docs/rollouts.md, block {number + 1}", "exec"), namespace)
    assert "".join(BLOCKS).count("assert ") == 4
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in namespace["net"].parameters())
    assert float((namespace["ratio"].detach() - 1).abs().max()) < 1e-5
