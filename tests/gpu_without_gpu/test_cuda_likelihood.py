"""The CUDA sums of variational bounds without a GPU: the bits of the CPU, and what they compile to."""

from __future__ import annotations

import math
import struct
import subprocess
from pathlib import Path

import pytest
import torch

import cuda_simulator
from likelihood_cases import GPU_SIZES, Case, bin_case, cases, kl_case, result
from ulam_kernels.cpu import likelihood as cpu

LONG = [("sm_90", (2, 16_384)), ("sm_100", (2, 40_001)), ("sm_80", (2, 16_384)), ("sm_90", (65, 16_384))]


class Sums(cuda_simulator.Device):
    """csrc/cuda/likelihood.cu over the stand-in for the CUDA runtime, with the functions of a backend."""

    each: list[int]  # where the tensors of one number an element lay in the last run

    def _put(self, case: Case, names: tuple[str, ...], skew: int) -> list[int]:
        self.reset()
        return [self.put(case[name], skew) for name in names]

    def run(self, case: Case, skew: int = 0) -> torch.Tensor:
        first, out = next(iter(case.values())), case["out"].clone()
        sizes = len(first), first.numel() // len(first)
        if "mean_a" in case:
            at = self._put(case, ("mean_a", "log_var_a", "mean_b", "log_var_b"), skew)
            self.each = [at[0], at[2]] + at[1:2] * case["per_element_a"] + at[3:4] * case["per_element_b"]
            target = self.put(out)
            per_element = case["per_element_a"], case["per_element_b"]
            self.call("gaussian_kl", struct.pack("<qqQQQQiiQ", *sizes, *at, *per_element, target))
        else:
            at = self._put(case, ("x", "mean", "log_scale"), skew)
            self.each = at[:2] + at[2:] * case["per_element"]
            target = self.put(out)
            rest = case["per_element"], case["half"], case["edge"], int(case["tanh"]), target
            self.call("discretised_log_likelihood", struct.pack("<qqQQQiffiQ", *sizes, *at, *rest))
        self.take(target, out)
        return out


@pytest.fixture(scope="module")
def cuda_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if cuda_simulator.MISSING:
        pytest.skip(cuda_simulator.MISSING)
    folder = tmp_path_factory.mktemp("likelihood")
    (folder / "runtime.cpp").write_text(cuda_simulator.RUNTIME)
    targets = [f"-gencode=arch=compute_{a[3:]},code={a}" for a in cuda_simulator.ARCHITECTURES]
    command = [cuda_simulator.NVCC, *cuda_simulator.FLAGS, *targets, "-gencode=arch=compute_100,code=compute_100"]
    command += ["-Xcompiler=-fPIC", *cuda_simulator.SHARED, str(cuda_simulator.ROOT / "csrc/cuda/likelihood.cu")]
    subprocess.run([*command, "runtime.cpp", "-o", "host.so"], cwd=folder, check=True)
    return folder


def dump(folder: Path, *options: str) -> str:
    command = [cuda_simulator.CUOBJDUMP, *options, "host.so"]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def cuda_device(cuda_build: Path) -> Sums:
    from ptx_parser import parse

    cuda_simulator.SYMBOLS["gaussian_kl"] = "_ZN4ulam4cuda11gaussian_klERKNS_10GaussianKlEPv"
    cuda_simulator.SYMBOLS["discretised_log_likelihood"] = (
        "_ZN4ulam4cuda26discretised_log_likelihoodERKNS_21DiscretisedLikelihoodEPv"
    )
    return Sums(cuda_build / "host.so", parse(dump(cuda_build, "-ptx")))


SHORT = [(1, 1), (131, 2), (33, 5), (9, 31), (9, 32), (9, 33), (5, 127), (3, 511), (5, 512), (3, 513), (2, 1023)]


