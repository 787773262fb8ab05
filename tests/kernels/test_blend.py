"""Mask blending with a known image: the formula, and every CPU path against the reference, bit for bit."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

import ulam_kernels
from bit_comparison import same_bits
from blend_cases import CHAINS, random_inputs
from step_cases import FLOATS
from ulam_kernels import _cpu

BACKENDS = ["reference", "cpu"]


@pytest.mark.parametrize("state_type, net_type", list(itertools.product(FLOATS, (None, *FLOATS))))
def test_every_instruction_set_equals_the_reference(state_type: torch.dtype, net_type: torch.dtype | None) -> None:
    rng = np.random.default_rng([FLOATS.index(state_type), (None, *FLOATS).index(net_type)])
    before = _cpu.instruction_set()
    for k, shape in enumerate([(1,), (2,), (3, 5, 7), (4, 33), (1, 1000), (1, 20_001)]):
        inputs: dict[str, Any] = random_inputs(rng, shape)
        if k % 2:
            inputs["noise"] = torch.from_numpy(rng.normal(size=(CHAINS, *shape))).float()
        start = torch.from_numpy(rng.normal(size=(k % 3 + 1, CHAINS, *shape))).to(state_type)
        start[0, 2][inputs["mask"][2] == 1] = math.nan
        results = []
        for name in ("reference", *_cpu.instruction_sets()):
            if name != "reference":
                _cpu.use_instruction_set(name)
            state = start.clone()
            if net_type is not None:
                inputs["net_in"] = torch.full((CHAINS, *shape), math.nan, dtype=net_type)
                inputs["c_next"] = torch.linspace(-2, 2, CHAINS)
            ulam_kernels.blend(state, backend="reference" if name == "reference" else "cpu", **inputs)
            results.append((name, state, inputs.get("net_in", state)))
            assert same_bits(state[1:], start[1:])
            assert same_bits(state[0, 0], start[0, 0])
        _cpu.use_instruction_set(before)
        for name, state, net_in in results[1:]:
            assert same_bits(state, results[0][1]), (name, shape)
            assert same_bits(net_in, results[0][2]), (name, shape)
        assert not results[0][1][0, 2].isnan().any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_blend_against_the_formula(backend: str) -> None:
    rng = np.random.default_rng(1)
    inputs = random_inputs(rng, (3, 40))
    x, z = (torch.from_numpy(rng.normal(size=(CHAINS, 3, 40))) for _ in range(2))
    x, z = x.float(), z.float()
    state, net_in = x[None].clone(), torch.full((CHAINS, 3, 40), 5.0)
    c_next = torch.linspace(1, 2, CHAINS)
    ulam_kernels.blend(state, **inputs, noise=z, net_in=net_in, c_next=c_next, backend=backend)
    a, b = (inputs[name].double()[:, None, None] for name in "ab")
    mask, known = inputs["mask"].double(), inputs["known"].nan_to_num().double()
    exact = x.double() + mask * (a * known + b * z.double() - x.double())
    exact[0] = x[0].double()
    assert torch.allclose(state[0].double(), exact, rtol=0, atol=1e-6)
    assert torch.equal(net_in[1:], (c_next[:, None, None] * state[0])[1:])
    assert torch.equal(net_in[0], torch.full((3, 40), 5.0))
    assert torch.equal(state[0][mask == 0], x[mask == 0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_noise_is_noise_v1_and_not_made_in_vain(backend: str) -> None:
    """The chain's own normals; and a = 0, b = 0 read nothing: NaN behind them stays where it is."""
    shape, ids = (CHAINS, 2, 31), torch.arange(CHAINS)
    stream = {"seed": ids + 3, "chain": ids, "draw": 16 * ids}
    z = ulam_kernels.fill_normal(torch.empty(shape), **stream)
    one, zero = torch.ones(CHAINS), torch.zeros(CHAINS)
    nan, state = torch.full(shape, math.nan), torch.zeros(1, *shape)
    ulam_kernels.blend(state, nan, torch.ones(shape), zero, one, **stream, backend=backend)
    assert torch.equal(state[0], z)
    ulam_kernels.blend(state, z, torch.ones(shape), one, zero, **stream, noise=nan, backend=backend)
    assert torch.equal(state[0], z)
    ulam_kernels.blend(state, nan, nan, zero, zero, seed=None, chain=None, draw=None, noise=nan, backend=backend)
    assert torch.equal(state[0], z)


@pytest.mark.parametrize("name", ["reference", *_cpu.instruction_sets()])
@pytest.mark.parametrize("stage", [0, 1, 15])
def test_tables_with_rows_give_the_bits_of_coefficients_a_chain(name: str, stage: int) -> None:
    """And a stage those of a draw that is so much further, which may wrap."""
    rng, before = np.random.default_rng([stage]), _cpu.instruction_set()
    for shape in ((2,), (3, 40), (1, 1000)):
        inputs: dict[str, Any] = random_inputs(rng, shape)
        inputs["draw"][0] = 2**63 - 1
        start = torch.from_numpy(rng.normal(size=(1, CHAINS, *shape))).float()
        row = torch.from_numpy(rng.integers(0, 9, CHAINS))
        tables = {name: torch.from_numpy(rng.normal(size=9)).float() for name in ("a", "b", "c_next")}
        tables["a"][1::3], tables["b"][1::2] = 0, 0
        plain = inputs | {key: table[row] for key, table in tables.items()} | {"draw": inputs["draw"] + stage}
        states, nets = [start.clone(), start.clone()], torch.full((2, CHAINS, *shape), math.nan)
        ulam_kernels.blend(states[0], **plain, net_in=nets[0], backend="reference")
        if name != "reference":
            _cpu.use_instruction_set(name)
        backend = "reference" if name == "reference" else "cpu"
        inputs |= tables
        ulam_kernels.blend(states[1], **inputs, net_in=nets[1], row=row, stage=stage, backend=backend)
        _cpu.use_instruction_set(before)
        assert same_bits(*states) and same_bits(*nets)
        assert not same_bits(states[0], start)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("row", [-1, 4, 2**40])
