"""Per-chain KL and discretised likelihood: exact values, and the same bits on every CPU path and in any batch."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from likelihood_cases import bin_case, cases, generator, kl_case, result
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
    for per_a, per_b in ((True, True), (True, False), (False, True), (False, False)):
        case = {k: v.double() if torch.is_tensor(v) else v for k, v in kl_case((4, 300), per_a, per_b).items()}
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
        for per_a, per_b in ((True, True), (True, False), (False, True)):
            narrow = [name for name, per_element in (("log_var_a", per_a), ("log_var_b", per_b)) if not per_element]
            some = wide | {name: kl[name] for name in narrow} | {"per_element_a": per_a, "per_element_b": per_b}
            assert torch.equal(result(backend, some), result(backend, kl))
        wide = bins | {"log_scale": spread(bins["log_scale"]), "per_element": True}
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
        ((x, chain, x.mT.contiguous().mT, chain), "mean_b: got strides"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            gaussian_kl(*arguments)
    for options, message in (({"bins": 1}, "bins: got 1"), ({"cdf": "erf"}, "cdf: got 'erf'")):
        with pytest.raises(ValueError, match=message):
            discretised_log_likelihood(x, x, chain, **options)
