"""Whole chains of a small network: the same bits in every tiling, and the law of a loop over rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import ulam_kernels
from bit_comparison import differences, same_bits
from cpu_settings import instruction_set, threads
from reduce_cases import MIXED, mixed_table
from ulam_kernels import Table, _cpu, dispatch
from ulam_kernels.networks import LayerNorm, LayerNormGradient, Linear, Network, Operand, Unary
from ulam_kernels.table import LEARNED, READS_Z
from ulam_kernels.walks import BoundWalk
from walk_cases import Walk, mlp, random_network, random_walk

SETS = _cpu.instruction_sets()
# Counts of chains around those at which the tiling changes, on every instruction set.
CHAINS = (1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 45)
OPTIONS = {
    "apart": {}, "together": {"together": True}, "guided": {"guided": True, "scaled": True},
    "guided together": {"guided": True, "together": True, "scaled": True}, "plain": {"learned": False},
    "plain together": {"learned": False, "together": True, "guided": True},
}  # fmt: skip


def case(name: str, chains: int, seed: int) -> Walk:
    rng = np.random.default_rng([seed, chains])
    n, registers = int(rng.integers(1, 19)), int(rng.integers(1, 6))
    return random_walk(rng, chains, n, registers, **OPTIONS[name])


def assert_same(ours: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    for name, a, b in zip(("states", "cursor", "net_in"), ours, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or differences(a, b) == 0, name


@pytest.mark.parametrize("chains", CHAINS)
@pytest.mark.parametrize("name", OPTIONS)
def test_every_instruction_set_has_the_bits_of_the_reference(name: str, chains: int) -> None:
    walk = case(name, chains, 0)
    expected = walk.run("reference")
    assert expected[0].isfinite().all() and not torch.equal(expected[0], walk.states)
    for instructions in SETS:
        with instruction_set(instructions) as backend:
            assert_same(walk.run(backend), expected)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_chain_is_the_same_in_any_company(name: str) -> None:
    """Alone, in parts, in another order, on other counts of threads."""
    walk = case(name, 70, 1)
    states, cursor, net_in = walk.run("cpu")
    order = torch.from_numpy(np.random.default_rng(0).permutation(70))
    parts = [order, *torch.arange(70).split(11), *torch.arange(70).split(25), torch.tensor([3]), torch.arange(0, 70, 2)]
    for count in (1, 2, 3):
        with threads(count):
            assert_same(walk.run("cpu"), (states, cursor, net_in))
            for these in parts:
                expected = states[:, these], cursor[:, these], None if net_in is None else net_in[these]
                assert_same(walk.chains(these).run("cpu"), expected)


@pytest.mark.parametrize("widths", [(14, 256, 256, 14), (2, 64, 64, 2), (256, 512, 31, 256), (1, 1, 1)])
def test_wide_networks(widths: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    network = mlp(rng, widths)
    for chains, together in ((1, True), (2, False), (7, False), (19, True)):
        walk = random_walk(rng, chains, widths[0], 1, network=network, learned=False, together=together, steps=2)
        expected = walk.run("reference")
        for instructions in SETS:
            with instruction_set(instructions) as backend:
                assert_same(walk.run(backend), expected)


def torch_function(one: Unary) -> Callable[[torch.Tensor], torch.Tensor]:
    special = {
        "identity": torch.clone, "tanh": torch.tanh, "gelu_tanh": partial(F.gelu, approximate="tanh"),
        "leaky_relu": partial(F.leaky_relu, negative_slope=one.parameter), "elu": partial(F.elu, alpha=one.parameter),
    }  # fmt: skip
    if one.function.endswith("_slope"):
        inner = torch_function(replace(one, function=one.function.removesuffix("_slope")))
        return lambda x: gradient_of(inner, x, torch.ones_like(x))
    found: Callable[[torch.Tensor], torch.Tensor] = special.get(one.function) or getattr(F, one.function)
    return found


def gradient_of(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, gradient: torch.Tensor
) -> torch.Tensor:
    at = x.detach().requires_grad_()
    (found,) = torch.autograd.grad(function(at), at, gradient.expand_as(at))
    return found


def of_torch(network: Network, x: torch.Tensor, row: torch.Tensor, chain: torch.Tensor) -> torch.Tensor:
    """The network by torch's own functions."""
    constants = network.constants.to(x.dtype)

    def vector(operand: Operand | None, width: int) -> torch.Tensor | None:
        if operand is None:
            return None
        if operand.kind == "value":
            return values[operand.index]
        source = {"constant": constants, "row": row, "chain": chain}[operand.kind]
        return source[..., operand.index : operand.index + width]

    values = {0: x}
    for one in network.instructions:
        width = network.widths[one.out]
        if isinstance(one, Linear):
            parts = [F.linear(values[v], w.to(x.dtype)) for v, w in zip(one.inputs, one.weights, strict=True)]
            value = sum(parts) + sum(vector(o, width) for o in one.start)  # type: ignore[operator]
        elif isinstance(one, Unary):
            value = torch_function(one)(values[one.value])
        elif isinstance(one, LayerNorm):
            weight, bias = vector(one.weight, width), vector(one.bias, width)
            value = F.layer_norm(values[one.value], (width,), weight, bias, one.eps)
        elif isinstance(one, LayerNormGradient):
            normed = partial(
                F.layer_norm, normalized_shape=(width,), weight=vector(one.weight, width), bias=None, eps=one.eps
            )
            gradient = vector(one.gradient, width)
            assert gradient is not None
            value = gradient_of(normed, values[one.value], gradient)
        else:
            a, b = vector(one.a, width), vector(one.b, width)
            value = {"add": torch.add, "sub": torch.sub, "mul": torch.mul}[one.function](a, b)
        values[one.out] = value
    return values[network.output]


