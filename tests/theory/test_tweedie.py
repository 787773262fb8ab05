"""Tweedie's moments and SURE against the exact posterior of Gaussian mixtures, and on a real denoiser."""

from __future__ import annotations

import math

import pytest
import torch

import ulam
from posterior_cases import MIXTURE, SCHEDULES, SIGMA, Y, ideal
from ulam import Denoiser, sure, tweedie

CASES = [("vp", "eps"), ("cosine", "v"), ("ve", "x0"), ("flow", "flow"), ("edm", "raw"), ("ve", "eps")]


def exact_covariance() -> torch.Tensor:
    w, means, covariances = MIXTURE.parts(Y, SIGMA)
    mean = (w[..., None] * means).sum(1, keepdim=True)
    off = (means - mean)[..., None]
    return (w[..., None, None] * (covariances + off @ off.mT)).sum(1)


def exact_third(v: torch.Tensor) -> torch.Tensor:
    """E[(x - m) ((x - m)' v)^2] under the posterior, component by component."""
    w, means, covariances = MIXTURE.parts(Y, SIGMA)
    off = means - (w[..., None] * means).sum(1, keepdim=True)
    along = (off * v[:, None]).sum(2, keepdim=True)
    covered = (covariances @ v[:, None, :, None])[..., 0]
    variance = (covered * v[:, None]).sum(2, keepdim=True)
    return (w[..., None] * (off * (along**2 + variance) + 2 * along * covered)).sum(1)


