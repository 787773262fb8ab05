"""Whole chains of small networks by Triton on a GPU, against the CPU. Skipped where torch sees none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

import ulam_kernels
from bit_comparison import same_bits
from triton_walk_cases import Result, agrees, case, plain_case
from ulam_kernels import Table
from ulam_kernels.walks import BoundWalk
from walk_cases import Walk
from walk_errors import PRECISIONS

REASON = ulam_kernels.backends()["triton"]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON != "usable", reason=f"no GPU for Triton: {REASON}")]
NETWORKS = ((14, 256, 256, 256, 14), (2, 64, 64, 2), (256, 512, 256), (40, *(64,) * 8, 3, 40))
OPTIONS: tuple[dict[str, Any], ...] = (
    {}, {"guided": True, "scaled": True}, {"guided": True, "together": True}, {"learned": False, "guided": True}
)  # fmt: skip


def moved(walk: Walk) -> Walk:
    table = Table(walk.table.coef.cuda(), walk.table.flags.cuda(), walk.table.registers)
    given = {name: tensor.cuda() for name, tensor in walk.given.items()}
    net_in = None if walk.net_in is None else walk.net_in.cuda()
    return replace(walk, states=walk.states.cuda(), cursor=walk.cursor.cuda(), table=table, given=given, net_in=net_in)


def on_gpu(walk: Walk) -> Result:
    states, cursor, net_in = moved(walk).run("triton")
    return states.cpu(), cursor.cpu(), None if net_in is None else net_in.cpu()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("widths", NETWORKS)
def test_perceptrons_agree_with_the_cpu(widths: tuple[int, ...], precision: str) -> None:
    """float32: its bits; else within the errors of `walk_errors`."""
    walk = plain_case(np.random.default_rng(widths), widths, precision, 40)
    assert agrees(replace(walk, steps=3), on_gpu) < 1


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("number", range(4))
def test_every_kind_of_row_agrees_with_the_cpu(number: int, precision: str) -> None:
    rng = np.random.default_rng([number, 5])
    walk = case(rng, *((14, 2), (2, 5), (7, 1), (17, 2))[number], precision, 40, steps=3, **OPTIONS[number])
    assert agrees(walk, on_gpu) < 1


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("widths", NETWORKS[:2])
def test_a_chain_is_the_same_in_any_company(widths: tuple[int, ...], precision: str) -> None:
    """Of as many as fill the GPU many times over, and twice; rows at once and one by one."""
    walk = replace(plain_case(np.random.default_rng(3), widths, precision, 20_000), steps=4)
    whole = on_gpu(walk)
    assert whole[0].isfinite().all() and same_bits(on_gpu(walk)[0], whole[0])
    for these in (torch.randperm(20_000)[:3000], torch.tensor([19_999]), torch.arange(1, 20_000, 7)):
        assert same_bits(on_gpu(walk.chains(these))[0], whole[0][:, these])
    for _ in range(4):
        states, cursor, _ = on_gpu(replace(walk, steps=1))
        walk = replace(walk, states=states, cursor=cursor)
    assert same_bits(walk.states, whole[0]) and torch.equal(walk.cursor, whole[1])


def test_a_captured_walk_replays_with_what_its_tensors_hold_then() -> None:
    walk = replace(plain_case(np.random.default_rng(4), NETWORKS[0], "float32", 40), steps=2)
    gpu = moved(walk)
    bound = BoundWalk(gpu.states, gpu.table, gpu.cursor, gpu.network, backend="triton", **gpu.given)
    bound(2)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        bound(2)
    graph.replay()
    expected = replace(walk, steps=4).run("cpu")
    assert same_bits(gpu.states.cpu(), expected[0]) and torch.equal(gpu.cursor.cpu(), expected[1])