def by_loop(walk: Walk) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """A plain loop: torch's network, `ulam_kernels.advance`, `ulam_kernels.step`, on chains that are not idle."""
    states, cursor, given = walk.states.clone(), walk.cursor.clone(), walk.given
    net_in = None if walk.net_in is None else walk.net_in.clone()
    now = torch.zeros_like(cursor[:2])
    for _ in range(walk.steps):
        x = states[0] if net_in is None else net_in
        row = given["row_vectors"][cursor[0]]
        model = of_torch(walk.network, x, row, given["chain_vectors"])
        uncond, guidance = None, given.get("guidance")
        if "uncond_vectors" in given:
            uncond = of_torch(walk.network, x, row, given["uncond_vectors"])
        ulam_kernels.advance(cursor, now, model=model, uncond=uncond, guidance=guidance)
        kept = states.clone(), None if net_in is None else net_in.clone()
        row, draw = (line.contiguous() for line in now)
        ids = {"seed": given["seed"], "chain": given["chain"], "draw": draw}
        ulam_kernels.step(states, walk.table, row, model=model, uncond=uncond, guidance=guidance, net_in=net_in, **ids)
        idle = now[0] == 0
        states[:, idle] = kept[0][:, idle]
        if net_in is not None and kept[1] is not None:
            net_in[idle] = kept[1][idle]
    return states, cursor, net_in


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", OPTIONS)
def test_the_loop_over_rows_in_torch(name: str, seed: int) -> None:
    """In float64 to its rounding; in float32 with an error like that of torch's own float32 loop."""
    walk = case(name, 9, 10 + seed)
    exact, cursor, net_in = by_loop(walk.wide())
    ours = walk.wide().run("reference")
    scale = exact.abs().max()
    assert (ours[0] - exact).abs().max() < 1e-11 * scale and torch.equal(ours[1], cursor)
    assert net_in is None or (ours[2] - net_in).abs().max() < 1e-11 * scale
    native, theirs = walk.run("cpu"), by_loop(walk)
    assert torch.equal(native[1], cursor)
    error, usual = ((got - exact).abs().max() / scale for got in (native[0], theirs[0]))
    assert error < max(3 * usual, 2e-6), (error, usual)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("chains", [5, 40])
