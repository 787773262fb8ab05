"""Triton's reductions and mask blending without a GPU: what they compile to, and what that computes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import triton_interpreter

pytest.importorskip("triton", reason="triton is not installed")

from triton.backends.compiler import GPUTarget

from machine_code import disassemble, inside_loops, opcodes
from reduce_cases import LEVELS, table_of
from triton_cases import ARCHITECTURES
from triton_reduce_cases import BF16, BLENDS, FP32, REDUCTIONS, agrees, blending, reduction
from triton_simulator import cuda, simulated
from ulam_kernels import cpu
from ulam_kernels.triton.blend import blend
from ulam_kernels.triton.reduce import reduce


@pytest.mark.parametrize("case", REDUCTIONS, ids=str)
def test_ptx_of_the_reduction_gives_the_bits_of_the_cpu(case: tuple[Any, ...]) -> None:
    with simulated(cuda(90), execute=True):
        assert agrees(reduce, cpu.reduce, reduction(np.random.default_rng(case[1]), *case), "out")


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 31, 32, 33, 127, 128, 129])
def test_short_chains_have_the_bits_of_the_cpu(n: int) -> None:
    """One chain, and more than fill a program that has many; NaN and infinities spoil their own chain."""
    rng = np.random.default_rng(n)
    for chains in (1, 24 if n > 32 else 1024 // (4 if n <= 4 else 32) + 12):
        for explicit in (False, True):
            case = reduction(rng, chains, n, FP32, FP32, chains > 1, explicit)
            case["state"][0, 1::5, 0, rng.integers(n)] = math.nan
            case["state"][0, 2::5, 0, rng.integers(n)] = math.inf
            with simulated(cuda(90), execute=True) as gpu:
                assert agrees(reduce, cpu.reduce, case, "out")
            assert [kernel.metadata.name for kernel in gpu.compiled] == ["reduce_chains" if n <= 32 else "reduce_chain"]


@pytest.mark.parametrize("n", [1, 32, 100, 1000, 4096, 16_384, 16_381])
@pytest.mark.parametrize("explicit", [False, True])
def test_elements_are_read_once(n: int, explicit: bool) -> None:
    """From global memory, in what Triton compiles, where a row asks for them; other rows read nothing."""
    case = reduction(np.random.default_rng(n), 6, n, BF16, FP32, True, explicit)
    case["row"] = torch.tensor([4, 8, 0, 3, 9, 1])  # two quantiles, two pairs of norms, the second of D = kx x alone
    case["guidance"] = torch.tensor([2.5, 1.0, 2.0, 0.0, 3.0, 2.0])
    with simulated(cuda(90), execute=True, reads={}) as gpu:
        reduce(**case)
    once = lambda tensor: [(int(c.min()), int(c.max())) for c in gpu.loads(tensor)]  # noqa: E731
    state = gpu.loads(case["state"]).reshape(2, 6, -1)
    assert [(int(c.min()), int(c.max())) for c in state[0]] == [(k, k) for k in (1, 1, 0, 1, 0, 0)]
    assert not state[1].any()
    assert once(case["model"]) == [(k, k) for k in (1, 1, 0, 0, 1, 0)]
    assert once(case["uncond"]) == [(k, k) for k in (1, 0, 0, 1, 1, 0)]
    if explicit:
        assert once(case["noise"]) == [(k, k) for k in (0, 1, 0, 0, 1, 0)]


def test_longer_chains_are_read_four_times() -> None:
    case = reduction(np.random.default_rng(0), 2, 16_400, FP32, FP32, False, False)
    with simulated(cuda(90), execute=True, reads={}) as gpu:
        reduce(**case)
    state = gpu.loads(case["state"]).reshape(2, 2, -1)
    assert (state[0, 0] == 4).all() and (state[0, 1] == 1).all()  # the quantile, the norms


@pytest.mark.parametrize("case", BLENDS, ids=str)
def test_ptx_of_blend_gives_the_bits_of_the_cpu(case: tuple[Any, ...]) -> None:
    with simulated(cuda(90), execute=True):
        assert agrees(blend, cpu.blend, blending(np.random.default_rng(case[1]), *case), "x", "net_in")


@pytest.mark.parametrize("n", [200, 9000, 17_000])
def test_quantiles_of_difficult_numbers(n: int) -> None:
    """Ties, subnormal numbers, infinities, NaN, at every level: one chain for each."""
    kinds = [
        torch.full((n,), -2.5),
        torch.arange(n) % 3 * 1.0,
        torch.linspace(1, 2, n) * 2**-140,
        torch.arange(n) * 1.0,
    ]
    levels = LEVELS if n == 200 else LEVELS[1:3]
    kinds += [torch.where(torch.arange(n) < 20, math.inf, 3.0), torch.where(torch.arange(n) == 7, math.nan, 1.0)]
    values = torch.stack(kinds).repeat(len(levels), 1)
    table = table_of(["threshold"] * len(levels), p=levels, cap=64.0, kx=1.0, km=0.0)
    row = torch.arange(len(levels)).repeat_interleave(len(kinds))
    case = {"state": values[None], "coef": table.coef, "flags": table.flags, "row": row, "model": values}
    case |= dict.fromkeys(("uncond", "guidance", "seed", "chain", "draw", "noise"))
    with simulated(cuda(90), execute=True):
        assert agrees(reduce, cpu.reduce, case | {"out": torch.empty(len(values), 4)}, "out")


def test_rows_that_cannot_be_reduced_get_nan() -> None:
    """A row outside the table, or one that reads what was not given; a row without a reduction needs nothing."""
    table = table_of(["plain", "threshold", "normalise"])
    case = {"state": torch.ones(1, 5, 9), "coef": table.coef, "flags": table.flags}
    case |= dict.fromkeys(("model", "uncond", "guidance", "seed", "chain", "draw", "noise"))
    with simulated(cuda(90), execute=True):
        out = torch.zeros(5, 4)
        reduce(**case, row=torch.tensor([0, 1, 2, -1, 3]), out=out)
        assert out[0].tolist() == [-math.inf, math.inf, 1, 1] and out[1:].isnan().all()
        reduce(**case | {"model": torch.ones(5, 9)}, row=torch.tensor([0, 1, 2, -1, 3]), out=out)
        assert out.isnan().all(dim=1).tolist() == [False, False, True, True, True]


def test_an_altered_kernel_is_caught() -> None:
    """The checks above can fail: another number above the order statistic, or a root left out, shows."""
    for before, after in (("min.s32", "max.s32"), ("sqrt.rn.f64", "mov.b64")):
        case = reduction(np.random.default_rng(0), *REDUCTIONS[1])

        def alter(ptx: str, before: str = before, after: str = after) -> str:
            assert before in ptx
            return ptx.replace(before, after)

        with simulated(cuda(90), execute=True, alter=alter):
            assert not agrees(reduce, cpu.reduce, case, "out")


def kernels(target: GPUTarget) -> list[Any]:
    """All of the above, compiled."""
    rng = np.random.default_rng(1)
    with simulated(target) as gpu:
        for case in REDUCTIONS[1:]:
            reduce(**reduction(rng, *case))
        for case in BLENDS[1:]:
            blend(**blending(rng, *case))
    return gpu.compiled


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_without_spills_and_without_approximations(architecture: int, tmp_path: Any) -> None:
    for kernel in kernels(cuda(architecture)):
        ptx = kernel.asm["ptx"]
        assert ".local" not in ptx and ".approx" not in ptx and ".ftz" not in ptx and ".full" not in ptx
        code = disassemble(kernel, tmp_path)
        kept = code if kernel.metadata.name.startswith("blend") else inside_loops(code)
        # at most one word that the assembler of some Triton releases does not keep in a register
        spilled = [name for name in opcodes(kept) if name.startswith(("LDL", "STL"))]
        assert len(spilled) <= 1, (kernel.metadata.name, spilled)


@pytest.mark.long
def test_compiles_for_amd() -> None:
    pytest.importorskip("triton.backends.amd.compiler", reason="this Triton has no AMD backend")
    for kernel in kernels(GPUTarget("hip", "gfx942", 64)):
        assert ".private_segment_fixed_size: 0" in kernel.asm["amdgcn"], kernel.metadata.name


def test_nothing_is_compiled_again_when_sizes_or_seeds_change() -> None:
    rng = np.random.default_rng(2)
    with simulated(cuda(90)) as gpu:
        for chains, n in ((1, 8), (24, 32), (24, 128), (3, 40), (1, 1024), (17, 136)):
            reduce(**reduction(rng, chains, n, FP32, FP32, False, False))
        for chains, n in ((1, 8), (3, 512), (1, 1024), (17, 520)):
            case = blending(rng, chains + 1, n, FP32, FP32, False)
            ids = {
                name: case[name][1:] for name in ("a", "b", "seed", "chain", "draw", "c_next")
            }  # not 16-byte aligned
            blend(**{**case, **ids, **{name: case[name][:-1] for name in ("x", "known", "mask", "net_in")}})
            blend(**case)
    # many chains a program, few lanes, or many; short chains or long
    assert len({id(kernel) for kernel in gpu.compiled}) == 3 + 2


@pytest.mark.long
def test_interpreted_kernels_give_the_bits_of_the_cpu() -> None:
    triton_interpreter.run("check_reductions")
