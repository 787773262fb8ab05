"""The Triton kernels without a GPU: channels innermost in memory, and how short chains wait for memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import triton_interpreter
from bit_comparison import same_bits
from layout_cases import LAYOUTS, SHAPES, cases, laid_out, random_case
from ulam_kernels import reference

triton = pytest.importorskip("triton", reason="triton is not installed")

from triton.backends.compiler import GPUTarget  # noqa: E402

import memory_trips  # noqa: E402
import triton_simulator  # noqa: E402
from layout_cases import arguments  # noqa: E402
from machine_code import APPROXIMATE, disassemble, executed, opcodes  # noqa: E402
from triton_cases import ARCHITECTURES, PLAIN, Variant, copy_of  # noqa: E402
from triton_simulator import cuda, simulated  # noqa: E402
from ulam_kernels.triton.step import step  # noqa: E402

LARGE = ((3, 32, 24), (4, 31, 17), (5, 2, 8, 8))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long)])
def test_ptx_of_the_step_gives_the_bits_of_the_reference(seed: int) -> None:
    """Short chains and long ones, every mixture of layouts."""
    rng = np.random.default_rng([2, seed])
    large = [
        (shape, 1 + (seed + k) % 3, (torch.float32, torch.bfloat16, torch.float16)) for k, shape in enumerate(LARGE)
    ]
    for number, (shape, registers, types) in enumerate([*large, *list(cases(seed))[seed::3]]):
        start, table, row, given = random_case(rng, shape, 7, types, registers)
        expected, net = start.clone(), given["net_in"].clone()
        reference.step(**arguments(expected, table, row, {**given, "net_in": net}))
        model_last, net_last = LAYOUTS[(number + seed) % 3]
        operands = laid_out(given, model_last or shape[0] == 1, net_last)
        with simulated(cuda(90), execute=True) as gpu:
            step(**arguments(start, table, row, operands))
        assert gpu.compiled[0].metadata.name == f"step_pixels_{'long' if start[0, 0].numel() > 512 else 'short'}"
        assert same_bits(start, expected) and same_bits(operands["net_in"], net), shape


def compiled(variant: Variant, shape: tuple[int, ...], target: GPUTarget) -> Any:
    """The kernel for channels last of all that can be."""
    case = variant.case(np.random.default_rng(0), 2, int(np.prod(shape)))
    for name in ("model", "uncond", "net_in"):
        if case[name] is not None:
            channels = shape[0] * case[name].shape[1]
            case[name] = case[name].view(2, channels, *shape[1:]).to(memory_format=torch.channels_last)
    case["state"] = case["state"].view(variant.registers, 2, *shape)
    with simulated(target) as gpu:
        step(**case)
    return gpu.compiled[0]


FULLEST = Variant(5, (torch.float32, torch.bfloat16, torch.float16), guided=True, learned=True, net_in=True)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("variant", [*PLAIN, FULLEST], ids=str)
def test_compiles_without_local_memory(variant: Variant, architecture: int, tmp_path: Any) -> None:
    for shape in ((3, 8, 8), (4, 32, 16), (3, 31, 29)):
        kernel = compiled(variant, shape, cuda(architecture))
        body = kernel.asm["ptx"][kernel.asm["ptx"].index(".entry") :]
        names = opcodes(disassemble(kernel, tmp_path))
        assert ".local" not in body and not APPROXIMATE.search(body)
        assert not [name for name in names if name.startswith(("LDL", "STL"))]
        # The beginnings of sqrt.rn and of an integer division.
        assert {name for name in names if name.startswith("MUFU")} <= {"MUFU.RSQ", "MUFU.RCP"}
        stores = {name for name in names if name.startswith("STG")}
        if shape[1] % 4 == 0 and not variant.net_in:  # the state keeps its wide accesses
            assert stores == {"STG.E.128" if variant.types[0] == torch.float32 else "STG.E.64"}


@pytest.mark.parametrize("variant", [PLAIN[0], FULLEST], ids=str)
def test_compiles_for_amd(monkeypatch: pytest.MonkeyPatch, variant: Variant) -> None:
    pytest.importorskip("triton.backends.amd.compiler", reason="this Triton has no AMD backend")
    monkeypatch.setattr(torch.version, "hip", "7")
    for shape in ((3, 8, 8), (4, 32, 16), (3, 31, 29)):
        kernel = compiled(variant, shape, GPUTarget("hip", "gfx942", 64))
        assert "v_fma_f32" in kernel.asm["amdgcn"] or "v_fmac_f32" in kernel.asm["amdgcn"]
        assert ".private_segment_fixed_size: 0" in kernel.asm["amdgcn"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cost_of_a_plain_row(architecture: int, tmp_path: Any) -> None:
    """Instructions an element of a row x, m, z with the model's channels innermost."""
    for variant in PLAIN:
        kernel = compiled(variant, (4, 32, 16), cuda(architecture))
        each = executed(disassemble(kernel, tmp_path)) * 32 * kernel.metadata.num_warps / 1024
        print(f"{architecture} {variant}: {each:.1f} instructions an element")
        assert 35 < each <= 66


def test_short_chains_wait_twice_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what belongs to the chain and the number of its row, all at once; and for the row."""

    class Waiting(memory_trips.Trips, triton_simulator.Warps):
        pass

    monkeypatch.setattr(triton_simulator, "Warps", Waiting)
    for n, guided in ((2, False), (34, False), (7, True)):
        case = Variant(guided=guided, net_in=guided).case(np.random.default_rng(1), 60, n)
        case["row"] = case["row"] * 0 + int(((case["flags"] & 96) == 96).nonzero()[0])  # reads model and noise
        expected = copy_of(case)
        reference.step(**expected)
        with simulated(cuda(90), execute=True):
            step(**case)
        assert same_bits(case["state"], expected["state"])
        assert memory_trips.Trips.latest == 2
    case = Variant().case(np.random.default_rng(1), 2, 1024)
    with simulated(cuda(90), execute=True):
        step(**case)
    assert memory_trips.Trips.latest > 3  # the measure tells the others apart


@pytest.mark.long
def test_interpreted_kernels_give_the_bits_of_the_reference() -> None:
    assert {1, 2, 3, 4, 5, 8} <= {shape[0] for shape in SHAPES}
    triton_interpreter.run("check_layouts")