def test_a_chain_that_is_not_finite_stops_alone(chains: int, together: bool) -> None:
    """At its first row, and at a later one, with its last finite state; guidance that ignores an output keeps it."""
    rng = np.random.default_rng(3)
    walk = random_walk(rng, chains, 6, 2, guided=True, learned=False, scaled=True, together=together, steps=5)
    assert walk.network.chain_width and walk.network.row_width
    before = walk.run("cpu")
    given = {name: tensor.clone() for name, tensor in walk.given.items()}
    walk.cursor[:4, :5] = torch.tensor([3, 7, 2, 16])[:, None]
    given["chain_vectors"][:3] = float("nan")
    given["uncond_vectors"][4] = float("inf")
    given["guidance"][:5] = torch.tensor([2.0, 1.0, 0.0, 1.0, 1.0])
    given["row_vectors"][7 if together else 5] = float("nan")
    if together:
        walk.cursor[0, 5:] = 20
        walk.cursor[2, 5:] = 1
    bad = replace(walk, given=given)
    expected = bad.run("reference")
    assert expected[1][4, :2].tolist() == [3, 3] and expected[1][0, :2].tolist() == [0, 0]
    assert expected[1][4, 2:5].tolist() == [7 if together else 5] * 3
    assert torch.equal(expected[0][:, :2], walk.states[:, :2])
    assert expected[0].isfinite().all()
    for instructions in SETS:
        with instruction_set(instructions) as backend:
            assert_same(bad.run(backend), expected)
            if not together:
                well = torch.nonzero((expected[1][4] == 0) & (torch.arange(chains) >= 5)).flatten()
                assert len(well) or chains < 10
                assert differences(bad.run(backend)[0][:, well], before[0][:, well]) == 0


@pytest.mark.parametrize("name", OPTIONS)
def test_steps_may_be_split(name: str) -> None:
    walk = case(name, 21, 4)
    states, cursor, net_in = walk.states, walk.cursor, walk.net_in
    for steps in (1, 0, 2, 1):
        states, cursor, net_in = replace(walk, states=states, cursor=cursor, net_in=net_in, steps=steps).run("cpu")
    assert_same((states, cursor, net_in), walk.run("cpu"))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_bound_walk_is_the_walk(name: str, backend: str) -> None:
    walk = case(name, 6, 4)
    states, cursor = walk.states.clone(), walk.cursor.clone()
    net_in = None if walk.net_in is None else walk.net_in.clone()
    bound = BoundWalk(states, walk.table, cursor, walk.network, net_in=net_in, backend=backend, **walk.given)
    version = states._version
    bound(1), bound(0), bound(walk.steps - 1)
    assert_same((states, cursor, net_in), walk.run("cpu"))
    assert states._version > version
    with pytest.raises(TypeError, match=r"^steps: got"):
        bound("2")  # type: ignore[arg-type]
    shared = walk.given | {"chain": cursor[0]}
    with pytest.raises(ValueError, match=r"^chain: got memory shared with what is written"):
        BoundWalk(states, walk.table, cursor, walk.network, net_in=net_in, backend=backend, **shared)


def test_a_bound_walk_keeps_to_the_panels_of_its_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    walk = case("apart", 2, 4)
    bound = BoundWalk(
        walk.states, walk.table, walk.cursor, walk.network, net_in=walk.net_in, backend="cpu", **walk.given
    )
    monkeypatch.setattr(_cpu, "panel_columns", lambda: 7)
    with pytest.raises(RuntimeError, match=r"^instruction set: got panels of 7, expected"):
        bound(1)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_idle_chains_are_left_alone(backend: str) -> None:
    walk = case("apart", 33, 5)
    walk.cursor[:, ::3] = 0
    walk.cursor[1, ::3], walk.cursor[3, ::3], walk.states[:, ::3] = 5, 7, float("nan")
    states, cursor, _ = walk.run(backend)
    assert states[:, ::3].isnan().all() and states[:, 1::3].isfinite().all()
    expected = walk.cursor[:, ::3].clone()
    expected[1] += 7 * walk.steps
    assert torch.equal(cursor[:, ::3], expected)


def test_rows_with_reductions() -> None:
    """Thresholds and norms, beside rows that have none."""
    rng = np.random.default_rng(6)
    rows = len(MIXED)
    for registers in (1, 2):
        for chains in (3, 23):
            network = random_network(rng, 7)
            walk = random_walk(rng, chains, 7, registers, network=network, learned=False, steps=3)
            cursor = walk.cursor.clone()
            cursor[0] = torch.arange(chains) % (rows - 1) + 1
            cursor[2] = 0
            given = walk.given | {"row_vectors": walk.given["row_vectors"][:rows]}
            walk = replace(walk, table=mixed_table(registers), cursor=cursor, given=given)
            expected = walk.run("reference")
            assert not same_bits(expected[0], walk.states)
            for instructions in SETS:
                with instruction_set(instructions) as backend:
                    assert_same(walk.run(backend), expected)


