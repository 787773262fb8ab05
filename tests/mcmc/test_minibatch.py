"""Scores on minibatches: the exact laws of SGLD on a Gaussian's mean, bits, refusals; data terms of denoisers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal

import ulam
from chain_laws import within
from chain_runs import run, same
from ulam import mcmc
from ulam.mcmc import BAOAB, HMC, MCLMC, SGLD, ULA, Minibatch, Model, Positive, Real

Y = torch.randn(50, generator=torch.Generator().manual_seed(3)) * 1.5 + 2
STD, BATCH = 1.5, 5
PRECISION = 1 + len(Y) / STD**2  # of the posterior under mu ~ N(0, 1)
CENTRE = float(Y.double().sum()) / STD**2 / PRECISION
# Of N / n times the sum over a batch of the scores (y_i - mu) / std^2, drawn with replacement.
NOISE = len(Y) ** 2 * float(Y.double().var(correction=0)) / STD**4 / BATCH


def prior(mu):
    return -(mu**2) / 2


def likelihood(mu, y):
    return Normal(mu, STD).log_prob(y)


def mean_of_gaussian(**options):
    return Minibatch(prior, likelihood, {"y": Y}, {"mu": Real()}, batch=BATCH, **options)


def recursion(steps, sizes, mean=0.0, variance=0.0):
    """Means and variances of mu under x' = x + h (a (m - x) + g) + sqrt(2 h) z, g of variance NOISE, from x."""
    found = []
    for h in sizes(np.arange(steps)):
        mean = mean + h * PRECISION * (CENTRE - mean)
        variance = (1 - h * PRECISION) ** 2 * variance + h**2 * NOISE + 2 * h
        found.append((mean, variance))
    return np.array(found)


@pytest.mark.parametrize("decay", [0.0, 0.55])
def test_the_law_of_a_gaussians_mean_is_that_of_the_recursion(decay):
    """At every step, for steps that stay and steps that fall, minibatch noise and the bias of the step included."""
    step, delay = 0.02, 10.0
    chains = run(mean_of_gaussian(), SGLD(step, decay=decay, delay=delay), chains=4000, warmup=0, steps=30, thin=1,
                 x_init=torch.zeros(4000, 1), seed=11)  # fmt: skip
    x = chains.parameters["mu"].double()
    expected = recursion(30, lambda i: step * (1 + i / delay) ** -decay)
    for k in (0, 1, 5, 29):
        mean, variance = expected[k]
        assert within(x[:, k], mean), k
        assert within((x[:, k] - mean) ** 2, variance), k
    assert NOISE * step**2 > 0.2 * 2 * step  # beside the noise of Langevin dynamics


def test_weights_are_the_steps_that_leave_the_draws_and_averages_come_to_the_posterior():
    step, decay, delay = 0.015, 0.6, 20.0
    sampler = SGLD(step, decay=decay, delay=delay)
    chains = run(mean_of_gaussian(), sampler, chains=400, warmup=7, steps=300, thin=3, seed=2)
    at = 7 + 3 * np.arange(1, 101)  # the number of the step that leaves each draw
    sizes = step * (1 + at / delay) ** -decay
    np.testing.assert_allclose(chains.weights(), sizes / sizes.sum(), rtol=1e-12)
    draws = chains.draws[..., 0].double().numpy()
    by_hand = (draws * sizes).sum(1) / sizes.sum()
    np.testing.assert_allclose(chains.weighted_mean(), [by_hand.mean()], rtol=1e-6)
    np.testing.assert_allclose(chains.weighted_mean(chains.parameters["mu"]), by_hand.mean(), rtol=1e-6)
    assert within(by_hand, CENTRE)  # the posterior's mean, exact for linear scores
    rest = run(mean_of_gaussian(), sampler, chains=None, seed=None, warmup=0, steps=10, thin=2, resume=chains)
    at = 307 + 2 * np.arange(1, 6)
    np.testing.assert_allclose(rest.weights(), (1 + at / delay) ** -decay / ((1 + at / delay) ** -decay).sum())


