"""Per-chain KL and discretised likelihood: exact values, the same bits on every backend, and what the GPU code is."""

from __future__ import annotations

import importlib
import math
import struct
import subprocess
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

import cuda_simulator
from likelihood_cases import Case, bin_case, cases, generator, kl_case, result
from ulam_kernels import _cpu
from ulam_kernels.cpu import likelihood as cpu
from ulam_kernels.likelihood import discretised_log_likelihood, gaussian_kl
from ulam_kernels.reference import likelihood as reference

SIZES = [(1, 1), (5, 7), (3, 100), (2, 1024), (7, 1025), (3, 3001), (2, 3, 5, 7)]


@pytest.fixture(params=_cpu.instruction_sets())
def instruction_set(request: pytest.FixtureRequest) -> Any:
    _cpu.use_instruction_set(request.param)
    yield request.param
    _cpu.use_instruction_set(_cpu.instruction_sets()[0])


# ------------------------------------------------------------------------------------------------------- values


def test_kl_is_that_of_torch_distributions() -> None:
    for each_a, each_b in ((True, True), (True, False), (False, True), (False, False)):
        case = {k: v.double() if torch.is_tensor(v) else v for k, v in kl_case((4, 300), each_a, each_b).items()}
        wide = {k: v if v.dim() > 1 else v[:, None].expand(4, 300) for k, v in case.items() if torch.is_tensor(v)}
        a = torch.distributions.Normal(wide["mean_a"], (wide["log_var_a"] / 2).exp())
        b = torch.distributions.Normal(wide["mean_b"], (wide["log_var_b"] / 2).exp())
        expected = torch.distributions.kl_divergence(a, b).sum(1)
        arguments = [case[name] for name in ("mean_a", "log_var_a", "mean_b", "log_var_b")]
        torch.testing.assert_close(gaussian_kl(*arguments), expected, rtol=1e-12, atol=1e-13)
        single = gaussian_kl(*(x.float() for x in arguments))
        torch.testing.assert_close(single, gaussian_kl(*(x.float().double() for x in arguments)), rtol=1e-6, atol=0)


def test_small_kl_does_not_cancel() -> None:
    """Variances and means that differ by 1e-6: the divergence is about 1e-12, right to seven digits in float32."""
    log_var, mean = torch.full((1, 1), -2.0), torch.full((1, 1), 0.5)
    other, off = log_var + 2e-6, mean + 3e-7
    d, distance = float(log_var.double() - other.double()), float(mean.double() - off.double())
    expected = (math.expm1(d) - d) / 2 if abs(d) > 1e-3 else d**2 / 4 * (1 + d / 3)
    expected += distance**2 / 2 / math.exp(float(other))
    for backend in ("cpu", "reference"):
        assert gaussian_kl(mean, log_var, off, other, backend=backend).item() == pytest.approx(expected, rel=1e-6)


def exact_log_bin(x: float, mean: float, log_scale: float, bins: int = 256) -> float:
    """ln of the probability, by mpmath, to 60 digits."""
    with mpmath.workdps(60):
        scale, half = mpmath.exp(mpmath.mpf(log_scale)), mpmath.mpf(1) / (bins - 1)
        low = -mpmath.inf if x < -1 + half else (mpmath.mpf(x) - half - mpmath.mpf(mean)) / scale
        high = mpmath.inf if x > 1 - half else (mpmath.mpf(x) + half - mpmath.mpf(mean)) / scale
        if low + high > 0:
            low, high = -high, -low
        tail = lambda y: mpmath.erfc(-y / mpmath.sqrt(2)) / 2  # noqa: E731
        return float(mpmath.log(tail(high) - tail(low)))


def test_discretised_likelihood_is_exact_in_bulk_and_tails() -> None:
    """Against 60 digits: bins a thousandth to a hundred deviations wide, up to 40 deviations off, all levels."""
    rng = np.random.default_rng(0)
    for bins in (2, 16, 256):
        level = rng.integers(0, bins, 300)
        level[:40], level[40:80] = 0, bins - 1
        x = (2 * level / (bins - 1) - 1).astype(np.float32)
        log_scale = np.log(10 ** rng.uniform(-2, 3, 300) / (bins - 1)).astype(np.float32)
        off = rng.normal(size=300) * 10 ** rng.uniform(-1, 1, 300) * np.exp(log_scale)
        mean = (x + np.where(rng.random(300) < 0.1, 0, off)).astype(np.float32)
        arrays = [a[:, None] for a in (x, mean, log_scale)]
        expected = np.array([exact_log_bin(*map(float, row), bins) for row in zip(x, mean, log_scale, strict=True)])
        single = discretised_log_likelihood(*map(torch.from_numpy, arrays), bins=bins).numpy()
        double = discretised_log_likelihood(*(torch.from_numpy(a).double() for a in arrays), bins=bins).numpy()
        np.testing.assert_allclose(double, expected, rtol=2e-12, atol=1e-15)
        np.testing.assert_allclose(single, expected, rtol=1e-5, atol=1e-6)


