"""docs/chain_kernel.md: its blocks run, in one namespace, with fewer calls timed."""

from __future__ import annotations

from typing import Any

from pages import DOCS, execute, python_blocks

PAGE = (DOCS / "chain_kernel.md").read_text()
BLOCKS = python_blocks(PAGE)


def test_blocks_run_and_say_what_was_timed(capsys: Any) -> None:
    shorter = [block.replace("1000))", "20))").replace("naive, 100)", "naive, 3)") for block in BLOCKS]
    namespace = execute("chain_kernel.md", shorter)
    told = capsys.readouterr().out
    for what in ("ulam.Policy: median", "naive loop:  median", "instructions, ("):
        assert what in told, told
    assert "".join(BLOCKS).count("assert ") == 2
    assert namespace["actions"].shape == (1, 7, 2) and namespace["actions"].isfinite().all()
    assert "1000))" in PAGE
