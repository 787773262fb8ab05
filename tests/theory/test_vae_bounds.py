"""Bounds of hierarchical VAEs, from the top down and the bottom up, against the exact evidence and divergence."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from ulam import vae
from vae_cases import LinearChain, moments

X = torch.randn(150, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
HIERARCHIES = {2: (2, 3), 3: (1, 3, 2), 5: (2, 1, 3, 2, 2)}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("levels", HIERARCHIES)
@pytest.mark.parametrize("inference", vae.INFERENCES)
def test_the_bound_is_the_evidence_less_the_divergence_of_a_random_q(inference: str, levels: int, seed: int) -> None:
    chain = LinearChain(HIERARCHIES[levels], inference, seed=seed)
    bound, expected = chain.model().elbo(X, samples=200, seed=seed), chain.evidence(X) - chain.gap(X)
    assert (chain.gap(X) > 0.05).all()
    error = (bound.value - expected) / bound.stderr
    assert (error.abs() < 5).all()
    # Examples are independent, so their mean errors are about normal, and their spread is what stderr says.
    assert abs(float(error.mean())) <= 4 / math.sqrt(len(X)) and 0.75 < float(error.std()) < 1.25
    assert bound.kl.shape == (len(X), levels)
    torch.testing.assert_close(bound.value, bound.reconstruction - bound.kl.sum(1))


@pytest.mark.parametrize("inference", vae.INFERENCES)
def test_each_column_is_the_expected_logarithm_of_its_ratio(inference: str) -> None:
    """Which is what the draws' own log-ratios average to, level by level, without any closed form."""
    model = LinearChain((2, 3), inference).model()
    columns = model.elbo(X[:10], samples=1000).kl
    top, below = model.levels
    draws = []
    generator = torch.Generator().manual_seed(3)
    for _ in range(1000):
        first, second = (below, top) if inference == "bottom-up" else (top, below)
        q1 = normal(first.posterior(X[:10]))
        z1 = q1.mean + q1.stddev * torch.randn(q1.mean.shape, generator=generator, dtype=torch.float64)
        q2 = normal(second.posterior(z1) if inference == "bottom-up" else second.posterior(X[:10], z1))
        z2 = q2.mean + q2.stddev * torch.randn(q2.mean.shape, generator=generator, dtype=torch.float64)
        upper, lower = ((z2, q2), (z1, q1)) if inference == "bottom-up" else ((z1, q1), (z2, q2))
        prior = normal(below.prior(upper[0]))
        standard = torch.distributions.Normal(torch.zeros(2).double(), 1.0)
        ratios = [q.log_prob(z) - p.log_prob(z) for (z, q), p in zip((upper, lower), (standard, prior), strict=True)]
        draws.append(torch.stack([ratio.sum(1) for ratio in ratios], dim=1))
    logs = torch.stack(draws)
    error = (columns - logs.mean(0)) / (logs.std(0) * math.sqrt(2 / 1000))
    assert (error.abs() < 4.5).all()


def normal(output: torch.Tensor) -> torch.distributions.Normal:
    mean, log_std = output.chunk(2, dim=1)
    return torch.distributions.Normal(mean, log_std.exp())


def test_one_level_is_the_same_from_either_end() -> None:
    bounds = [LinearChain((2,), inference).model().elbo(X, samples=3, seed=5) for inference in vae.INFERENCES]
    assert torch.equal(bounds[0].value, bounds[1].value) and torch.equal(bounds[0].kl, bounds[1].kl)


@pytest.mark.parametrize("inference", vae.INFERENCES)
def test_more_weighted_draws_bring_the_bound_up_to_the_evidence(inference: str) -> None:
    """q is wider than the posterior, so that weights are bounded."""
    chain = LinearChain((1, 2), inference, spread=1.6)
    model, exact = chain.model(), chain.evidence(X)
    repeated = X.repeat(30, 1)
    lost = [chain.gap(repeated)]
    for count in (4, 16, 64, 256):
        lost.append(exact.repeat(30) - model.importance_weighted(repeated, samples=count, seed=count).value)
    for before, after in itertools.pairwise(lost):
        gain = before - after
        assert float(gain.mean()) > 4 * float(gain.std()) / math.sqrt(len(gain))
    bound = model.importance_weighted(X, samples=1500, seed=1)
    elbo = exact - chain.gap(X)  # to which the draws' own log-ratios average
    error = (bound.log_ratios.mean(0) - elbo) / (bound.log_ratios.std(0) / math.sqrt(1500))
    assert (error.abs() < 4.5).all()


