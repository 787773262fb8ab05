"""The registered operators: their declarations hold, and compiled graphs keep them without a break."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import ulam_kernels
from tracing_cases import CASES
from tracing_cases import inputs as inputs_of
from ulam_kernels import Table, operator, ops
from ulam_kernels.dispatch import select

BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.skipif(not shutil.which("g++"), reason="no g++"))]
CHAINS, SHAPE = 3, (2, 5)


def ddpm_table() -> Table:
    one = np.ones(2)
    matrix = np.array([[[0.9, 0.0, -0.2, 0.3]], [[0.5, 0.7, 0.0, 0.0]]])
    writes = np.ones((2, 1), dtype=bool)
    return Table.pack(one, -0.5 * one, -one, one, 0 * one, 0 * one, 2 * one, matrix, writes, np.zeros(2, dtype=bool))


def threshold_table() -> Table:
    """The same, but for the bounds of D."""
    table, level = ddpm_table(), np.full(2, 0.75)
    columns = table.coef[:, :7].double().numpy().T
    none, every = np.zeros(2, dtype=bool), np.ones(2, dtype=bool)
    matrix = table.coef[:, 7:].double().view(2, 1, 4).numpy()
    bounds = (level, np.full(2, np.inf))
    return Table.pack(*columns[:2], *bounds, *columns[4:], matrix, every[:, None], none, threshold=every)


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
    names = ["model", "uncond", "guidance", "seed", "chain", "draw", "noise", "net_in", "scales"]
    return (given["state"], table.coef, table.flags, given["row"], *(given.get(name) for name in names))


def blend_arguments() -> tuple[torch.Tensor, ...]:
    """state, known, mask, a, b, seed, chain, draw."""
    generator, ids = torch.Generator().manual_seed(2), torch.arange(CHAINS)
    state, known, mask = torch.rand(3, CHAINS, *SHAPE, generator=generator)
    a, b = torch.tensor([[0.5, 0.0, 1.0], [0.5, 0.0, 0.25]])
    return state[None].clone(), known, mask, a, b, ids + 5, ids, 16 * ids


@pytest.mark.parametrize("changes", [
    {},
    {"net_in": torch.zeros(CHAINS, *SHAPE, dtype=torch.bfloat16)},
    {"uncond": torch.ones(CHAINS, *SHAPE), "guidance": torch.tensor([0.0, 1.0, 2.0])},
    {"seed": None, "chain": None, "draw": None, "noise": torch.ones(CHAINS, *SHAPE)},
    {"scales": torch.ones(CHAINS, 4)},
])  # fmt: skip
def test_opcheck_of_step(changes: dict[str, torch.Tensor]) -> None:
    torch.library.opcheck(torch.ops.ulam.step.default, positional_step(**changes))


def test_opcheck_of_reduce() -> None:
    given = positional_step()
    torch.library.opcheck(torch.ops.ulam.reduce.default, (*given[:11], torch.zeros(CHAINS, 4)))


@pytest.mark.parametrize("with_input", [False, True])
def test_opcheck_of_blend(with_input: bool) -> None:
    rest = (None, torch.zeros(CHAINS, *SHAPE), torch.ones(CHAINS)) if with_input else ()
    torch.library.opcheck(torch.ops.ulam.blend.default, (*blend_arguments(), *rest))
    options = {"row": torch.tensor([2, 0, 1]), "stage": 3}
    torch.library.opcheck(torch.ops.ulam.blend.default, (*blend_arguments(), *rest), options)


@pytest.mark.parametrize("limited", [False, True])
def test_opcheck_of_look_up(limited: bool) -> None:
    three = torch.ones(CHAINS)
    rest = (three * 2, torch.stack([three - 1, three]), torch.zeros(CHAINS)) if limited else ()
    arguments = (torch.arange(5.0), torch.tensor([4, 0, 1]), torch.zeros(CHAINS), *rest)
    torch.library.opcheck(torch.ops.ulam.look_up.default, arguments)


@pytest.mark.parametrize("outputs", [0, 1, 2])
def test_opcheck_of_advance(outputs: int) -> None:
    model = torch.ones(CHAINS, *SHAPE)
    model[1, 0, 2] = float("nan")
    rest = (model, model, torch.tensor([0.0, 1.0, 2.0]))[: outputs + (outputs > 1)]
    cursor, now = torch.ones(6, CHAINS, dtype=torch.int64), torch.zeros(2, CHAINS, dtype=torch.int64)
    torch.library.opcheck(torch.ops.ulam.advance.default, (cursor, now, *rest))


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


def sample(state: torch.Tensor, table: Table, bounded: Table, row: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Every operation, with ordinary ones between them that must see what was written in place."""
    stream = {"seed": ids + 5, "chain": ids, "draw": 16 * ids}
    ulam_kernels.fill_normal(state[0], **stream, tag=1, scale=2.0)
    before = state[0] * 1.0
    cursor, now = torch.ones(6, CHAINS, dtype=torch.int64), torch.zeros(2, CHAINS, dtype=torch.int64)
    ulam_kernels.advance(cursor, now, model=before / ids.view(-1, 1, 1))  # the first chain's is not finite
    times = torch.empty(CHAINS)
    ulam_kernels.look_up(before[0, 0] + 1, cursor[0] + now[0], times)
    state[0, :, 0, 0] = times
    net_in = torch.empty_like(before)
    for _ in range(2):
        model = state[0] * 0.5  # exact, so inductor's code for it rounds alike
        ulam_kernels.step(state, table, row, model=model, **stream, net_in=net_in)
    scales = ulam_kernels.reduce(state, bounded, row, model=net_in, out=torch.empty(CHAINS, 4)) * 1.0
    ulam_kernels.step(state, bounded, row, model=net_in, **stream, scales=scales)
    weights = ids.float()
    ulam_kernels.blend(state, before, net_in, weights, weights, **stream, row=row, stage=1)
    out = torch.empty_like(before)
    ulam_kernels.affine(before, net_in, weights, 1 - weights, out)
    return ulam_kernels.affine(out, state[0] + 1, weights, weights)


