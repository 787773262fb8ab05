"""The look-up of times and weights: every CPU path against the rules, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import ulam_kernels
from cpu_settings import instruction_set, threads
from tick_cases import looked_up, random_look_up
from ulam_kernels import _cpu

BACKENDS = ["reference", "cpu"]


@pytest.mark.parametrize("name", ["reference", *_cpu.instruction_sets()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.float64], ids=str)
def test_times_and_weights(name: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(6)
    with instruction_set("reference" if dtype == torch.float64 else name) as backend:
        for chains, rows in ((1, 1), (7, 3), (300, 40), (20_000, 50)):
            for limited in (False, True):
                given = random_look_up(rng, chains, rows, dtype, limited)
                expected, weights = looked_up(given)
                ulam_kernels.look_up(**given, backend=backend)
                assert torch.equal(given["out"].nan_to_num(8), expected.nan_to_num(8))
                assert weights is None or torch.equal(given["weight"], weights)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_long_whole_time_is_compared_as_torch_compares_it(backend: str) -> None:
    """2^24 + 1 is rounded to 2^24, 2^53 + 2^29 + 1 once, not by way of float64; what is told stays whole."""
    times = torch.tensor([2**24 + 1, 2**53 + 2**29 + 1])
    bounds = torch.tensor([2.0**24, 2.0**53 + 2.0**30])
    out, weight = torch.zeros(2, dtype=torch.int64), torch.zeros(2)
    interval, row = torch.stack([bounds, bounds]), torch.arange(2)
    guidance = torch.tensor([3.0, 4.0])
    ulam_kernels.look_up(times, row, out, guidance=guidance, interval=interval, weight=weight, backend=backend)
    assert torch.equal(out, times) and weight.tolist() == [3, 4]
    assert torch.equal(weight, torch.where((out >= interval[0]) & (out <= interval[1]), guidance, 1.0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("row", [-1, 5, 2**62, -(2**63)])
def test_a_row_outside_the_table_raises_before_anything_is_written(backend: str, count: int, row: int) -> None:
    rng = np.random.default_rng(7)
    for chains, place in ((3, 2), (30_000, 29_990)):
        given = random_look_up(rng, chains, 5, torch.float32, limited=True)
        given["row"][place] = row
        with threads(count), pytest.raises(IndexError, match=f"^row: got {row} for chain {place}, expected"):
            ulam_kernels.look_up(**given, backend=backend)
        assert (given["out"] == -9).all() and given["weight"].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_chains_and_no_rows(backend: str) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    ulam_kernels.look_up(torch.zeros(0), none, torch.zeros(0), backend=backend)
    with pytest.raises(IndexError, match="row: got 0 for chain 0, expected a row of the table of 0"):
        ulam_kernels.look_up(torch.zeros(0), none.new_zeros(1), torch.zeros(1), backend=backend)


TABLE, ROWS, TWO = torch.arange(4.0), torch.tensor([1, 2]), torch.zeros(2)
LIMITS = torch.zeros(2, 2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("changes, named", [
    ({"times": torch.zeros(4, dtype=torch.float16)}, "times: got dtype"),
    ({"times": torch.zeros(4, 1)}, "times: got shape"),
    ({"times": torch.tensor(1.0)}, "times: got shape"),
    ({"times": torch.arange(8.0)[::2]}, "times: got strides"),
    ({"row": ROWS.int()}, "row: got dtype"),
    ({"row": ROWS[None]}, "row: got shape"),
    ({"row": ROWS[0]}, "row: got shape"),
    ({"row": torch.zeros(4, dtype=torch.int64)[::2]}, "row: got strides"),
    ({"out": torch.zeros(3)}, "out: got shape"),
    ({"out": torch.zeros(2, dtype=torch.int64)}, "out: got dtype"),
    ({"out": torch.zeros(4)[::2]}, "out: got strides"),
    ({"out": TABLE[1:3]}, "out: got memory shared with times"),
    ({"out": torch.zeros(2, device="meta")}, "out: got a tensor on meta"),
    ({"guidance": TWO}, "weight: got None"),
    ({"interval": LIMITS}, "weight: got None"),
    ({"weight": torch.zeros(2)}, "guidance, interval: got None"),
    ({"weight": torch.zeros(2), "guidance": TWO}, "guidance, interval: got None"),
    ({"weight": torch.zeros(2), "guidance": TWO, "interval": torch.zeros(2)}, "interval: got shape"),
    ({"weight": torch.zeros(2), "guidance": TWO, "interval": torch.zeros(2, 2).double()}, "interval: got dtype"),
    ({"weight": torch.zeros(2), "guidance": TWO, "interval": torch.zeros(2, 4)[:, ::2]}, "interval: got strides"),
    ({"weight": torch.zeros(3), "guidance": TWO, "interval": LIMITS}, "weight: got shape"),
    ({"weight": torch.zeros(2), "guidance": torch.zeros(3), "interval": LIMITS}, "guidance: got shape"),
    ({"weight": TWO, "guidance": TWO, "interval": LIMITS}, "weight: got memory shared with guidance"),
    ({"weight": LIMITS[1], "guidance": TWO, "interval": LIMITS}, "weight: got memory shared with interval"),
])  # fmt: skip
def test_bad_input_of_look_up_is_named(backend: str, changes: dict[str, Any], named: str) -> None:
    given: dict[str, Any] = {"times": TABLE, "row": ROWS, "out": torch.zeros(2)} | changes
    with pytest.raises((TypeError, ValueError), match=f"^{named}"):
        ulam_kernels.look_up(**given, backend=backend)


def test_float64_times_are_of_the_reference_backend() -> None:
    given = random_look_up(np.random.default_rng(9), 5, 4, torch.float64, limited=True)
    ulam_kernels.look_up(**given)
    assert torch.equal(given["weight"], looked_up(given)[1])
    with pytest.raises(ValueError, match="float64 exists on the reference backend alone"):
        ulam_kernels.look_up(**given, backend="cpu")
