"""docs/molecules.md does what it says: a molecule by a formula agrees with quadrature; the network's glue is short."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from pages import DOCS, execute, python_blocks

GLUE, *BLOCKS = python_blocks((DOCS / "molecules.md").read_text())


def test_blocks_run_and_claims_hold() -> None:
    namespace = execute("molecules.md", BLOCKS)
    assert "".join(BLOCKS).count("assert ") == 4 and namespace["baoab"].draws is None


def test_the_glue_is_short_and_gives_an_energy_a_molecule() -> None:
    """Where the network is installed; else its syntax is checked."""
    assert len([line for line in GLUE.splitlines() if line.strip()]) <= 15
    code = compile(GLUE, "docs/molecules.md, block 0", "exec")
    if importlib.util.find_spec("sevenn") is None:
        pytest.skip("sevenn is not installed")
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    one = torch.tensor([[0.0, 0.0, 0.0], [0.97, 0.0, 0.0], [-0.24, 0.94, 0.0]])
    far = one + torch.tensor([3.0, -1.0, 2.0])
    energies = namespace["energy"](torch.stack([one, far, 1.1 * one]))
    torch.testing.assert_close(energies[0], energies[1], rtol=0, atol=1e-4)
    assert energies[2] > energies[0] + 0.1
