"""The GPUs' sums over two tensors of a chain without a GPU: the bits of the reference, and what they compile to."""

from __future__ import annotations

import importlib
import struct
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import cuda_simulator
import guidance_cases
from moments_cases import arguments, result
from ulam_kernels import reference

SIZES = [(3, 1), (5, 2), (2, 100), (2, 128), (3, 129), (2, 1023), (2, 2048), (2, 3007)]


@pytest.fixture(scope="module")
def cuda_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if cuda_simulator.MISSING:
        pytest.skip(cuda_simulator.MISSING)
    folder = tmp_path_factory.mktemp("moments")
    (folder / "runtime.cpp").write_text(cuda_simulator.RUNTIME)
    targets = [f"-gencode=arch=compute_{a[3:]},code={a}" for a in cuda_simulator.ARCHITECTURES]
    command = [cuda_simulator.NVCC, *cuda_simulator.FLAGS, *targets, "-gencode=arch=compute_100,code=compute_100"]
    command += ["-Xcompiler=-fPIC", *cuda_simulator.SHARED]
    command += [str(cuda_simulator.ROOT / f"csrc/cuda/{name}.cu") for name in ("moments", "affine")]
    subprocess.run([*command, "runtime.cpp", "-o", "host.so"], cwd=folder, check=True)
    return folder


def dump(folder: Path, *options: str) -> str:
    command = [cuda_simulator.CUOBJDUMP, *options, "host.so"]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


class Operations(cuda_simulator.Device):
    """csrc/cuda/{moments,affine}.cu over the stand-in for the CUDA runtime, with the functions of a backend."""

    skew = 0  # of tensors, in bytes from an aligned address

    def moments(self, x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> None:
        self.reset()
        at, target = [self.put(tensor, self.skew) for tensor in (x, y)], self.put(out)
        self.call("moments", struct.pack("<qqQQQ", len(x), x[0].numel(), *at, target))
        self.take(target, out)

    def affine(self, x: torch.Tensor, m: torch.Tensor, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
        self.reset()
        x_at, m_at, a_at, b_at, target = (self.put(tensor) for tensor in (x, m, a, b, out))
        sizes = len(x), x[0].numel()
        self.call("affine", struct.pack("<qqQQQiii4xQQ", *sizes, x_at, m_at, target, 0, 0, 0, a_at, b_at))
        self.take(target, out)


@pytest.fixture(scope="module")
def cuda_device(cuda_build: Path) -> Operations:
    from ptx_parser import parse

    cuda_simulator.SYMBOLS["moments"] = "_ZN4ulam4cuda7momentsERKNS_7MomentsEPv"
    cuda_simulator.SYMBOLS["affine"] = "_ZN4ulam4cuda6affineERKNS_6AffineEPv"
    return Operations(cuda_build / "host.so", parse(dump(cuda_build, "-ptx")))


def test_cuda_ptx_gives_the_bits_of_the_reference(cuda_device: Operations) -> None:
    for shape in SIZES:
        for cuda_device.skew in (0, 4) if shape[1] in (128, 3007) else (0,):
            x, y = arguments(shape)
            assert torch.equal(result(cuda_device, x, y), result(reference, x, y)), (shape, cuda_device.skew)


def test_the_rules_of_guidance_have_the_bits_of_the_reference_in_cuda_ptx(cuda_device: Operations) -> None:
    cuda_device.skew = 0
    for shape in ((2,), (3, 4, 5)):
        found = []
        for module in (reference, cuda_device):
            with guidance_cases.backend_of(module):
                found.append(guidance_cases.check(shape))
        assert torch.equal(*found), shape


@pytest.mark.parametrize("architecture", cuda_simulator.ARCHITECTURES)
def test_cuda_machine_code_has_no_local_memory(cuda_build: Path, architecture: str) -> None:
    kernels = dump(cuda_build, "-sass", "-arch", architecture).split("Function : ")[1:]
    sums = [code for code in kernels if "moments" in code.split("\n", 1)[0]]
    assert len(sums) == 2
    for code in sums:
        assert "LDL" not in code and "STL" not in code and "DFMA" in code and "MUFU" not in code


@pytest.fixture(scope="module")
def triton_backend() -> Any:
    pytest.importorskip("triton", reason="triton is not installed")
    import triton_simulator

    module = importlib.import_module("ulam_kernels.triton.moments")
    triton_simulator.MODULES[module.moments_chain] = module
    return module


def test_triton_ptx_gives_the_bits_of_the_reference(triton_backend: Any) -> None:
    from triton_simulator import cuda, simulated

    with simulated(cuda(90), execute=True):
        for shape in SIZES:
            x, y = arguments(shape)
            assert torch.equal(result(triton_backend, x, y), result(reference, x, y)), shape


def test_the_rules_of_guidance_have_the_bits_of_the_reference_in_triton_ptx(triton_backend: Any) -> None:
    from triton_simulator import cuda, simulated

    affine = importlib.import_module("ulam_kernels.triton.affine")
    both = SimpleNamespace(moments=triton_backend.moments, affine=affine.affine)
    for shape in ((2,), (3, 4, 5)):
        with guidance_cases.backend_of(reference):
            expected = guidance_cases.check(shape)
        with simulated(cuda(90), execute=True), guidance_cases.backend_of(both):
            assert torch.equal(guidance_cases.check(shape), expected)


def test_triton_compiles_without_spills_and_not_again_for_other_sizes(triton_backend: Any, tmp_path: Path) -> None:
    from machine_code import disassemble, opcodes
    from triton_simulator import cuda, simulated

    for architecture in (80, 90, 100):
        with simulated(cuda(architecture)) as gpu:
            for shape in ((1, 200), (5, 136), (17, 2048), (3, 8 * 1001)):
                result(triton_backend, *arguments(shape))
        assert len({id(kernel) for kernel in gpu.compiled}) == 2  # up to 1,024 elements, or longer
        for kernel in gpu.compiled:
            assert not [word for word in (".local", ".approx", ".ftz", ".full") if word in kernel.asm["ptx"]]
            code = opcodes(disassemble(kernel, tmp_path))
            assert not [name for name in code if name.startswith(("LDL", "STL"))]
