"""VAEs against linear-Gaussian models, whose evidence and posteriors are known."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from ulam import noise
from ulam.vae import GaussianVAE, HierarchicalVAE, Level
from vae_cases import moments

A = torch.tensor([[0.8, -0.3], [0.2, 1.1]], dtype=torch.float64)  # z_1 given z_2
B = torch.tensor([[1.0, 0.4], [-0.6, 0.3], [0.1, 0.9]], dtype=torch.float64)  # x given z_1
S1, S = 0.5, 0.7  # their standard deviations
X = torch.randn(400, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def diagonal_posterior(x: torch.Tensor) -> torch.Tensor:
    """The exact posterior's mean with its precision's diagonal: a tight q among diagonal ones [VAE with B]."""
    precision = torch.eye(2, dtype=torch.float64) + B.T @ B / S**2
    return moments(x @ B @ torch.linalg.inv(precision) / S**2, precision.diagonal().rsqrt())


def linear() -> GaussianVAE:
    return GaussianVAE(lambda z: z @ B.T.to(z.dtype), (2,), diagonal_posterior, scale=S)


def two_levels() -> HierarchicalVAE:
    """q of each level from the exact joint: z_2 given x, and z_1 given (z_2, x), made diagonal."""
    full = torch.eye(2, dtype=torch.float64) + A.T @ B.T @ torch.linalg.inv(noise_of_x()) @ B @ A

    def top(x: torch.Tensor) -> torch.Tensor:
        mean = x @ torch.linalg.inv(noise_of_x()) @ B @ A @ torch.linalg.inv(full)
        return moments(mean, full.diagonal().rsqrt())

    inner = torch.eye(2, dtype=torch.float64) / S1**2 + B.T @ B / S**2

    def below(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        mean = (z @ A.T / S1**2 + x @ B / S**2) @ torch.linalg.inv(inner)
        return moments(mean, inner.diagonal().rsqrt())

    levels = [Level((2,), None, top), Level((2,), lambda z: moments(z @ A.T.to(z.dtype), S1), below)]
    return HierarchicalVAE(levels, lambda z: z @ B.T.to(z.dtype), scale=S)


def noise_of_x() -> torch.Tensor:
    """Cov[x | z_2]."""
    return S1**2 * B @ B.T + S**2 * torch.eye(3, dtype=torch.float64)


def evidence(covariance: torch.Tensor) -> torch.Tensor:
    return torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), covariance).log_prob(X)


def kl_to_exact(precision: torch.Tensor) -> float:
    """KL of the diagonal q to the exact posterior of the same mean: what the bound loses."""
    diagonal = precision.diagonal()
    return float((diagonal.log().sum() - torch.logdet(precision)) / 2)


def test_bound_of_a_linear_vae_is_the_evidence_less_the_known_gap() -> None:
    bound = linear().elbo(X, samples=400)
    gap = kl_to_exact(torch.eye(2, dtype=torch.float64) + B.T @ B / S**2)
    expected = evidence(B @ B.T + S**2 * torch.eye(3, dtype=torch.float64)) - gap
    assert gap > 0.01
    error = bound.value - expected
    assert abs(float(error.mean())) <= 4 * float(bound.stderr.pow(2).sum().sqrt()) / len(X)
    assert ((error / bound.stderr).abs() < 5).all()
    torch.testing.assert_close(bound.value, bound.reconstruction - bound.kl.sum(1))
    mean, log_std = diagonal_posterior(X).chunk(2, dim=1)
    exact = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, log_std.exp()), torch.distributions.Normal(torch.zeros_like(mean), 1.0)
    )
    torch.testing.assert_close(bound.kl[:, 0], exact.sum(1))
    assert bound.bits_per_dim == pytest.approx(-float(bound.value.mean()) / 3 / math.log(2))


def test_bound_of_a_hierarchy_is_below_the_evidence_and_near_it() -> None:
    model = two_levels()
    bound = model.elbo(X, samples=200)
    exact = evidence(B @ (A @ A.T + S1**2 * torch.eye(2, dtype=torch.float64)) @ B.T + S**2 * torch.eye(3))
    inner = torch.eye(2, dtype=torch.float64) / S1**2 + B.T @ B / S**2
    top = torch.eye(2, dtype=torch.float64) + A.T @ B.T @ torch.linalg.inv(noise_of_x()) @ B @ A
    gap = kl_to_exact(inner) + kl_to_exact(top)
    loss = float((exact - bound.value).mean())
    assert loss == pytest.approx(gap, abs=4 * float(bound.stderr.pow(2).sum().sqrt()) / len(X))
    assert bound.kl.shape == (400, 2) and (bound.kl > 0).all()


def test_samples_have_the_models_law() -> None:
    n = 100_000
    x = two_levels().sample(n, seed=3, noise=True, slots=10_000).double()
    expected = B @ (A @ A.T + S1**2 * torch.eye(2, dtype=torch.float64)) @ B.T + S**2 * torch.eye(3)
    covariance = x.T @ x / n
    spread = torch.sqrt((expected**2 + expected.diagonal()[:, None] * expected.diagonal()) / n)
    assert ((covariance - expected).abs() <= 4.5 * spread).all()
    assert (x.mean(0).abs() <= 4.5 * (expected.diagonal() / n).sqrt()).all()


def test_each_level_is_noise_v1_and_a_chain_keeps_its_bits_in_any_batch() -> None:
    model = two_levels()
    x = model.sample([5, 9, 2**40], seed=1, slots=4)
    assert torch.equal(x[1:2], model.sample([9], seed=1, slots=4))
    assert torch.equal(x, model.sample([5, 9, 2**40], seed=1, slots=2))  # its networks treat rows independently
    z2 = noise.normal_for(noise.LATENT, (2,), seed=1, chains=[5, 9, 2**40], row=0)
    z1 = z2 @ A.T.float() + S1 * noise.normal_for(noise.LATENT, (2,), seed=1, chains=[5, 9, 2**40], row=1)
    torch.testing.assert_close(x, z1 @ B.T.float(), rtol=1e-5, atol=1e-6)
    cold = model.sample([5], seed=1, temperature=0.0)
    assert torch.equal(cold, torch.zeros(1, 3))


def test_levels_of_different_shapes() -> None:
    up = torch.nn.ConvTranspose2d(2, 6, 2, stride=2)
    levels = [Level((2, 4, 4)), Level((3, 8, 8), up)]
    model = HierarchicalVAE(levels, torch.nn.Conv2d(3, 2, 3, padding=1), scale=None)
    x = model.sample(3, noise=True, slots=3)
    assert x.shape == (3, 1, 8, 8)
    draw = partial(noise.normal_for, noise.LATENT, seed=0, chains=3)
    z = draw((2, 4, 4), row=0)
    with torch.no_grad():
        mean, log_std = up(z).chunk(2, dim=1)
        z = mean + log_std.exp() * draw((3, 8, 8), row=1)
        mean, log_std = model.decoder(z).chunk(2, dim=1)
    expected = mean + log_std.exp() * draw((1, 8, 8), row=2)
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-6)


def test_active_units_find_a_collapsed_element() -> None:
    def half(x: torch.Tensor) -> torch.Tensor:
        mean = torch.stack([x[:, 0], torch.zeros_like(x[:, 0])], dim=1)
        return moments(mean, 0.5)

    model = GaussianVAE(lambda z: z @ B.T.to(z.dtype), (2,), half)
    assert model.active_units(X)[0].tolist() == [True, False]


def test_the_bound_trains_networks() -> None:
    encoder = torch.nn.Linear(3, 4, dtype=torch.float64)
    model = GaussianVAE(lambda z: z @ B.T, (2,), encoder, scale=S)
    optimiser = torch.optim.Adam(encoder.parameters(), 0.05)
    for step in range(400):
        optimiser.zero_grad()
        (-model.elbo(X, step=step).value.mean()).backward()
        optimiser.step()
    best = evidence(B @ B.T + S**2 * torch.eye(3, dtype=torch.float64)).mean()
    gap = kl_to_exact(torch.eye(2, dtype=torch.float64) + B.T @ B / S**2)
    with torch.no_grad():
        found = model.elbo(X, samples=100).value.mean()
    assert float(best - found) == pytest.approx(gap, abs=0.05)