@pytest.mark.parametrize(("name", "predicts"), CASES)
def test_moments_equal_the_exact_posteriors(name: str, predicts: str) -> None:
    denoiser, covariance = ideal(name, predicts), exact_covariance()
    v = torch.tensor([[1.0, 0.5, -0.3], [0.2, -1.0, 0.7], [0.0, 0.3, 1.0]], dtype=torch.float64)
    close = {"rtol": 1e-7, "atol": 1e-9}
    torch.testing.assert_close(tweedie.mean(denoiser, Y, SIGMA), MIXTURE.denoise(Y, SIGMA), **close)
    product = tweedie.covariance_product(denoiser, Y, SIGMA, v)
    torch.testing.assert_close(product, (covariance @ v[..., None])[..., 0], **close)
    diagonal = tweedie.covariance_diagonal(denoiser, Y, SIGMA)
    torch.testing.assert_close(diagonal, covariance.diagonal(dim1=1, dim2=2), **close)
    torch.testing.assert_close(tweedie.third_cumulant(denoiser, Y, SIGMA, v), exact_third(v), rtol=1e-6, atol=1e-8)
    values, vectors = tweedie.eigenpairs(denoiser, Y, SIGMA, 3)
    expected = torch.linalg.eigvalsh(covariance).flip(1)
    torch.testing.assert_close(values, expected, **close)
    torch.testing.assert_close((covariance @ vectors.mT).mT, values[..., None] * vectors, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
def test_trace_is_within_its_error(method: str) -> None:
    exact = exact_covariance().diagonal(dim1=1, dim2=2).sum(1)
    trace = tweedie.covariance_trace(ideal("ve", "x0"), Y, SIGMA, samples=300, method=method)
    assert ((trace.value - exact).abs() <= 4 * trace.stderr + 1e-9).all()
    few = tweedie.covariance_trace(ideal("ve", "x0"), Y, SIGMA, samples=12, method="hutch++")
    torch.testing.assert_close(few.value, exact, rtol=1e-7, atol=1e-9)  # three directions are all there are


def test_sampled_diagonal_is_unbiased() -> None:
    exact = exact_covariance().diagonal(dim1=1, dim2=2)
    sampled = tweedie.covariance_diagonal(ideal("ve", "x0"), Y, SIGMA, samples=1000, seed=3)
    off_diagonal = exact_covariance() - torch.diag_embed(exact)
    stderr = off_diagonal.pow(2).sum(2).sqrt() / math.sqrt(1000)
    assert ((sampled - exact).abs() <= 4.5 * stderr).all()


def test_a_chains_answers_do_not_depend_on_its_batch() -> None:
    denoiser = ideal("ve", "x0")
    alone = tweedie.eigenpairs(denoiser, Y[:1], SIGMA[:1], 2)
    among = tweedie.eigenpairs(denoiser, Y, SIGMA, 2)
    torch.testing.assert_close(alone[0], among[0][:1], rtol=1e-10, atol=1e-12)
    one = sure.estimate(denoiser, Y[:2], SIGMA[:2], samples=4).per_chain
    torch.testing.assert_close(sure.estimate(denoiser, Y, SIGMA, samples=4).per_chain[:2], one, rtol=1e-12, atol=0)


def test_sure_is_the_true_error_of_any_denoiser() -> None:
    """For data of the mixture and a denoiser that is far from ideal."""
    generator, n = torch.Generator().manual_seed(0), 20_000
    pick = torch.multinomial(MIXTURE.weights, n, replacement=True, generator=generator)
    root = torch.linalg.cholesky(MIXTURE.covariances)[pick]
    x = MIXTURE.means[pick] + (root @ torch.randn(n, 3, 1, generator=generator, dtype=torch.float64))[..., 0]
    sigma = 0.7
    y = x + sigma * torch.randn(n, 3, generator=generator, dtype=torch.float64)
    worse = Denoiser(lambda x, t: torch.tanh(x) + 0.1 * x.flip(1) ** 2, SCHEDULES["ve"], predicts="x0")
    for denoiser in (worse, ideal("ve", "x0", torch.full((n,), sigma, dtype=torch.float64))):
        risk = sure.estimate(denoiser, y, sigma, samples=2)
        error = (tweedie.mean(denoiser, y, sigma) - x).pow(2).mean(1)
        gap = risk.per_chain - error
        assert abs(gap.mean()) <= 4 * gap.std() / math.sqrt(n)
        assert risk.value == pytest.approx(float(error.mean()), abs=4 * risk.stderr)


def test_divergence_of_a_linear_denoiser_is_its_trace() -> None:
    matrix = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    linear = Denoiser(lambda x, t: x @ matrix.T, SCHEDULES["ve"], predicts="x0")
    risk = sure.estimate(linear, Y, SIGMA, samples=2000)
    assert ((risk.divergence - matrix.trace()).abs() <= 4 * risk.per_chain_stderr / (2 * SIGMA**2 / 3)).all()
    residual = (Y @ matrix.T - Y).pow(2).mean(1) - SIGMA**2 + 2 * SIGMA**2 * risk.divergence / 3
    torch.testing.assert_close(risk.per_chain, residual, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda d: tweedie.mean(d, Y, -1.0), "sigma: got -1, expected finite levels above 0"),
        (lambda d: tweedie.mean(d, Y, torch.ones(2)), r"sigma: got shape \[2\], expected a number or \[3\]"),
        (lambda d: tweedie.mean(d, Y, "a"), "sigma: got 'a', expected a number"),
        (lambda d: tweedie.mean(d, Y.int(), 1.0), "y: got .*, expected a float tensor"),
        (lambda d: tweedie.mean(d, Y[0], 1.0), r"y: got .*, expected .*\[B, \*shape\]"),
        (lambda d: tweedie.mean("net", Y, 1.0), "denoiser: got .*, expected a ulam.Denoiser"),
        (lambda d: tweedie.covariance_product(d, Y, 1.0, Y[:, :2]), r"v: got shape .*, expected .* like y"),
        (lambda d: tweedie.eigenpairs(d, Y, 1.0, 4), "count: got 4, expected 1 to the 3 elements"),
        (lambda d: tweedie.covariance_trace(d, Y, 1.0, samples=2), "samples: got .*, expected at least 6"),
        (lambda d: sure.estimate(d, Y, 1.0, samples=0), "samples: got 0, expected 1 to 2"),
        (lambda d: sure.estimate(d, Y, 1.0, kind="sphere"), "kind: got .*, expected one of"),
    ],
)
def test_bad_input_is_named(call, named: str) -> None:
    with pytest.raises((TypeError, ValueError), match=named):
        call(ulam.Denoiser(lambda x, t: x, SCHEDULES["ve"], predicts="x0"))
