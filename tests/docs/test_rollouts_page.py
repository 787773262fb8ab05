"""docs/rollouts.md: its blocks run, in one namespace, and the weights receive a gradient."""

from __future__ import annotations

from pages import DOCS, execute, python_blocks

BLOCKS = python_blocks((DOCS / "rollouts.md").read_text())


def test_blocks_run() -> None:
<<<<<<< HEAD
    namespace: dict[str, Any] = {}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"docs/rollouts.md, block {number + 1}", "exec"), namespace)
    assert "".join(BLOCKS).count("assert ") == 4
=======
    namespace = execute("rollouts.md")
    assert "".join(BLOCKS).count("assert ") == 3
>>>>>>> fbe3de3 (Build the documentation as a site: all pages, every public name, the map of the code)
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in namespace["net"].parameters())
    assert float((namespace["ratio"].detach() - 1).abs().max()) < 1e-5
