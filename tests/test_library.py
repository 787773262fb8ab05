"""The registered operators: their declarations hold, and compiled graphs keep them without a break."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

import ulam_kernels
from ulam_kernels import Table, ops

BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.skipif(not shutil.which("g++"), reason="no g++"))]
CHAINS, SHAPE = 3, (2, 5)


def ddpm_table() -> Table:
    one = np.ones(2)
    matrix = np.array([[[0.9, 0.0, -0.2, 0.3]], [[0.5, 0.7, 0.0, 0.0]]])
    writes = np.ones((2, 1), dtype=bool)
    return Table.pack(one, -0.5 * one, -one, one, 0 * one, 0 * one, 2 * one, matrix, writes, np.zeros(2, dtype=bool))


def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    state, model = torch.randn(2, CHAINS, *SHAPE, generator=generator)
    ids = torch.arange(CHAINS)
    return {
        "state": state[None].clone(), "row": torch.tensor([0, 1, 0]), "model": model,
        "seed": ids + 5, "chain": ids, "draw": 16 * ids,
    }  # fmt: skip


def positional_step(**changes: object) -> tuple[object, ...]:
    given = inputs() | changes
    table = ddpm_table()
    names = ["model", "uncond", "guidance", "seed", "chain", "draw", "noise", "net_in"]
    return (given["state"], table.coef, table.flags, given["row"], *(given.get(name) for name in names))


@pytest.mark.parametrize("changes", [
    {},
    {"net_in": torch.zeros(CHAINS, *SHAPE, dtype=torch.bfloat16)},
    {"uncond": torch.ones(CHAINS, *SHAPE), "guidance": torch.tensor([0.0, 1.0, 2.0])},
    {"seed": None, "chain": None, "draw": None, "noise": torch.ones(CHAINS, *SHAPE)},
])  # fmt: skip
def test_opcheck_of_step(changes: dict[str, torch.Tensor]) -> None:
    torch.library.opcheck(torch.ops.ulam.step.default, positional_step(**changes))


def test_opcheck_of_fill_normal() -> None:
    ids = torch.arange(CHAINS)
    arguments = (torch.zeros(CHAINS, *SHAPE), ids, ids, ids, 1, 0.5, 3)
    torch.library.opcheck(torch.ops.ulam.fill_normal.default, arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_opcheck_of_affine(dtype: torch.dtype) -> None:
    x, m = torch.randn(2, CHAINS, *SHAPE, generator=torch.Generator().manual_seed(1)).to(dtype)
    a, b = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.5, 1.0, 0.0])
    torch.library.opcheck(torch.ops.ulam.affine.default, (x.float(), m, a, b))
    torch.library.opcheck(torch.ops.ulam.affine_out.default, (x, m, a, b, torch.empty_like(x)))


def sample(state: torch.Tensor, table: Table, row: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Every operation, with ordinary ones between them that must see what was written in place."""
    ulam_kernels.fill_normal(state[0], seed=ids + 5, chain=ids, draw=16 * ids, tag=1, scale=2.0)
    before = state[0] * 1.0
    net_in = torch.empty_like(before)
    for _ in range(2):
        model = state[0] * 0.5  # exact, so inductor's code for it rounds alike
        ulam_kernels.step(state, table, row, model=model, seed=ids + 5, chain=ids, draw=16 * ids, net_in=net_in)
    weights = ids.float()
    out = torch.empty_like(before)
    ulam_kernels.affine(before, net_in, weights, 1 - weights, out)
    return ulam_kernels.affine(out, state[0] + 1, weights, weights)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_whole_without_a_break(backend: str) -> None:
    torch._dynamo.reset()
    arguments = (ddpm_table(), torch.tensor([0, 1, 0]), torch.arange(CHAINS))
    plain, compiled = torch.full((2, 1, CHAINS, *SHAPE), float("nan"))
    expected = sample(plain, *arguments)
    got = torch.compile(sample, backend=backend, fullgraph=True)(compiled, *arguments)
    assert torch.equal(compiled, plain)
    assert torch.equal(got, expected)


def test_the_graph_holds_the_operators() -> None:
    torch._dynamo.reset()
    seen: list[str] = []

    def record(graph: torch.fx.GraphModule, example_inputs: list[torch.Tensor]) -> object:
        seen.extend(str(node.target) for node in graph.graph.nodes if str(node.target).startswith("ulam."))
        return graph

    state = torch.zeros(1, CHAINS, *SHAPE)
    torch.compile(sample, backend=record, fullgraph=True)(
        state, ddpm_table(), torch.tensor([0, 1, 0]), torch.arange(CHAINS)
    )
    assert seen == ["ulam.fill_normal", "ulam.step", "ulam.step", "ulam.affine_out", "ulam.affine"]


def test_validation_speaks_when_the_graph_runs() -> None:
    torch._dynamo.reset()
    run = torch.compile(lambda *given, **named: ulam_kernels.step(*given, **named), backend="eager", fullgraph=True)
    given = inputs()
    state, row = given.pop("state"), given.pop("row")
    with pytest.raises(TypeError, match="row: got dtype"):
        run(state, ddpm_table(), row.int(), **given)


def test_eager_calls_skip_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "ulam", None)
    given = inputs()
    ops.step(given.pop("state"), ddpm_table(), given.pop("row"), **given)
