"""docs/rollouts.md: its blocks run, in one namespace, and the weights receive a gradient."""

from __future__ import annotations

from pages import DOCS, execute, python_blocks

BLOCKS = python_blocks((DOCS / "rollouts.md").read_text())


def test_blocks_run() -> None:
    namespace = execute("rollouts.md")
    assert "".join(BLOCKS).count("assert ") == 4
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in namespace["net"].parameters())
    assert float((namespace["ratio"].detach() - 1).abs().max()) < 1e-5
