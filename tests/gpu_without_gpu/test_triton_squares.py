"""The squares of a step's noise by the Triton kernels, whose PTX is executed without a GPU, and what they cost."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import triton_interpreter
from bit_comparison import same_bits
from layout_cases import laid_out, random_case
from squares_cases import added, start

triton = pytest.importorskip("triton", reason="triton is not installed")

from triton.backends.compiler import GPUTarget  # noqa: E402

from layout_cases import arguments  # noqa: E402
from machine_code import check_kernel, disassemble, executed, opcodes  # noqa: E402
from triton_cases import ARCHITECTURES, FLOATS, MIXED, PLAIN, SAME, Case, Variant, copy_of  # noqa: E402
from triton_simulator import Gpu, cuda, simulated  # noqa: E402
from ulam_kernels import Table, cpu  # noqa: E402
from ulam_kernels.squares import LIMIT  # noqa: E402
from ulam_kernels.table import READS_Z  # noqa: E402
from ulam_kernels.triton.step import step  # noqa: E402

VARIANTS = [*PLAIN, Variant(types=MIXED, net_in=True), Variant(noise="given", net_in=True),
            Variant(2, MIXED, guided=True, learned=True, net_in=True, noise="given", scaled=True),
            Variant(5, SAME[torch.bfloat16], guided=True, learned=True, net_in=True)]  # fmt: skip


def recorded(case: Case, **options: Any) -> Gpu:
    """Hold a step that records against exact numbers, and against the CPU's step that does not."""
    expected, squares = copy_of(case), start(len(case["row"]))
    cpu.step(**expected)
    table = Table(case["coef"], case["flags"], len(case["state"]))
    sums = squares + added(table, case["row"], case["state"].shape[2:], case)
    with simulated(cuda(90), execute=True, **options) as gpu:
        step(**case, squares=squares)
    assert torch.equal(squares, sums)
    assert same_bits(case["state"], expected["state"])
    assert case["net_in"] is None or same_bits(case["net_in"], expected["net_in"])
    return gpu


SIZES = [(3, 1100), (50, 5), (9, 64), (2, 513)]
LINES = [(2, 4096), (70, 1), (41, 2), (31, 14), (20, 33), (9, 100), (5, 256), (3, 512)]  # of a short chain, 1 to 128


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_ptx_adds_the_exact_numbers(variant: Variant) -> None:
    """Tiles of a chain in any order; short chains of every number of lines, aligned or not; idle rows."""
    for seed, (chains, n) in enumerate(SIZES + LINES * (variant == PLAIN[0])):
        recorded(variant.case(np.random.default_rng(seed), chains, n), turns=lambda count: reversed(range(count)))


@pytest.mark.parametrize("architecture", [80, 90])
def test_ptx_of_architectures(architecture: int) -> None:
    for chains, n in ((2, 1600), (20, 12)):
        case = Variant(net_in=True).case(np.random.default_rng(n), chains, n)
        table = Table(case["coef"], case["flags"], 1)
        squares = torch.zeros(chains, dtype=torch.int64)
        sums = added(table, case["row"], (n,), case)
        with simulated(cuda(architecture), execute=True):
            step(**case, squares=squares)
        assert torch.equal(squares, sums)


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 7, 9), (5, 4, 8), (3, 32, 24), (4, 31, 17), (3, 20, 30)], ids=str)
def test_ptx_of_channels_last(shape: tuple[int, ...]) -> None:
    for seed in range(2):
        case = random_case(np.random.default_rng(seed), shape, 9, MIXED, 1 + seed)
        state, table, row, given = case
        recorded(arguments(state, table, row, laid_out(given, True, seed == 0)))


@pytest.mark.parametrize("n", [1, 14, 600])
def test_noise_that_has_no_square_makes_its_chain_negative(n: int) -> None:
    outside = [math.nan, -math.inf, math.inf, LIMIT, -LIMIT, 3e38]
    case = Variant(noise="given").case(np.random.default_rng(n), 2 * len(outside), n)
    case["row"] = ((case["flags"] & READS_Z) != 0).nonzero()[0].repeat(2 * len(outside))
    case["noise"][:, 0, 0] = float(np.nextafter(np.float32(LIMIT), np.float32(0)))
    for b, value in enumerate(outside):
        case["noise"][2 * b, 0, (7 * b + n // 2) % n] = value
    recorded(case)


@pytest.mark.long
def test_interpreted_kernels_add_the_exact_numbers() -> None:
    triton_interpreter.run("check_squares")


# What is compiled.

ADDITIONS = ("RED.", "REDG", "ATOM")


def compiled(variant: Variant, n: int, target: GPUTarget, records: bool) -> Any:
    case = variant.case(np.random.default_rng(0), 2, n)
    squares = torch.zeros(2, dtype=torch.int64) if records else None
    with simulated(target) as gpu:
        step(**case, squares=squares)
    return gpu.compiled[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_compiles_without_spills(variant: Variant, architecture: int, tmp_path: Any) -> None:
    for n in (8, 2048):
        names = check_kernel(compiled(variant, n, cuda(architecture), True), tmp_path)
        assert n == 8 or [name for name in names if name.startswith(ADDITIONS)]
        plain = opcodes(disassemble(compiled(variant, n, cuda(architecture), False), tmp_path))
        assert not [name for name in plain if name.startswith((*ADDITIONS, "F2I"))]


@pytest.mark.parametrize("dtype, budget", [(torch.float32, 14), (torch.bfloat16, 15), (torch.float16, 15)], ids=str)
def test_instructions_of_a_plain_row_are_within_the_budget(dtype: torch.dtype, budget: int, tmp_path: Any) -> None:
    """More of them an element than without the squares."""
    counts = []
    for records in (False, True):
        kernel = compiled(Variant(types=SAME[dtype]), 2048, cuda(90), records)
        counts.append(executed(disassemble(kernel, tmp_path)) * 32 * kernel.metadata.num_warps / 1024)
    print(f"{dtype}: {counts[0]:.1f} and {counts[1]:.1f} instructions an element")
    assert counts[0] + 4 < counts[1] <= counts[0] + budget


def test_a_step_that_does_not_record_is_compiled_once() -> None:
    """Short chains of any number of lines; one that records has a kernel for each of the eight."""
    kernels: dict[bool, set[int]] = {False: set(), True: set()}
    with simulated(cuda(90)) as gpu:
        for records, found in kernels.items():
            for n in (8, 16, 32, 64, 128, 256, 512):
                squares = torch.zeros(2, dtype=torch.int64) if records else None
                step(**PLAIN[0].case(np.random.default_rng(0), 2, n), squares=squares)
                found.add(id(gpu.compiled[-1]))
    assert (len(kernels[False]), len(kernels[True])) == (1, 7)


def test_compiles_for_amd() -> None:
    pytest.importorskip("triton.backends.amd.compiler", reason="this Triton has no AMD backend")
    for n in (8, 2048):
        for dtype in FLOATS:
            kernel = compiled(Variant(types=SAME[dtype]), n, GPUTarget("hip", "gfx942", 64), True)
            assert ".private_segment_fixed_size: 0" in kernel.asm["amdgcn"]