def test_weights_are_packed_once_and_are_the_networks_own() -> None:
    matrix = torch.randn(3, 3)
    network = Network(3, (3, 3), (Linear(1, (0,), (matrix,)),))
    walk = random_walk(np.random.default_rng(7), 2, 3, 1, network=network, learned=False)
    before = walk.run("cpu")
    matrix.fill_(7)
    assert_same(walk.run("cpu"), before)
    first = network.__dict__["packed"]
    walk.run("cpu")
    assert network.__dict__["packed"] is first


def refused(kind: type[Exception], message: str, backend: str = "cpu", walk: Walk | None = None, **other: Any) -> None:
    walk = walk or case("guided", 3, 8)
    with pytest.raises(kind, match=message):
        walk.run(backend, **other)


def test_what_only_the_rows_tell() -> None:
    walk = case("apart", 4, 9)
    walk.cursor[:4] = torch.tensor([3, 0, 1, 0])[:, None]
    every = Table(walk.table.coef, walk.table.flags | READS_Z, walk.table.registers)
    for bad, advance in ((-1, 0), (40, 0), (39, 1), (2, -1), (5, 2**62)):
        cursor = walk.cursor.clone()
        cursor[0, 2], cursor[2, 2] = bad, advance
        refused(IndexError, r"^cursor: got row .* for chain 2, expected a row of the table of 40", walk=replace(
            walk, cursor=cursor))  # fmt: skip
    refused(ValueError, r"^seed, chain: got None, .* row 3 of chain 0 reads noise", walk=replace(walk, table=every),
            seed=None, chain=None)  # fmt: skip
    narrow = random_network(np.random.default_rng(0), walk.states.shape[2])
    learned = Table(walk.table.coef, walk.table.flags | LEARNED, walk.table.registers)
    given = random_walk(np.random.default_rng(0), 4, walk.states.shape[2], 1, network=narrow).given
    refused(ValueError, r"^network: got an output as wide as x, .* learned variance",
            walk=replace(walk, network=narrow, table=learned, given=given))  # fmt: skip


def test_other_backends_are_refused_by_name() -> None:
    refused(ValueError, "^backend: ", backend="triton")
    refused(ValueError, "^backend: got 'gpu'", backend="gpu")
    wide = case("apart", 2, 0).wide()
    refused(ValueError, "^backend: got 'cpu', expected 'reference'", walk=wide)
    meta = replace(case("apart", 2, 0), states=torch.zeros(1, 2, 3, device="meta"))
    refused(ValueError, "^states: got", walk=meta)


def test_gpus_walk_by_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """By themselves; the backend that is asked for must have the operation."""
    modules = {name: ModuleType(f"ulam_kernels.{name}") for name in ("cuda", "triton", "reference")}
    for name in ("triton", "reference"):
        modules[name].__dict__["bound_walk"] = None
    monkeypatch.setattr(dispatch, "select", lambda name, device, dtype: modules[name or "cuda"])
    monkeypatch.delenv("ULAM_BACKEND", raising=False)
    for name in (None, "triton"):
        assert dispatch.select_for_networks(name, "cuda", torch.float32) is modules["triton"]
    for name in ("cuda", "reference"):
        with pytest.raises(ValueError, match=f"^backend: got '{name}', expected 'triton'"):
            dispatch.select_for_networks(name, "cuda", torch.float32)


@pytest.mark.parametrize("by", ["torch.jit.trace", "make_fx", "fake"])
def test_what_records_or_has_no_memory_is_refused(by: str) -> None:
    """No operator of torch stands for a walk."""
    walk = case("apart", 2, 0)

    def call(states: torch.Tensor) -> torch.Tensor:
        return replace(walk, states=states).run("cpu")[0]

    with pytest.raises(RuntimeError, match=r"^walk: got a call under [^\n]*, expected one outside: [^\n]*\Z"):
        if by == "make_fx":
            make_fx(call)(walk.states)
        elif by == "fake":
            call(FakeTensorMode().from_tensor(walk.states))
        else:
            torch.jit.trace(call, (walk.states,), check_trace=False)


def test_torch_compile_runs_it_outside_of_its_graphs() -> None:
    walk = case("guided", 5, 0)
    compiled = torch.compile(lambda states: replace(walk, states=states + 1).run("cpu")[0] - 1, backend="eager")
    expected = replace(walk, states=walk.states + 1).run("cpu")[0] - 1
    assert torch.equal(compiled(walk.states), expected)
