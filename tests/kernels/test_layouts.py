"""Network outputs and inputs with their channels innermost in memory: the step's bits, and no copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import ulam_kernels
from bit_comparison import same_bits
from layout_cases import LAYOUTS, cases, innermost, laid_out, normal, random_case
from ulam_kernels import Table, _cpu, cpu, ops

CHAINS = 5


@pytest.mark.parametrize("seed", range(5))
def test_every_instruction_set_equals_the_reference(seed: int) -> None:
    rng, before = np.random.default_rng(seed), _cpu.instruction_set()
    for shape, registers, types in cases(seed):
        start, table, row, given = random_case(rng, shape, CHAINS, types, registers)
        expected, net = start.clone(), given["net_in"].clone()
        ulam_kernels.step(expected, table, row, backend="reference", **{**given, "net_in": net})
        for layout in LAYOUTS:
            for name in ("reference", *_cpu.instruction_sets()):
                if name != "reference":
                    _cpu.use_instruction_set(name)
                state, operands = start.clone(), laid_out(given, *layout)
                backend = "reference" if name == "reference" else "cpu"
                ulam_kernels.step(state, table, row, backend=backend, **operands)
                assert same_bits(state, expected) and same_bits(operands["net_in"], net), (name, shape, layout)
        _cpu.use_instruction_set(before)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [(3, 96, 90), (4, 101, 53)])
def test_threads_tiles_and_chunks_change_no_bit(threads: int, shape: tuple[int, ...]) -> None:
    start, table, row, given = random_case(np.random.default_rng(7), shape, CHAINS, (torch.float32,) * 3, 2)
    expected, net, before = start.clone(), given["net_in"].clone(), torch.get_num_threads()
    ulam_kernels.step(expected, table, row, backend="reference", **{**given, "net_in": net})
    operands = laid_out(given, True, True)
    try:
        torch.set_num_threads(threads)
        ulam_kernels.step(start, table, row, **operands)
    finally:
        torch.set_num_threads(before)
    assert same_bits(start, expected) and same_bits(operands["net_in"], net)


def plain(shape: tuple[int, ...], **more: torch.Tensor) -> tuple[torch.Tensor, Table, torch.Tensor, dict[str, Any]]:
    """A step of the row x' = 0.9 x + 0.3 m + 0.1 z, net_in = 2 x'."""
    zero, infinite = np.zeros(1), np.full(1, np.inf)
    matrix = np.array([[[0.9, 0.0, 0.3, 0.1]]])
    table = Table.pack(zero, zero, -infinite, infinite, zero, zero, zero + 2, matrix, zero[None] == 0, zero > 0)
    ids, rng = torch.arange(CHAINS), np.random.default_rng(3)
    given = {"model": normal(rng, (CHAINS, *shape), torch.float32), "seed": ids, "chain": ids, "draw": ids} | more
    return normal(rng, (1, CHAINS, *shape), torch.float32), table, ids * 0, given


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 2, 4, 6)])
def test_nothing_is_copied(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    """The backend gets the very tensors that came; any other layout is made contiguous."""
    state, table, row, given = plain(shape)
    given |= {"uncond": given["model"] + 1, "guidance": torch.full((CHAINS,), 2.0)}
    got: list[torch.Tensor] = []
    monkeypatch.setattr(cpu, "step", lambda *tensors: got.extend((tensors[4], tensors[5], tensors[11])))
    came = [innermost(given["model"]), innermost(given["uncond"]), innermost(torch.empty(CHAINS, *shape))]
    ops.step(state, table, row, **given | dict(zip(("model", "uncond", "net_in"), came, strict=True)))
    assert all(a is b for a, b in zip(got, came, strict=True)) and not came[0].is_contiguous()
    got.clear()
    crossed = given["model"].transpose(1, -1).contiguous().transpose(1, -1)
    ops.step(state, table, row, **given | {"model": innermost(given["model"]), "uncond": crossed})
    assert got[0].is_contiguous() and got[1].is_contiguous() and torch.equal(got[1], crossed)


def test_a_network_input_of_another_layout_is_refused() -> None:
    state, table, row, given = plain((3, 8, 8))
    crossed = torch.empty(CHAINS, 3, 8, 8).transpose(2, 3)
    with pytest.raises(ValueError, match=r"net_in: got strides .*, expected a contiguous or channels-last tensor"):
        ulam_kernels.step(state, table, row, net_in=crossed, **given)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_idle_chains_and_an_empty_batch(backend: str) -> None:
    state, table, row, given = plain((3, 8, 8))
    idle = Table(table.coef, table.flags * 0, 1)
    net = innermost(torch.full((CHAINS, 3, 8, 8), 7.0))
    before = state.clone()
    ulam_kernels.step(state, idle, row, net_in=net, **given | {"model": innermost(given["model"])}, backend=backend)
    assert torch.equal(state, before) and bool((net == 7).all())
    none = {name: x[:0] for name, x in given.items()}
    ulam_kernels.step(state[:, :0], table, row[:0], net_in=innermost(net[:0]), **none, backend=backend)


def test_reduce_reads_it() -> None:
    rng = np.random.default_rng(4)
    state, table, row, given = random_case(rng, (3, 7, 9), 12, (torch.float32,) * 3, 2)
    row = torch.arange(12)
    wanted = {name: given[name] for name in ("model", "seed", "chain", "draw")}
    expected = ulam_kernels.reduce(state, table, row, out=torch.empty(12, 4), backend="reference", **wanted)
    wanted["model"] = innermost(given["model"])
    got = ulam_kernels.reduce(state, table, row, out=torch.empty(12, 4), **wanted)
    assert same_bits(got, expected) and len(expected.unique()) > 4


def test_blend_writes_it() -> None:
    rng = np.random.default_rng(5)
    state, ids = normal(rng, (1, CHAINS, 3, 7, 9), torch.float32), torch.arange(CHAINS)
    known, mask = normal(rng, (2, CHAINS, 3, 7, 9), torch.float32)
    a = torch.tensor([0.5, 0.0, 1.0, 0.3, 0.0])
    nets = [torch.full((CHAINS, 3, 7, 9), 7.0), innermost(torch.full((CHAINS, 3, 7, 9), 7.0))]
    for net in nets:
        ulam_kernels.blend(state.clone(), known, (mask > 0).float(), a, a * 0.5, seed=ids, chain=ids, draw=ids,
                           net_in=net, c_next=a + 1)  # fmt: skip
    assert torch.equal(*nets) and bool((nets[1][1] == 7).all()) and not bool((nets[1][0] == 7).any())
