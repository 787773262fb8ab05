"""docs/chain_kernel.md: its blocks run, in one namespace, with fewer calls timed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGE = (Path(__file__).parents[2] / "docs" / "chain_kernel.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_blocks_run_and_say_what_was_timed(capsys: Any) -> None:
    namespace: dict[str, Any] = {}
    for number, block in enumerate(BLOCKS):
        shorter = block.replace("1000))", "20))").replace("naive, 100)", "naive, 3)")
        exec(compile(shorter, f"docs/chain_kernel.md, block {number + 1}", "exec"), namespace)
    told = capsys.readouterr().out
    for what in ("ulam.Policy: median", "naive loop:  median", "instructions, ("):
        assert what in told, told
    assert "".join(BLOCKS).count("assert ") == 2
    assert namespace["actions"].shape == (1, 7, 2) and namespace["actions"].isfinite().all()
    assert "1000))" in PAGE