def test_steps_that_do_not_fall_weigh_alike():
    chains = run(mcmc.Gaussian([0.0, 1.0]), HMC(0.5, 3))
    torch.testing.assert_close(chains.weighted_mean(), chains.mean())
    with pytest.raises(ValueError, match=r"of: got a tensor of torch.float32 \[6, 2\], expected a tensor \[6, 4\] and"):
        chains.weighted_mean(chains.x)
    with pytest.raises(ValueError, match="draws: got moments alone"):
        run(mcmc.Gaussian([0.0]), SGLD(0.1), store=False).weighted_mean()


def test_a_batch_of_everything_in_expectation_is_the_score_of_a_model():
    """Over 20000 chains at one place the mean of the drawn score is that of the full posterior, Jacobian included."""

    def scale_prior(tau):
        return -tau

    def scale_likelihood(tau, y, weight):
        return weight * Normal(2.0, tau).log_prob(y)

    weight = torch.linspace(0.5, 2, len(Y))
    target = Minibatch(
        scale_prior, scale_likelihood, {"y": Y, "weight": weight}, {"tau": Positive()}, batch=4, dtype=torch.float64
    )
    full = Model(lambda tau: scale_prior(tau) + scale_likelihood(tau, Y, weight).sum(), {"tau": Positive()})
    start, step = torch.full((20_000, 1), 0.3), 1e-4
    moved = run(target, SGLD(step, temperature=0, decay=0), x_init=start, chains=20_000, warmup=0, steps=1, thin=1)
    scores = (moved.x.double() - start.double())[:, 0] / step
    assert scores.std() > 1
    assert within(scores, float(full.score(start[:1].double())))


@pytest.mark.parametrize(
    "sampler", [SGLD(0.01), ULA(0.01), BAOAB(0.1, 1.0), MCLMC(0.1)], ids=["SGLD", "ULA", "BAOAB", "MCLMC"]
)
def test_chains_keep_their_bits_in_any_company_and_go_on_as_in_one_run(sampler):
    def scaled(mu, tau, y):
        return Normal(mu, 1 + tau).log_prob(y)

    parameters = {"mu": Real(), "tau": Positive()}
    target = Minibatch(lambda mu, tau: -(mu**2) / 2 - tau, scaled, {"y": Y}, parameters, batch=7)
    together = run(target, sampler)
    assert same(run(target, sampler, chains=[4]), together, slice(4, 5))
    assert same(run(target, sampler, slots=4), together)
    first = run(target, sampler, steps=5, thin=1)
    rest = run(target, sampler, steps=7, thin=1, resume=first, warmup=0, chains=None, seed=None)
    whole = run(target, sampler, steps=12, thin=1)
    assert torch.equal(torch.cat([first.draws, rest.draws], 1), whole.draws)
    assert not torch.equal(run(target, sampler, seed=8).draws, together.draws)


def test_observations_are_drawn_alike_and_anew_for_every_chain_and_step():
    seen = []

    def counted(mu, y):
        return mu * y

    class Spy(Minibatch):
        def bind(self, x, rows, chains, backend):
            drawn = super().bind(x, rows, chains, backend)
            choose = drawn._observations

            def noted():
                seen.append(choose())
                return seen[-1]

            drawn._observations = noted
            return drawn

    target = Spy(prior, counted, {"y": torch.arange(10.0)}, {"mu": Real()}, batch=20)
    run(target, SGLD(1e-3), chains=300, warmup=0, steps=5, thin=1)
    chosen = torch.stack(seen)
    assert chosen.shape == (6, 300, 20)
    counts = torch.bincount(chosen.flatten(), minlength=10).double()
    expected = chosen.numel() / 10
    assert float(((counts - expected) ** 2 / expected).sum()) < 27.9  # chi-squared of 9 degrees, 0.1%
    rows = {tuple(row) for row in chosen.flatten(0, 1).tolist()}
    assert len(rows) == 6 * 300


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": {}}, "data: got dict, expected a dict of tensors by name"),
        ({"data": Y}, "data: got a tensor of torch.float32 .*, expected a dict of tensors"),
        ({"data": {"mu": Y}}, "data: got the name 'mu', expected one that no parameter has"),
        ({"data": {"y": [1.0]}}, r"data\['y'\]: got \[1.0\], expected a tensor \[N, ...\]"),
        ({"data": {"y": torch.tensor(1.0)}}, r"data\['y'\]: got shape \[\], expected from 1 to 2\^24 observations"),
        (
            {"data": {"y": Y, "z": Y[1:]}},
            r"data\['z'\]: got shape \[49\], expected 50 observations along its first axis",
        ),
        ({"batch": 0}, "batch: got 0, expected at least 1"),
        ({"batch": 2.5}, "batch: got 2.5, expected an integer"),
        ({"log_prior": None}, "log_prior: got None, expected a function of the parameters"),
        ({"log_likelihood": lambda y: y}, "log_likelihood: got .* unexpected keyword argument 'mu'; expected"),
        ({"log_prior": lambda: 0}, "log_prior: got .* unexpected keyword argument 'mu'; expected log_prior"),
        ({"log_likelihood": lambda mu, y: mu}, r"log_likelihood: got log likelihoods of shape \[\], expected \[5\]"),
        ({"log_prior": lambda mu: mu[None]}, r"log_prior: got log densities of shape \[1\], expected \[\], one number"),
        ({"dtype": torch.int64}, "dtype: got torch.int64, expected torch.float32"),
    ],
)
def test_what_does_not_fit_is_refused(given, message):
    valid = {"log_prior": prior, "log_likelihood": likelihood, "data": {"y": Y}, "parameters": {"mu": Real()}}
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        run(Minibatch(**(valid | {"batch": BATCH} | given)), SGLD(0.01))
    assert "\n" not in str(caught.value)