def test_bins_add_up_to_one() -> None:
    for bins, mean, scale in ((256, 0.3, 0.02), (256, -1.2, 0.5), (9, 0.0, 1e-3), (2, 0.9, 3.0)):
        x = torch.linspace(-1, 1, bins)[:, None]
        log_scale = torch.full((bins,), math.log(scale))
        for cdf in ("exact", "tanh"):
            log = discretised_log_likelihood(x, torch.full_like(x, mean), log_scale, bins, cdf=cdf)
            assert float(log.exp().sum()) == pytest.approx(1, abs=2e-6)


def test_tanh_is_that_of_guided_diffusion() -> None:
    """Its formula in float64, which for these differences loses at most seven of sixteen digits."""
    case = bin_case((6, 500), True, True)
    x, mean, log_scale = (case[name].double() for name in ("x", "mean", "log_scale"))
    cdf = lambda y: 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))  # noqa: E731
    above, below = (cdf((x - mean + side / 255) / log_scale.exp()) for side in (1, -1))
    safe = lambda p: p.clamp(min=1e-12).log()  # noqa: E731
    terms = torch.where(x < -0.999, safe(above), torch.where(x > 0.999, safe(1 - below), safe(above - below)))
    clear = ((above - below) > 1e-7) | (x.abs() > 0.999)  # elsewhere its own difference is rounding error
    terms, kept = torch.where(clear, terms, 0), [torch.where(clear, a, b) for a, b in ((x, 0), (mean, 0))]
    kept.append(torch.where(clear, log_scale, -30))  # probability 1
    ours = discretised_log_likelihood(*kept, cdf="tanh")
    torch.testing.assert_close(ours, terms.sum(1), rtol=1e-8, atol=1e-6)
    single = discretised_log_likelihood(*(a.float() for a in kept), cdf="tanh")
    torch.testing.assert_close(single, ours, rtol=1e-5, atol=1e-4)


def test_special_functions_are_as_accurate_as_they_say() -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(0x00800000, 0x7E800000, 300_000).astype(np.int32).view(np.float32)
    x = np.concatenate([x, np.linspace(0.3, 3, 300_000, dtype=np.float32)])
    exact = np.log(x.astype(np.float64))
    ulp = np.spacing(np.abs(exact).astype(np.float32))
    assert (np.abs(reference.log(x) - exact) / ulp).max() < 1.25
    a = np.concatenate([np.linspace(0, 20, 300_000), 10 ** rng.uniform(-6, 6, 100_000)]).astype(np.float32)
    tail = np.exp(stats.norm.logsf(a[a < 20].astype(np.float64)) + a[a < 20].astype(np.float64) ** 2 / 2)
    np.testing.assert_allclose(reference.scaled_tail(a[a < 20]), tail, rtol=4.5e-7)
    far = a[a >= 1000].astype(np.float64)
    np.testing.assert_allclose(
        reference.scaled_tail(a[a >= 1000]), (1 - far**-2) / far / math.sqrt(2 * math.pi), rtol=5e-7
    )
    d = np.concatenate(
        [rng.uniform(-85, 87, 200_000), rng.choice([-1, 1], 200_000) * 10 ** rng.uniform(-10, 0, 200_000)]
    )
    d = d.astype(np.float32)
    np.testing.assert_allclose(reference.expm1(d), np.expm1(d.astype(np.float64)), rtol=1.5e-7)
    np.testing.assert_allclose(reference.exp_excess(d), reference.exp_excess(d.astype(np.float64)), rtol=6e-7)
    small = reference.exp_excess(np.array([1e-9, -1e-4, 0.04, -0.2, 3.0, -30.0]))
    with mpmath.workdps(40):
        exact_excess = [float(mpmath.expm1(v) - mpmath.mpf(v)) for v in (1e-9, -1e-4, 0.04, -0.2, 3.0, -30.0)]
    np.testing.assert_allclose(small, exact_excess, rtol=1e-13)


# --------------------------------------------------------------------------------------------------- invariance


@pytest.mark.parametrize("shape", SIZES)
def test_every_instruction_set_has_the_bits_of_the_reference(instruction_set: str, shape: tuple[int, ...]) -> None:
    for case in cases(shape):
        expected = result(reference, case)
        assert torch.equal(result(cpu, case), expected) and not expected.isnan().any()


def test_the_public_functions_are_these() -> None:
    kl, bins = kl_case((3, 50), True, False), bin_case((3, 50), False, True)
    arguments = [kl[name] for name in ("mean_a", "log_var_a", "mean_b", "log_var_b")]
    assert torch.equal(gaussian_kl(*arguments), result(cpu, kl))
    arguments = [bins[name] for name in ("x", "mean", "log_scale")]
    assert torch.equal(discretised_log_likelihood(*arguments, cdf="tanh"), result(cpu, bins))