@pytest.mark.parametrize("inference", vae.INFERENCES)
def test_every_draw_of_the_exact_posterior_weighs_the_evidence(inference: str) -> None:
    """p(x, z) / q(z | x) = p(x), whatever z: of two latents in one dimension, whose posteriors are Gaussian."""
    a, s1, onto, s = 0.8, 0.4, torch.tensor([[1.0, 0.6, -0.3]]).double(), 0.5  # z_1 = a z_2 + ..., x = z_1 onto + ...
    power, above = onto.square().sum() / s**2, a**2 + s1**2  # precision that x gives z_1; variance of z_1
    of_x = onto.T / s**2
    if inference == "top-down":
        outer = 1 + a**2 / (s1**2 + 1 / power)  # precision of z_2 given x
        inner = 1 / s1**2 + power  # of z_1 given both
        top = lambda x: moments(a * (x @ of_x) / power / (s1**2 + 1 / power) / outer, outer**-0.5)  # noqa: E731
        below = lambda x, z: moments((a * z / s1**2 + x @ of_x) / inner, inner**-0.5)  # noqa: E731
    else:
        top = lambda z: moments(a * z / above, s1 / above**0.5)  # noqa: E731
        below = lambda x: moments(x @ of_x / (power + 1 / above), (power + 1 / above) ** -0.5)  # noqa: E731
    levels = [vae.Level((1,), None, top), vae.Level((1,), lambda z: moments(a * z, s1), below)]
    model = vae.HierarchicalVAE(levels, lambda z: z @ onto, s, inference)
    covariance = above * onto.T @ onto + s**2 * torch.eye(3).double()
    exact = torch.distributions.MultivariateNormal(torch.zeros(3).double(), covariance).log_prob(X)
    bound = model.importance_weighted(X, samples=5)
    torch.testing.assert_close(bound.log_ratios, exact.expand(5, -1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(bound.value, exact, rtol=1e-10, atol=1e-10)
    assert float(bound.stderr.max()) < 1e-10


def test_two_weighted_draws_have_the_bound_of_quadrature() -> None:
    """E log (w_1 + w_2) / 2 of one latent in one dimension, by Gauss-Hermite quadrature in both draws."""
    slope, shift, std, scale = 0.8, 0.4, 0.6, 0.5
    model = vae.GaussianVAE(lambda z: 1.3 * z, (1,), lambda x: moments(slope * x + shift, std), scale)
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    x = torch.tensor([[-1.0], [0.2], [2.0]], dtype=torch.float64)
    z = slope * x + shift + std * torch.from_numpy(nodes)  # [3, 100]
    unit = torch.distributions.Normal(0.0, 1.0)
    log_w = torch.distributions.Normal(1.3 * z, scale).log_prob(x) + unit.log_prob(z)
    log_w = log_w - unit.log_prob(torch.from_numpy(nodes)) + math.log(std)
    both = torch.logaddexp(log_w[:, :, None], log_w[:, None, :]) - math.log(2)
    weight = torch.from_numpy(weights / weights.sum())
    exact = torch.einsum("bij,i,j->b", both, weight, weight)
    repeats = x.repeat(4000, 1)
    found = model.importance_weighted(repeats, samples=2).value.view(4000, 3)
    assert ((found.mean(0) - exact).abs() <= 4 * found.std(0) / math.sqrt(4000)).all()
    single = model.importance_weighted(repeats, samples=1)
    assert torch.equal(single.value, single.log_ratios[0]) and single.stderr.isnan().all()


def test_draws_differ_by_step_sample_level_and_chain_and_never_meet() -> None:
    """Above 64 levels too: a latent of every (step, sample, level), of one example, has noise of its own."""
    seen: list[torch.Tensor] = []

    def posterior(x: torch.Tensor, z: torch.Tensor | None = None) -> torch.Tensor:
        if z is not None:
            seen.append(z.flatten())
        return torch.zeros(len(x), 4)

    def decoder(z: torch.Tensor) -> torch.Tensor:
        seen.append(z.flatten())
        return z

    count = 150
    levels = [vae.Level((2,), None if k == 0 else lambda z: torch.zeros(len(z), 4), posterior) for k in range(count)]
    model = vae.HierarchicalVAE(levels, decoder)
    for step in range(2):
        model.elbo(torch.zeros(2, 2), samples=3, step=step)
    draws = torch.cat(seen)
    assert len(draws) == 2 * 3 * count * 4 and len(draws.unique()) > 0.999 * len(draws)
    pairs = draws.view(-1, 2)
    assert len(torch.unique(pairs, dim=0)) == len(pairs)


def test_an_examples_noise_is_that_of_its_id() -> None:
    model = LinearChain((2, 2), "bottom-up").model()
    whole = model.elbo(X[:6], samples=2, seed=3, step=4, chains=[5, 6, 7, 8, 9, 2**40])
    part = model.elbo(X[4:6], samples=2, seed=3, step=4, chains=[9, 2**40])
    torch.testing.assert_close(whole.value[4:], part.value, rtol=1e-12, atol=0)
    other = model.elbo(X[4:6], samples=2, seed=3, step=5, chains=[9, 2**40])
    assert (other.value - part.value).abs().min() > 1e-3