def test_a_row_outside_the_tables_raises_before_anything_is_written(backend: str, row: int) -> None:
    inputs: dict[str, Any] = random_inputs(np.random.default_rng(3), (5,))
    state, net_in, table = torch.ones(1, CHAINS, 5), torch.ones(CHAINS, 5), torch.ones(4)
    rows = torch.tensor([0, 1, 2, 3, row, 0])
    inputs |= {"a": table, "b": table, "c_next": table, "net_in": net_in, "row": rows}
    with pytest.raises(IndexError, match=f"^row: got {row} for chain 4, expected a row of the table of 4"):
        ulam_kernels.blend(state, **inputs, backend=backend)
    assert torch.equal(state, torch.ones_like(state)) and torch.equal(net_in, torch.ones_like(net_in))


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(threads: int) -> None:
    rng, before = np.random.default_rng(2), torch.get_num_threads()
    inputs = random_inputs(rng, (1, 40_001))
    start = torch.from_numpy(rng.normal(size=(1, CHAINS, 1, 40_001))).float()
    state, alone = start.clone(), start.clone()
    ulam_kernels.blend(alone, **inputs, backend="reference")
    try:
        torch.set_num_threads(threads)
        ulam_kernels.blend(state, **inputs)
    finally:
        torch.set_num_threads(before)
    assert same_bits(state, alone)


def test_empty_and_float64() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    ids = {"seed": none, "chain": none, "draw": none}
    empty = torch.empty(0, 3)
    ulam_kernels.blend(torch.empty(1, 0, 3), empty, empty, torch.empty(0), torch.empty(0), **ids)
    ids = dict.fromkeys(ids, torch.zeros(2, dtype=torch.int64))
    two = torch.ones(2)
    ulam_kernels.blend(torch.empty(1, 2, 0), torch.empty(2, 0), torch.empty(2, 0), two, two, **ids)
    x, known, z = torch.randn(3, 2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    state, mask = x[None].clone(), torch.full((2, 9), 1 / 3, dtype=torch.float64)
    ulam_kernels.blend(state, known, mask, two.double() / 7, two.double() / 9, **ids, noise=z)
    exact = x + (known / 7 + z / 9 - x) / 3
    assert torch.allclose(state[0], exact, rtol=0, atol=1e-15)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("changes, named", [
    ({"state": torch.zeros(2, 3)[0]}, "state"),
    ({"state": torch.zeros(1, 3, 2).transpose(1, 2)}, "state"),
    ({"known": torch.zeros(2, 4)}, "known"),
    ({"known": torch.zeros(2, 3, dtype=torch.bfloat16)}, "known: got dtype"),
    ({"mask": torch.ones(2, 3, dtype=torch.bool)}, "mask: got dtype"),
    ({"mask": torch.ones(1, 3)}, "mask"),
    ({"a": torch.ones(1)}, "a: got shape"),
    ({"b": torch.ones(2, dtype=torch.float64)}, "b: got dtype"),
    ({"draw": None}, "seed, chain, draw: got None"),
    ({"draw": torch.zeros(2)}, "draw: got dtype"),
    ({"noise": torch.zeros(3, 2)}, "noise"),
    ({"net_in": torch.zeros(2, 3)}, "c_next: got None"),
    ({"net_in": torch.zeros(2, 2), "c_next": torch.ones(2)}, "net_in"),
    ({"net_in": torch.zeros(2, 3), "c_next": torch.ones(3)}, "c_next"),
    ({"row": torch.zeros(3, dtype=torch.int64)}, "row: got shape"),
    ({"row": torch.zeros(2)}, "row: got dtype"),
    ({"row": torch.zeros(2, dtype=torch.int64), "a": torch.ones(3)}, "b: got shape"),
    ({"row": torch.zeros(2, dtype=torch.int64), "a": torch.tensor(1.0)}, "a: got shape"),
    ({"row": torch.zeros(2, dtype=torch.int64), "net_in": torch.zeros(2, 3), "c_next": torch.ones(3)}, "c_next: got"),
    ({"a": torch.ones(3), "b": torch.ones(3)}, "a: got shape"),
    ({"stage": 16}, "stage: got 16, expected 0 to 15"),
    ({"stage": -1}, "stage: got -1"),
    ({"stage": 0.5}, "stage: got 0.5"),
    ({"stage": True}, "stage: got True"),
])  # fmt: skip
def test_bad_input_is_named(backend: str, changes: dict[str, Any], named: str) -> None:
    zero = torch.zeros(2, dtype=torch.int64)
    given: dict[str, Any] = {
        "state": torch.zeros(1, 2, 3), "known": torch.zeros(2, 3), "mask": torch.ones(2, 3), "a": torch.ones(2),
        "b": torch.ones(2), "seed": zero, "chain": zero, "draw": zero,
    } | changes  # fmt: skip
    with pytest.raises((TypeError, ValueError), match=named):
        ulam_kernels.blend(**given, backend=backend)
