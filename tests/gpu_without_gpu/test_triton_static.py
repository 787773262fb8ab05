"""The Triton kernels without a GPU: what they compile to, and what that computes (see ``triton_simulator``)."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import triton_interpreter

triton = pytest.importorskip("triton", reason="triton is not installed")

from triton.backends.compiler import GPUTarget  # noqa: E402

from bit_comparison import same_bits  # noqa: E402
from machine_code import check_kernel, disassemble, executed  # noqa: E402
from triton_cases import ARCHITECTURES, FLOATS, MIXED, PLAIN, SAME, VARIANTS, Variant, copy_of, fill_case, normal  # noqa: E402
from triton_simulator import cuda, simulated  # noqa: E402
from ulam_kernels import cpu  # noqa: E402
from ulam_kernels.table import NORMALISE, READS_Z, THRESHOLD  # noqa: E402
from ulam_kernels.triton.affine import affine  # noqa: E402
from ulam_kernels.triton.fill import fill_normal  # noqa: E402
from ulam_kernels.triton.step import step  # noqa: E402

# What is computed.


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("chains, n", [(9, 11_120), (3001, 34)], ids=["long", "short"])
def test_ptx_of_the_step_gives_the_bits_of_the_cpu(variant: Variant, chains: int, n: int) -> None:
    """At least 10^5 elements; the first of them also at a length that forbids wide accesses."""
    rng = np.random.default_rng([chains, VARIANTS.index(variant)])
    sizes = [(chains, n)] if variant not in PLAIN else [(chains, n), (7, 1027), (13, 7), (1, 513)]
    for chains, n in sizes:
        case = variant.case(rng, chains, n)
        expected = copy_of(case)
        cpu.step(**expected)
        with simulated(cuda(90), execute=True):
            step(**case)
        assert same_bits(case["state"], expected["state"])
        assert same_bits(case["net_in"], expected["net_in"])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("chains, n, offset", [(9, 11_120, 8), (3001, 34, 0), (2, 1027, 5), (5, 9, 1022), (3, 512, 3)])
def test_ptx_of_the_fill_gives_the_bits_of_the_cpu(dtype: torch.dtype, chains: int, n: int, offset: int) -> None:
    rng = np.random.default_rng([chains, FLOATS.index(dtype)])
    for tag, scale in ((0, 1.0), (3, -0.37)):
        case = fill_case(rng, chains, n, dtype, tag=tag, scale=scale, offset=offset)
        expected = copy_of(case)
        cpu.fill_normal(**expected)
        with simulated(cuda(90), execute=True):
            fill_normal(**case)
        assert same_bits(case["out"], expected["out"])


@pytest.mark.parametrize("types", [*SAME.values(), MIXED], ids=str)
@pytest.mark.parametrize("chains, n", [(9, 11_120), (3000, 34), (5, 1027), (7, 9)])
def test_ptx_of_affine_gives_the_bits_of_the_cpu(types: tuple[torch.dtype, ...], chains: int, n: int) -> None:
    rng = np.random.default_rng([chains, n])
    x, m = (normal(rng, (chains, n), dtype) for dtype in types[:2])
    a, b = (torch.from_numpy(rng.normal(size=chains) * (rng.random(chains) < 0.7)).float() for _ in range(2))
    x[a == 0], m[b == 0] = float("nan"), float("nan")
    outs = [torch.full((chains, n), float("nan"), dtype=types[2]) for _ in range(2)]
    cpu.affine(x, m, a, b, outs[0])
    with simulated(cuda(90), execute=True):
        affine(x, m, a, b, outs[1])
    assert same_bits(*outs)


def one_constant_changed(ptx: str) -> str:
    """pi / 2 of the sine's polynomial, off by one unit in the last place."""
    assert "0f3FC90FDA" in ptx
    return ptx.replace("0f3FC90FDA", "0f3FC90FDB")


def one_rounding_added(ptx: str) -> str:
    """One step of the logarithm's polynomial as a product and a sum."""
    altered = re.sub(
        r"fma\.rn\.f32\s+(%\w+), (%\w+), (%\w+), 0f3F7FFFEB;",
        r"mul.rn.f32 \1, \2, \3; add.rn.f32 \1, \1, 0f3F7FFFEB;",
        ptx,
    )
    assert altered != ptx
    return altered


@pytest.mark.parametrize("alter", [one_constant_changed, one_rounding_added])
def test_an_altered_kernel_is_caught(alter: Callable[[str], str]) -> None:
    """The checks above can fail: the same comparison of an altered kernel finds different bits."""
    case = PLAIN[0].case(np.random.default_rng(3), 9, 11_120)
    case["row"] = ((case["flags"] & READS_Z) != 0).nonzero()[0].repeat(9)
    expected = copy_of(case)
    cpu.step(**expected)
    with simulated(cuda(90), execute=True, alter=alter):
        step(**case)
    assert not same_bits(case["state"], expected["state"])


def test_rows_that_cannot_be_executed_make_their_chain_nan() -> None:
    """A row outside the table, or one that reads what was not given, and no other chain."""
    case = Variant(2).case(np.random.default_rng(4), 5, 600)
    case["flags"] |= 3
    case["row"] = torch.tensor([1, -1, 2, 12, 3])
    expected = copy_of(case)
    expected["row"] = torch.tensor([1, 1, 2, 2, 3])
    cpu.step(**expected)
    with simulated(cuda(90), execute=True):
        step(**case)
        assert case["state"][:, [1, 3]].isnan().all()
        assert same_bits(case["state"][:, [0, 2, 4]].contiguous(), expected["state"][:, [0, 2, 4]].contiguous())
        for flag, without in ((READS_Z, "seed"), (THRESHOLD, "scales"), (NORMALISE, "scales")):
            case = Variant(scaled=True).case(np.random.default_rng(6), 4, 9) | {without: None}
            case["row"] = ((case["flags"] & flag) != 0).nonzero()[0].repeat(4)
            step(**case)
            assert case["state"].isnan().all()


