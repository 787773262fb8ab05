"""The CUDA reductions and mask blending without a GPU: their PTX gives the bits of the CPU."""

from __future__ import annotations

import math
from typing import Any

import cuda_simulator
import numpy as np
import pytest
import test_blend
import torch
from cuda_simulator import BF16, FP16, FP32, MISSING, Device, differences
from test_reduce import LEVELS, mixed_table, random_inputs, table_of

import ulam_kernels

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
# chains, elements, registers, state, model, guided, noise given, misalignment
REDUCTIONS = [
    (24, 1, 1, FP32, FP32, False, False, 0), (24, 34, 2, BF16, FP32, True, False, 0),
    (24, 128, 1, FP32, FP16, True, True, 8), (24, 129, 3, FP16, FP16, False, False, 0),
    (24, 1024, 1, FP32, BF16, True, False, 4), (12, 3008, 5, FP32, FP32, True, True, 0),
]  # fmt: skip
# chains, elements, state, network input, noise given, misalignment
BLENDS = [
    (5, 1, FP32, None, False, 0), (300, 34, BF16, FP32, False, 0), (9, 512, FP32, FP16, True, 0),
    (7, 1027, FP16, None, False, 0), (9, 11_120, FP32, FP32, False, 0), (3, 2048, BF16, BF16, True, 2),
]  # fmt: skip


@pytest.fixture(scope="module")
def device() -> Device:
    return cuda_simulator.device()


@pytest.mark.parametrize("case", REDUCTIONS, ids=str)
def test_reductions_have_the_bits_of_the_cpu(device: Device, case: tuple[Any, ...]) -> None:
    chains, n, registers, state, model, guided, explicit, skew = case
    rng = np.random.default_rng(n)
    table, row = mixed_table(registers), torch.from_numpy(rng.permutation(np.arange(chains) % 12))
    values = torch.from_numpy(2 * rng.normal(size=(registers, chains, 1, n))).to(state)
    given = random_inputs(rng, (1, n), model, chains, guided, explicit)
    expected, out = torch.full((2, chains, 4), math.nan)
    ulam_kernels.reduce(values, table, row, out=expected, backend="cpu", **given)
    device.reduce(values, table, row, out, skew, **given)
    assert "reduce_chain" in device.used
    assert differences(expected, out) == 0


def test_quantiles_of_difficult_numbers(device: Device) -> None:
    """Ties, subnormal numbers, infinities, NaN, at every level: one chain for each."""
    n = 200
    kinds = [torch.full((n,), -2.5), torch.arange(n) % 3 * 1.0, torch.arange(n) * 2**-140, torch.arange(n) * 1.0]
    kinds += [torch.where(torch.arange(n) < 20, math.inf, 3.0), torch.where(torch.arange(n) == 7, math.nan, 1.0)]
    values = torch.stack(kinds).repeat(len(LEVELS), 1)
    table = table_of(["threshold"] * len(LEVELS), p=LEVELS, cap=64.0, kx=1.0, km=0.0)
    row = torch.arange(len(LEVELS)).repeat_interleave(len(kinds))
    expected, out = torch.full((2, len(values), 4), math.nan)
    ulam_kernels.reduce(values[None], table, row, out=expected, backend="cpu")
    device.reduce(values[None], table, row, out)
    assert differences(expected, out) == 0


def test_rows_that_cannot_be_reduced_get_nan(device: Device) -> None:
    """A row outside the table, or one that reads what was not given; a row without a reduction needs nothing."""
    table, row = table_of(["plain", "threshold", "normalise"]), torch.tensor([0, 1, 2, -1, 3])
    for given, expected in (({}, [0, 1, 1, 1, 1]), ({"model": torch.ones(5, 9)}, [0, 0, 1, 1, 1])):
        out = torch.zeros(5, 4)
        device.reduce(torch.ones(1, 5, 9), table, row, out, **given)
        assert out[0].tolist() == [-math.inf, math.inf, 1, 1]
        assert out.isnan().all(dim=1).tolist() == [bool(e) for e in expected]


@pytest.mark.parametrize("case", BLENDS, ids=str)
def test_blends_have_the_bits_of_the_cpu(device: Device, case: tuple[Any, ...]) -> None:
    chains, n, state, net, explicit, skew = case
    rng = np.random.default_rng(n)
    given: dict[str, Any] = test_blend.random_inputs(rng, (n,), chains)
    if explicit:
        given["noise"] = torch.from_numpy(rng.normal(size=(chains, n))).float()
    values = torch.from_numpy(rng.normal(size=(2, chains, n))).to(state)
    results = []
    for run in (ulam_kernels.blend, device.blend):
        after = values.clone()
        if net is not None:
            given |= {"net_in": torch.full((chains, n), math.nan, dtype=net), "c_next": torch.linspace(-2, 2, chains)}
        run(after, **given, **({"skew": skew} if run == device.blend else {"backend": "cpu"}))
        results.append((after, given.get("net_in", after)))
    assert "blend_quads" in device.used
    assert all(differences(*pair) == 0 for pair in zip(*results, strict=True))