def test_a_metropolis_test_is_refused():
    with pytest.raises(
        TypeError, match=r"target: got Minibatch\(prior, likelihood, 5 of 50 observations\), a score alone"
    ):
        run(mean_of_gaussian(), HMC(0.1))


# ------------------------------------------------------------------------------------------------ data terms


def gaussian_denoiser():
    """Of x_0 ~ N(1, 4): D(y, sigma) = (4 y + sigma^2) / (4 + sigma^2)."""
    return ulam.Denoiser(lambda x, t: x * 4 / (4 + t.view(-1, 1) ** 2) + t.view(-1, 1) ** 2 / (4 + t.view(-1, 1) ** 2),
                         ulam.schedules.ve(0.01, 10.0), predicts="x0")  # fmt: skip


@pytest.mark.parametrize(
    "data_term",
    [lambda y: -((3 - y) ** 2).sum(1) / (2 * 0.5), lambda y: (3 - y) / 0.5],
    ids=["a log-likelihood", "its gradient"],
)
def test_a_data_term_makes_the_posterior(data_term):
    """p_sigma = N(1, 4 + sigma^2) times N(3; y, 1 / 2): precisions add; ULA's variance is 1 / (a (1 - h a / 2))."""
    sigma, h = 1.0, 0.2
    target = mcmc.DenoiserScore(gaussian_denoiser(), sigma, data_term=data_term)
    chains = run(target, ULA(h), shape=(1,), chains=4000, warmup=30, steps=1, thin=1)
    a = 1 / (4 + sigma**2) + 2
    mean = (1 / (4 + sigma**2) + 2 * 3) / a
    x = chains.x[:, 0].double()
    assert within(x, mean) and within((x - mean) ** 2, 1 / (a * (1 - h * a / 2)))
    assert abs(mean - 1) > 10 * math.sqrt(1 / a / 4000)  # without it the mean would be 1


@pytest.mark.parametrize(
    ("data_term", "message"),
    [
        (3.0, "data_term: got 3.0, expected a function of x"),
        (lambda y: y.sum(), r"data_term: got gradients of shape \[\], expected \[6, 1\] like y, or \[6\]"),
        (lambda y: None, r"data_term: got NoneType, expected gradients \[6, 1\] like y, or \[6\]"),
        (lambda y: y.detach().sum(1), "data_term: got a log-likelihood without a gradient in y"),
        (lambda y: torch.ones(6, requires_grad=True) * 2, "data_term: got a log-likelihood without a gradient in y"),
        (lambda y: y.sum(1).long(), "data_term: got log-likelihoods of torch.int64, expected floats"),
    ],
)
def test_data_terms_that_are_none_are_refused(data_term, message):
    with pytest.raises((TypeError, ValueError), match=message):
        run(mcmc.DenoiserScore(gaussian_denoiser(), 1.0, data_term=data_term), ULA(0.1), shape=(1,))
