"""Posteriors whose moments are known: their densities, their truths, and samplers that come within 4 standard errors.

Seconds' worth of `python -m bench.ground_truths`, which runs every sampler on every posterior, for longer.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bench import ground_truths, posterior_numbers
from bench.posteriors import POSTERIORS, BrownianMotion, EightSchools, ItemResponse, Truth, stored
from torch.distributions import Bernoulli, Normal

from ulam import mcmc


def as_written(posterior, x):
    """log p of the parameters, as the model says it, and the log of the map's Jacobian."""
    of = posterior.parameters(x)
    if isinstance(posterior, EightSchools):
        mu, log_tau, theta = of[:, 0], of[:, 1], of[:, 2:]
        prior = Normal(0, 10).log_prob(mu) + Normal(5, 1).log_prob(log_tau)
        prior = prior + Normal(mu[:, None], log_tau.exp()[:, None]).log_prob(theta).sum(1)
        return prior + Normal(theta, posterior.s).log_prob(posterior.y).sum(1) + 8 * log_tau
    if isinstance(posterior, BrownianMotion):
        a, b, places = of[:, 0], of[:, 1], of[:, 2:]
        prior = sum(Normal(0.0, 2.0).log_prob(scale.log()) for scale in (a, b))
        before = torch.cat([torch.zeros(len(x), 1), places[:, :-1]], 1)
        prior = prior + Normal(before, a[:, None]).log_prob(places).sum(1)
        seen = Normal(places, b[:, None]).log_prob(posterior.y)[:, posterior.seen].sum(1)
        return prior + seen + 20 * x[:, 1]
    mean, ability, difficulty = of[:, 0], of[:, 1:401], of[:, 401:]
    prior = Normal(0.75, 1.0).log_prob(mean) + Normal(0.0, 1.0).log_prob(of[:, 1:]).sum(1)
    odds = mean[:, None, None] + ability[:, :, None] - difficulty[:, None, :]
    return prior + (Bernoulli(logits=odds).log_prob(posterior.right) * posterior.asked.view(400, 100)).sum((1, 2))


@pytest.mark.parametrize("kind", [EightSchools, BrownianMotion, ItemResponse])
def test_densities_are_those_of_the_models(kind):
    posterior = kind()
    x = 0.5 * torch.randn(4, posterior.dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    constant = as_written(posterior, x) - posterior.log_prob(x)
    torch.testing.assert_close(constant, constant[:1].expand(4), rtol=0, atol=1e-7)


def test_closed_forms_are_those_of_exact_draws():
    generator, count = torch.Generator().manual_seed(0), 20_000
    posterior = POSTERIORS["ill-conditioned gaussian"]()
    half = torch.linalg.cholesky(posterior.covariance)
    x = torch.randn(count, 100, dtype=torch.float64, generator=generator) @ half.T
    torch.testing.assert_close(-2 * posterior.log_prob(x).mean(), torch.tensor(100.0).double(), rtol=0, atol=0.4)
    variances = torch.linalg.eigvalsh(posterior.covariance)
    torch.testing.assert_close(variances[-1] / variances[0], torch.tensor(1e4).double(), rtol=1e-6, atol=0)
    z = torch.randn(count, 2, dtype=torch.float64, generator=generator)
    banana = torch.stack([10 * z[:, 0], 0.03 * (100 * z[:, 0].square() - 100) + z[:, 1]], 1)
    draws = {posterior.name: x, "banana": banana, "funnel": mcmc.Funnel(10).sample(count).double()}
    for name, exact in draws.items():
        found = ground_truths.moments(POSTERIORS[name](), exact.view(20, count // 20, -1))
        assert np.abs(found.errors(POSTERIORS[name]().truths["closed form"])).max() < 4


def test_integrals_are_as_exact_as_they_say_and_agree_with_what_is_published():
    coarse = posterior_numbers.eight_schools(401)
    walk = BrownianMotion()
    small = posterior_numbers.brownian_motion(walk.y.numpy(), walk.seen.numpy(), 81)
    for found, name in ((coarse, "eight_schools_exact"), (small, "brownian_motion_exact")):
        np.testing.assert_allclose(found.mean, stored(name).mean, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(found.sd, stored(name).sd, rtol=1e-6)
    assert np.abs(errors(stored("eight_schools"), coarse)).max() < 4
    assert np.abs(errors(stored("brownian_motion"), small)).max() > 10, "published, and wrong: see BrownianMotion"


def errors(truth: Truth, exact: Truth):
    """How far the means are from the exact ones, in their own standard errors."""
    return (truth.mean - exact.mean) / truth.mean_error


RUNS = {
    ("eight schools", "nuts"): {"chains": 32, "warmup": 60, "steps": 80},
    ("eight schools", "mams"): {"chains": 32, "warmup": 100, "steps": 150},
    ("eight schools", "hmc"): {"chains": 32, "warmup": 100, "steps": 200},
    ("banana", "hmc"): {"chains": 32, "warmup": 100, "steps": 150},
    ("brownian motion", "nuts"): {"chains": 16, "warmup": 150, "steps": 100},
    ("logistic regression", "hmc"): {"chains": 16, "warmup": 300, "steps": 300},
}


@pytest.mark.long
@pytest.mark.parametrize(("name", "sampler"), RUNS, ids=[" by ".join(run) for run in RUNS])
@pytest.mark.filterwarnings("ignore:[0-9]+ divergent proposals")
def test_means_and_standard_deviations_are_within_four_standard_errors(name, sampler):
    posterior = POSTERIORS[name]()
    found = ground_truths.moments(posterior, ground_truths.sample(sampler, posterior, **RUNS[name, sampler]).draws)
    assert found.ess.min() > 50
    for truth in posterior.truths.values():
        assert np.abs(found.errors(truth)).max() < 4
