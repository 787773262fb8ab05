"""The squares of a step's noise by the CUDA kernels, whose PTX is executed without a GPU, and what they cost."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from bench.sass import cheapest_pass

import cuda_simulator
import ulam_kernels
from bit_comparison import same_bits
from cuda_cases import FAST, plain_row
from cuda_simulator import ARCHITECTURES, BF16, FP16, FP32, MISSING, Device, sass
from layout_cases import laid_out, random_case
from squares_cases import added, start
from ulam_kernels import Table
from ulam_kernels.squares import LIMIT

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


@pytest.fixture(scope="module")
def device() -> Device:
    return cuda_simulator.device()


def check(device: Device, kernel: str, state: torch.Tensor, table: Table, row: torch.Tensor, given: dict[str, Any],
          **options: int) -> None:  # fmt: skip
    """A step that records, held against exact numbers and against the CPU's step that does not."""
    squares, expected, net = start(len(row)), state.clone(), given["net_in"].clone()
    sums = squares + added(table, row, state.shape[2:], given)
    ulam_kernels.step(expected, table, row, backend="cpu", **{**given, "net_in": net})
    operands = {**given, "net_in": given["net_in"].clone()}
    device.step(state, table, row, squares=squares, **operands, **options)
    assert kernel in device.used and "Lb1E" in device.used
    assert torch.equal(squares, sums)
    assert same_bits(state, expected) and same_bits(operands["net_in"], net)


@pytest.mark.parametrize("registers", range(1, 6))
@pytest.mark.parametrize(("state", "model"), FAST)
def test_long_chains(device: Device, registers: int, state: torch.dtype, model: torch.dtype) -> None:
    """Tails of a chain, of a warp and of a pass; given noise; idle rows, and rows with a reduction."""
    for seed, (shape, chains) in enumerate((((2, 24, 54), 9), ((3, 8, 11), 16), ((1, 1096), 5))):
        case = random_case(np.random.default_rng([registers, seed]), shape, chains, (state, model, BF16), registers)
        check(device, "step_vectors", *case)


def test_sums_beyond_32_bits_and_in_any_order(device: Device) -> None:
    """Many passes of a thread and blocks of a chain; the loops of rows that have their own."""
    ids = torch.arange(3)
    for n, turns in itertools.product((3 * 64 * 64, 65_536), (range, lambda count: reversed(range(count)))):
        device.turns = turns
        try:
            x = torch.zeros(1, 3, n)
            given = {"model": torch.zeros(3, n), "seed": ids, "chain": ids + 7, "draw": ids * 16}
            squares, sums = start(3), start(3) + added(plain_row(), ids * 0, (n,), given)
            device.step(x, plain_row(), ids * 0, squares=squares, **given)
            assert torch.equal(squares, sums) and bool((sums - start(3) > 2**33).all())
        finally:
            device.turns = range


@pytest.mark.parametrize("registers", [1, 2, 5])
def test_other_chains(device: Device, registers: int) -> None:
    """Chains of a warp, blocks that are no whole warps, several warps a chain and several parts of it."""
    short, quads = "step_short", "step_quads"
    cases = [
        ((1,), 300, FP16, short, 0), ((2,), 100, FP32, short, 0), ((1, 3), 70, FP32, short, 0),
        ((5,), 200, FP32, short, 0), ((14,), 61, BF16, short, 0), ((33,), 20, FP32, short, 0),
        ((2, 50), 11, BF16, short, 0), ((1, 1000), 3, FP32, short, 4), ((3, 32, 32), 2, FP32, short, 8),
        ((1, 2050), 3, BF16, short, 0), ((1, 1023), 3, FP16, short, 0),
        *([((1, 257), 2050, BF16, quads, 0)] if registers == 1 else []),
    ]  # fmt: skip
    for seed, (shape, chains, dtype, kernel, skew) in enumerate(cases):
        case = random_case(np.random.default_rng([7, seed]), shape, chains, (dtype, FP32, BF16), registers)
        check(device, kernel, *case, skew=skew)