# What is compiled.


@cache
def compiled(variant: Variant, n: int, target: GPUTarget) -> Any:
    """The step's kernel for this target, compiled by the launch code."""
    with simulated(target) as gpu:
        step(**variant.case(np.random.default_rng(0), 2, n))
    return gpu.compiled[0]


@cache
def compiled_others(target: GPUTarget) -> dict[str, Any]:
    """The kernels of the fill and of affine."""
    rng = np.random.default_rng(0)
    found = {}
    with simulated(target) as gpu:
        for n in (8, 2048):
            for dtype in FLOATS:
                fill_normal(**fill_case(rng, 4, n, dtype))
                found[f"fill-{n}-{dtype}"] = gpu.compiled[-1]
            for types in (*SAME.values(), MIXED):
                x, m, out = (torch.empty(4, n, dtype=dtype) for dtype in types)
                affine(x, m, torch.ones(4), torch.ones(4), out)
                found[f"affine-{n}-{types}"] = gpu.compiled[-1]
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_step_compiles_without_spills(variant: Variant, architecture: int, tmp_path: Any) -> None:
    for n in (8, 2048):
        # the assembler of Triton 3.7 keeps one word of the fullest variant in local memory there
        fullest = architecture == 100 and variant.scaled and variant.guided and variant.learned
        names = check_kernel(compiled(variant, n, cuda(architecture)), tmp_path, spilled=int(fullest))
        assert any(name.startswith("LDG") for name in names)
        if n == 2048:  # every access to a tensor is 16 bytes wide; the narrow ones are ids and coefficients
            assert {name for name in names if name.startswith("STG")} <= WIDE_STORES[variant.types[2 * variant.net_in]]
            assert [name for name in names if name.startswith("LDG.E.128")]


WIDE_STORES = {torch.float32: {"STG.E.128"}, torch.bfloat16: {"STG.E.128"}, torch.float16: {"STG.E.128", "STG.E.64"}}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fill_and_affine_compile_without_spills(architecture: int, tmp_path: Any) -> None:
    for kernel in compiled_others(cuda(architecture)).values():
        names = check_kernel(kernel, tmp_path)
        assert [name for name in names if name.startswith("STG.E.128")] or "short" in kernel.metadata.name


@pytest.mark.parametrize("dtype, budget", [(torch.float32, 60), (torch.bfloat16, 54), (torch.float16, 54)], ids=str)
def test_instructions_of_a_plain_row_are_within_the_budget(dtype: torch.dtype, budget: int, tmp_path: Any) -> None:
    kernel = compiled(Variant(types=SAME[dtype]), 2048, cuda(90))
    each = executed(disassemble(kernel, tmp_path)) * 32 * kernel.metadata.num_warps / 1024
    print(f"{dtype}: {each:.1f} instructions an element")
    assert 35 < each <= budget


def test_nothing_is_compiled_again_when_sizes_or_seeds_change() -> None:
    rng = np.random.default_rng(6)
    long = ((1, 1024), (2, 2048), (16, 3072), (17, 520), (70_000, 1032))
    short = ((1, 8), (2, 16), (16, 256), (1_000_003, 512))
    with simulated(cuda(90)) as gpu:
        for chains, n in (*long, *short):
            case = PLAIN[0].case(rng, 1, n)  # of many chains, which nobody reads, only the shape
            step(
                **{**case, "state": case["state"].expand(1, chains, 1, n), "model": case["model"].expand(chains, 1, n)}
            )
        for offset, scale, tag in ((0, 1.0, 0), (16, 0.5, 1), (8, 3.0, 2)):
            case = fill_case(rng, 3, 1024, torch.float32, offset=offset, scale=scale, tag=tag)
            fill_normal(**case)
            slices = {name: torch.cat([case[name][:1], case[name]])[1:] for name in ("seed", "chain", "draw")}
            fill_normal(**{**case, **slices})  # as when chains enter slots at any place: not 16-byte aligned
        for chains, n in ((1, 8), (3, 64), (40, 512)):
            affine(
                *(torch.ones(chains, n) for _ in range(2)),
                *(torch.ones(chains) for _ in range(2)),
                torch.ones(chains, n),
            )
    names = [kernel.metadata.name for kernel in gpu.compiled]
    assert len({id(kernel) for kernel in gpu.compiled}) == len(set(names)) == 4


@pytest.mark.parametrize("variant", [*PLAIN, Variant(3, MIXED, guided=True, learned=True, net_in=True)], ids=str)
def test_compiles_for_amd(variant: Variant) -> None:
    pytest.importorskip("triton.backends.amd.compiler", reason="this Triton has no AMD backend")
    for n in (8, 2048):
        kernel = compiled(variant, n, GPUTarget("hip", "gfx942", 64))
        assert "v_fma_f32" in kernel.asm["amdgcn"] or "v_fmac_f32" in kernel.asm["amdgcn"]
        assert ".private_segment_fixed_size: 0" in kernel.asm["amdgcn"]


@pytest.mark.long
def test_interpreted_kernels_give_the_bits_of_the_cpu() -> None:
    triton_interpreter.run("check_steps")
