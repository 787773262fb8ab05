"""docs/guidance.md: its blocks run, in one namespace, and what they say of one another holds."""

from __future__ import annotations

import pytest
import torch

from pages import DOCS, execute, python_blocks

BLOCKS = python_blocks((DOCS / "guidance.md").read_text())


@pytest.mark.filterwarnings("ignore:.*got a first noise level")
def test_blocks_run_and_every_rule_does_something_else() -> None:
    namespace = execute("guidance.md")
    assert "".join(BLOCKS).count("assert ") == 1
    found = [namespace[name] for name in ("plain", "projected", "fitted", "fading", "mixed", "auto")]
    assert all(x.isfinite().all() for x in found)
    for number, x in enumerate(found):
        assert not any(torch.allclose(x, y, rtol=1e-3, atol=1e-3) for y in found[:number])