IMAGES = (CHAINS, 2, 4, 5)


def image_arguments() -> dict[str, torch.Tensor]:
    """As `inputs`, of images: the model's output and the network's input with their channels innermost."""
    generator = torch.Generator().manual_seed(1)
    state, model = torch.randn(2, *IMAGES, generator=generator)
    last = {"memory_format": torch.channels_last}
    return inputs() | {
        "state": state[None].clone(),
        "model": model.to(**last),
        "net_in": torch.zeros(IMAGES).to(**last),
    }


def test_opcheck_of_step_with_channels_last() -> None:
    torch.library.opcheck(torch.ops.ulam.step.default, positional_step(**image_arguments()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_graphs_keep_channels_last(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """The operator sees the layouts that eager calls would: the backend copies neither the output nor the input."""
    torch._dynamo.reset()
    seen: list[tuple[int, ...]] = []
    backends = select(None, "cpu", torch.float32)
    step = backends.step

    def watched(*arguments: torch.Tensor) -> None:
        model, net_in = arguments[4], arguments[11]
        seen.extend((model.stride(), net_in.stride()))
        step(*arguments)

    def tick(state: torch.Tensor, net_in: torch.Tensor, table: Table, **given: torch.Tensor) -> torch.Tensor:
        model = given.pop("model") * 2.0  # keeps the layout
        ulam_kernels.step(state, table, given.pop("row"), model=model, net_in=net_in, **given)
        return net_in * 0.5

    table, results = ddpm_table(), []
    for run in (tick, torch.compile(tick, backend=backend, fullgraph=True)):
        given = image_arguments()
        state, net_in = given["state"], given["net_in"]
        results.append((state, net_in, run(given.pop("state"), given.pop("net_in"), table, **given)))
        monkeypatch.setattr(backends, "step", watched)
    assert seen == [(40, 1, 10, 2)] * 2  # of the compiled run
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True)) and bool(results[0][1].any())


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_whole_without_a_break(backend: str) -> None:
    torch._dynamo.reset()
    arguments = (ddpm_table(), threshold_table(), torch.tensor([0, 1, 0]), torch.arange(CHAINS))
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
        state, ddpm_table(), threshold_table(), torch.tensor([0, 1, 0]), torch.arange(CHAINS)
    )
    operations = [
        "fill_normal",
        "advance",
        "look_up",
        "step",
        "step",
        "reduce",
        "step",
        "blend",
        "affine_out",
        "affine",
    ]
    assert seen == [f"ulam.{name}" for name in operations]


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
    state, row = given.pop("state"), given.pop("row")
    ops.step(state, ddpm_table(), row, **given)
    ops.reduce(state, ddpm_table(), row, **given, out=torch.empty(CHAINS, 4))
    *arguments, seed, chain, draw = blend_arguments()
    ops.blend(*arguments, seed=seed, chain=chain, draw=draw)
    cursor, now = torch.ones(6, CHAINS, dtype=torch.int64), torch.zeros(2, CHAINS, dtype=torch.int64)
    ulam_kernels.advance(cursor, now, model=state[0])
    ulam_kernels.look_up(torch.ones(3), row, torch.empty(CHAINS))


class Operators(TorchDispatchMode):
    """Keeps the calls of ulam's operators, with copies of their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[torch._ops.OpOverload, tuple[object, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "ulam":
            copy = lambda x: x.clone() if isinstance(x, torch.Tensor) else x  # noqa: E731
            self.calls.append((func, tree_map(copy, args)))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", sorted(CASES))
def test_opcheck_of_every_operation(name: str) -> None:
    case = CASES[name]
    with Operators() as seen:
        case.call(*inputs_of(case, 1))
    assert name == "torch_normal" or {func._opname for func, _ in seen.calls} == {case.operator}
    for func, arguments in seen.calls:
        torch.library.opcheck(func, arguments)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", sorted(CASES))
def test_every_operation_compiles_whole(name: str, backend: str) -> None:
    """Without a break; compiled once, with the eager bits of other tensors."""
    torch._dynamo.reset()
    case, counter = CASES[name], torch._dynamo.testing.CompileCounterWithBackend(backend)
    compiled = torch.compile(case.call, backend=counter, fullgraph=True)
    for seed in (1, 2):
        given = inputs_of(case, seed)
        torch.manual_seed(0)
        expected = case.call(*given)
        torch.manual_seed(0)
        assert all(torch.equal(*pair) for pair in zip(compiled(*given), expected, strict=True))
    assert counter.frame_count == 1
    operators = {str(node.target).split(".")[1] for graph in counter.graphs for node in graph.graph.nodes
                 if str(node.target).startswith("ulam.")}  # fmt: skip
    assert operators == {name.split()[0] if case.operator == "normal_" else case.operator}


def test_every_operator_has_a_case() -> None:
    assert set(operator.schemas) == {case.operator for case in CASES.values()} - {"normal_"} | {"torch_normal"}