def test_a_chain_has_its_bits_in_any_batch_and_with_any_number_of_threads() -> None:
    threads = torch.get_num_threads()
    for case in cases((23, 3001)):
        torch.set_num_threads(1)
        whole = result(cpu, case)
        torch.set_num_threads(3)
        assert torch.equal(result(cpu, case), whole)
        torch.set_num_threads(threads)
        order = torch.randperm(23, generator=generator(2))[:9]
        part = {name: value[order].contiguous() if torch.is_tensor(value) else value for name, value in case.items()}
        assert torch.equal(result(cpu, part), whole[order])


def test_one_number_a_chain_has_the_bits_of_the_same_number_for_every_element() -> None:
    for backend in (cpu, reference):
        kl, bins = kl_case((4, 333), False, False), bin_case((4, 333), False, False)
        spread = lambda x: x[:, None].expand(4, 333).contiguous()  # noqa: E731
        wide = kl | {"log_var_a": spread(kl["log_var_a"]), "log_var_b": spread(kl["log_var_b"])}
        for each_a, each_b in ((True, True), (True, False), (False, True)):
            some = wide | {name: kl[name] for name, each in (("log_var_a", each_a), ("log_var_b", each_b)) if not each}
            assert torch.equal(result(backend, some | {"each_a": each_a, "each_b": each_b}), result(backend, kl))
        wide = bins | {"log_scale": spread(bins["log_scale"]), "each": True}
        assert torch.equal(result(backend, wide), result(backend, bins))


def test_nan_spoils_its_own_chain_alone(instruction_set: str) -> None:
    for case in cases((3, 40)):
        for name in ("mean_a", "log_var_a", "mean_b", "log_var_b", "x", "mean", "log_scale"):
            if name in case:
                spoilt = case[name].clone()
                spoilt[1].view(-1)[-1] = math.nan
                for backend in (cpu, reference):
                    assert result(backend, case | {name: spoilt}).isnan().tolist() == [False, True, False]


def test_empty_batches_and_wrong_arguments() -> None:
    x, chain = torch.zeros(2, 3), torch.zeros(2)
    for backend in ("cpu", "reference"):
        assert gaussian_kl(x[:0], chain[:0], x[:0], chain[:0], backend=backend).shape == (0,)
        assert discretised_log_likelihood(x[:, :0], x[:, :0], chain, backend=backend).tolist() == [0, 0]
    for arguments, message in (
        ((x, chain, x[:1], chain), "mean_b: got shape"),
        ((x, chain[:1], x, chain), "log_var_a: got shape"),
        ((x, chain, x, chain.double()), "log_var_b: got dtype"),
        ((x.long(), chain, x, chain), "mean_a: got torch.int64"),
        ((x, chain, x.mT.contiguous().mT, chain), "mean_b: must be contiguous"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            gaussian_kl(*arguments)
    for options, message in (({"bins": 1}, "bins: got 1"), ({"cdf": "erf"}, "cdf: got 'erf'")):
        with pytest.raises(ValueError, match=message):
            discretised_log_likelihood(x, x, chain, **options)


# ---------------------------------------------------------------------------------------------------- GPU code

GPU_SIZES = [(3, 1), (2, 100), (2, 128), (3, 129), (2, 2048), (2, 3007)]
LONG = [("sm_90", (2, 16_384)), ("sm_100", (2, 40_001)), ("sm_80", (2, 16_384)), ("sm_90", (65, 16_384))]


@pytest.fixture(scope="module")
def triton_backend() -> Any:
    pytest.importorskip("triton", reason="triton is not installed")
    import triton_simulator

    module = importlib.import_module("ulam_kernels.triton.likelihood")
    triton_simulator.MODULES |= dict.fromkeys((module.gaussian_kl_chain, module.discretised_chain), module)
    return module


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
            self.each = [at[0], at[2]] + at[1:2] * case["each_a"] + at[3:4] * case["each_b"]
            target = self.put(out)
            self.call("gaussian_kl", struct.pack("<qqQQQQiiQ", *sizes, *at, case["each_a"], case["each_b"], target))
        else:
            at = self._put(case, ("x", "mean", "log_scale"), skew)
            self.each = at[:2] + at[2:] * case["each"]
            target = self.put(out)
            rest = case["each"], case["half"], case["edge"], int(case["tanh"]), target
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
    from ptx_interpreter import parse

    cuda_simulator.SYMBOLS["gaussian_kl"] = "_ZN4ulam4cuda11gaussian_klERKNS_10GaussianKlEPv"
    cuda_simulator.SYMBOLS["discretised_log_likelihood"] = (
        "_ZN4ulam4cuda26discretised_log_likelihoodERKNS_21DiscretisedLikelihoodEPv"
    )
    return Sums(cuda_build / "host.so", parse(dump(cuda_build, "-ptx")))


SHORT = [(1, 1), (131, 2), (33, 5), (9, 31), (9, 32), (9, 33), (5, 127), (3, 511), (5, 512), (3, 513), (2, 1023)]


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