@pytest.mark.long
def test_cuda_ptx_of_short_chains_gives_the_bits_of_the_cpu(cuda_device: Sums) -> None:
    """They share warps and blocks, whose last are not full; a chain of no elements has a sum too."""
    for shape in SHORT:
        for skew in (0, 4) if shape[1] in (32, 512) else (0,):
            for case in cases(shape):
                assert torch.equal(cuda_device.run(case, skew), result(cpu, case)), (shape, skew)
                grid, threads = cuda_device.shape[0], cuda_device.shape[3]
                assert (grid * threads < 128 + 32 * shape[0]) == (shape[1] <= 512)
    empty = {name: x[:, :0] if torch.is_tensor(x) and x.dim() > 1 else x for name, x in kl_case((5, 3), 0, 0).items()}
    assert cuda_device.run(empty).tolist() == [0] * 5


def test_cuda_ptx_gives_the_bits_of_the_cpu(cuda_device: Sums) -> None:
    for shape in GPU_SIZES:
        for skew in (0, 4, 8) if shape[1] in (128, 3007) else (0,):
            for case in cases(shape):
                assert torch.equal(cuda_device.run(case, skew), result(cpu, case)), (shape, skew)


@pytest.mark.parametrize("n", [40, 2048])
def test_cuda_works_out_the_tails_that_are_needed(cuda_device: Sums, n: int) -> None:
    """None of a narrow bin near the mean, one of an outermost bin, two of others; a division each."""
    x = torch.zeros(1, n)
    for level, scale, tails in ((0.5, 0.03, 0), (1.0, 0.03, 1), (0.5, 1e-3, 2)):
        x[0, : n // 4] = level
        case = bin_case((1, n), False, False) | {"x": x, "mean": x.clone(), "log_scale": torch.tensor([math.log(0.03)])}
        case["mean"][0, : n // 4] -= 5 * (0.03 - scale)  # or far from the mean
        assert torch.equal(cuda_device.run(case), result(cpu, case))
        kernel = cuda_device.kernels[cuda_device.used].code
        divisions = [k for k, i in enumerate(kernel) if i.name in ("rcp", "div") and "f32" in i.text]
        assert int(cuda_device.executed[divisions].sum()) == tails * (n // 4)


@pytest.mark.parametrize("architecture, shape", LONG)
def test_cuda_sums_of_long_chains_have_the_bits_of_the_cpu(
    cuda_device: Sums, architecture: str, shape: tuple[int, int]
) -> None:
    """Few of them are shared by eight blocks each, where there are clusters; an element is read once either way."""
    cuda_device.be(architecture)
    cuda_device.counts = True
    for case in cases(shape) if shape[0] < 3 else [bin_case(shape, False, True)]:
        assert torch.equal(cuda_device.run(case), result(cpu, case)), (architecture, shape)
        assert cuda_device.shape[7] == (8 if architecture != "sm_80" and shape[0] <= 64 else 1)
        assert cuda_device.memory.reads is not None
        for at in cuda_device.each:
            start = at - cuda_device.memory.BASE
            assert (cuda_device.memory.reads[start : start + 4 * math.prod(shape)] == 1).all()


@pytest.mark.parametrize("architecture", cuda_simulator.ARCHITECTURES)
def test_cuda_machine_code(cuda_build: Path, architecture: str) -> None:
    """No local memory; of the approximate instructions only those of a correctly rounded division and its NaN."""
    from machine_code import loads_in_flight

    text = dump(cuda_build, "-sass", "-arch", architecture)
    kernels = text.split("Function : ")[1:]
    assert len(kernels) == 16
    for code in kernels:
        name = code.split("\n", 1)[0]
        assert "LDL" not in code and "STL" not in code
        assert {word.split()[0] for word in code.split() if word.startswith("MUFU")} <= {"MUFU.RCP", "MUFU.RSQ"}
        if "discretised_chainI" in name and "LDG" in code:  # the code of four elements once, and one slow path
            assert code.count("MUFU.RCP") == 4 * (2 + 2) + 1
        if architecture == "sm_80" and "ILi8E" in name:
            assert "LDG" not in code  # sm_80 has no clusters
            continue
        assert "DADD" in code
        if "_chainI" in name and "Lb1E" in name:
            groups = loads_in_flight(code)
            assert sum(groups) >= 4 * (4 if "gaussian" in name else 3) and min(groups) >= 4, (name, groups)