@pytest.mark.parametrize(("shape", "registers"), [((3, 8, 8), 1), ((4, 12, 10), 2), ((3, 7, 9), 1), ((5, 4, 8), 3),
                                                  ((66, 2, 2), 5), ((3, 2, 4, 6), 1)])  # fmt: skip
def test_channels_last(device: Device, shape: tuple[int, ...], registers: int) -> None:
    for seed, learns in enumerate((False, True)):
        rng = np.random.default_rng([shape[0], seed])
        state, table, row, given = random_case(rng, shape, 11, (FP32,) * 3, registers, learns=learns)
        alone = registers < 3 and not learns and math.prod(shape[1:]) % 4 == 0 and shape[0] < 5
        check(device, "step_channels" if alone else "step_pixels", state, table, row, laid_out(given, True, True))


@pytest.mark.parametrize(("n", "kernel"), [(1, "short"), (14, "short"), (1000, "vectors"), (1001, "short")])
def test_noise_that_has_no_square_makes_its_chain_negative(device: Device, n: int, kernel: str) -> None:
    outside = [math.nan, -math.inf, math.inf, LIMIT, -LIMIT, 3e38]
    z = torch.randn(2 * len(outside), n, generator=torch.Generator().manual_seed(1))
    z[:, 0] = float(np.nextafter(np.float32(LIMIT), np.float32(0)))
    for b, value in enumerate(outside):
        z[2 * b, (7 * b + n // 2) % n] = value
    row = torch.zeros(len(z), dtype=torch.int64)
    squares, sums = row.clone(), added(plain_row(), row, (n,), {"noise": z})
    device.step(torch.zeros(1, len(z), n), plain_row(), row, model=torch.zeros_like(z), noise=z, squares=squares)
    assert kernel in device.used and torch.equal(squares, sums)
    assert (squares < 0).tolist() == [True, False] * len(outside)


def test_rows_that_cannot_be_executed_add_nothing(device: Device) -> None:
    row = torch.tensor([0, 1, -1, 2**40])
    given = {"model": torch.zeros(4, 1024), **dict.fromkeys(("seed", "chain", "draw"), torch.arange(4))}
    squares, values = start(4), torch.ones(1, 4, 1024)
    device.step(values, plain_row(), row, squares=squares, **given)
    assert (squares != start(4)).tolist() == [True, False, False, False]
    assert values.isnan().flatten(2).all(2).tolist() == [[False, True, True, True]]


# --- Machine code ---------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_step_that_does_not_record_has_nothing_of_it(architecture: str) -> None:
    """Each kernel is there twice; sums, shuffles and atomic additions are in one of them alone."""
    kernels = {name: code for name, code in sass(architecture).items() if re.search(r"\dstep_\w+Lb[01]E", name)}
    assert len(kernels) == 2 * (5 * 5 + 5 + 2 * 5 + 5 + 5 * 2 * 2)
    for name, code in kernels.items():
        found = {op.split(".")[0] for _, _, op, _ in code} & {"F2I", "REDUX", "SHFL", "RED", "REDG", "ATOMG", "ATOM"}
        if "Lb0E" in name:
            assert not found - ({"F2I"} if "pixels" in name else set()), name  # of an integer division
        else:
            assert found & {"RED", "REDG", "ATOMG"} and found & {"REDUX", "SHFL"}, name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("types", "accesses"), [("7Float32ES2_", (2, 4, 0)), ("8BFloat16ES2_", (1, 2, 0))])
def test_cost_of_a_plain_row(architecture: str, types: str, accesses: tuple[int, int, int]) -> None:
    """Instructions an element in the loop of a plain row: five and a half more than of a step that does not record."""
    counts = []
    for records in (0, 1):
        name = f"step_vectorsINS0_{types}Li1ELb{records}E"
        code = next(code for found, code in sass(architecture).items() if name in found)
        counts.append(len(cheapest_pass(code, 8, *accesses)) / 8)
    print(f"{architecture} {types}: {counts[0]:.1f} and {counts[1]:.1f} instructions an element")
    assert counts[0] + 4 <= counts[1] <= counts[0] + 5.5
