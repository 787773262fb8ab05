"""Triton's sums of variational bounds without a GPU: the bits of the CPU, and what they compile to."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from likelihood_cases import GPU_SIZES, bin_case, cases, kl_case, result
from ulam_kernels.cpu import likelihood as cpu


@pytest.fixture(scope="module")
def triton_backend() -> Any:
    pytest.importorskip("triton", reason="triton is not installed")
    import triton_simulator

    module = importlib.import_module("ulam_kernels.triton.likelihood")
    triton_simulator.MODULES |= dict.fromkeys((module.gaussian_kl_chain, module.discretised_chain), module)
    return module


@pytest.mark.long
def test_triton_ptx_gives_the_bits_of_the_cpu(triton_backend: Any) -> None:
    from triton_simulator import cuda, simulated

    with simulated(cuda(90), execute=True):
        for shape in GPU_SIZES:
            for case in cases(shape):
                assert torch.equal(result(triton_backend, case), result(cpu, case)), shape


def test_triton_compiles_without_spills_and_approximations(triton_backend: Any, tmp_path: Path) -> None:
    from machine_code import disassemble, opcodes
    from triton_simulator import cuda, simulated

    for architecture in (80, 90, 100):
        with simulated(cuda(architecture)) as gpu:
            for case in (kl_case((2, 2048), True, True), *(bin_case((2, 2048), True, tanh) for tanh in (True, False))):
                result(triton_backend, case)
        for kernel in gpu.compiled:
            ptx = kernel.asm["ptx"]
            assert not [word for word in (".local", ".approx", ".ftz", ".full") if word in ptx]
            code = opcodes(disassemble(kernel, tmp_path))
            assert not [name for name in code if name.startswith(("LDL", "STL"))], kernel.metadata.name


def test_triton_compiles_for_amd_and_not_again_for_other_sizes(triton_backend: Any) -> None:
    pytest.importorskip("triton.backends.amd.compiler", reason="this Triton has no AMD backend")
    from triton.backends.compiler import GPUTarget

    from triton_simulator import cuda, simulated

    with simulated(GPUTarget("hip", "gfx942", 64)) as gpu:
        for case in (kl_case((2, 2048), True, True), bin_case((2, 2048), True, False)):
            result(triton_backend, case)
    assert all(".private_segment_fixed_size: 0" in kernel.asm["amdgcn"] for kernel in gpu.compiled)
    with simulated(cuda(90)) as gpu:
        for shape in ((1, 200), (5, 136), (17, 2048), (3, 8 * 1001)):
            result(triton_backend, kl_case(shape, True, True))
            result(triton_backend, bin_case(shape, False, False))
    assert len({id(kernel) for kernel in gpu.compiled}) == 4  # up to 1,024 elements, or longer
