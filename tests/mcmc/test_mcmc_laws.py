"""The law of the chains: exact stationary laws of each discretisation, detailed balance, scaling, hard densities."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

import chain_laws as cases
from chain_laws import COVARIANCE, MEAN, check_law, gaussian, within
from ulam import Denoiser, mcmc, schedules
from ulam.mcmc import BAOAB, HMC, MALA, SGLD, ULA

CHAINS = 100_000
DIVERGENT = pytest.mark.filterwarnings("ignore:.*divergent proposals")


def last(target, sampler, steps, **options):
    options = {"chains": CHAINS, "warmup": steps - 1, "steps": 1, "seed": 3, "progress": False, **options}
    return mcmc.run(target, sampler, **options)


def test_ula_has_its_biased_law_and_not_the_true_one():
    """x' - m = (I - h A)(x - m) + sqrt(2 h) z is stationary with the covariance (A (I - h A / 2))^-1."""
    h, precision = 0.3, np.linalg.inv(COVARIANCE)
    exact = np.linalg.inv(precision @ (np.eye(2) - h / 2 * precision))
    x = last(gaussian(), ULA(h), 60).x
    check_law(x, MEAN, exact)
    error = (np.cov(x.double().numpy().T) - COVARIANCE) / cases.covariance_error(COVARIANCE, CHAINS)
    assert np.abs(error).max() > 10


def test_ula_has_its_law_on_the_way_there():
    h, steps, step = 0.2, 5, np.eye(2) - 0.2 * np.linalg.inv(COVARIANCE)
    mean, covariance = -MEAN, np.eye(2)  # of x - m, from x ~ N(0, I)
    for _ in range(steps):
        mean, covariance = step @ mean, step @ covariance @ step.T + 2 * h * np.eye(2)
    check_law(last(gaussian(), ULA(h), steps).x, MEAN + mean, covariance)


def test_baoab_has_exact_positions_and_known_velocities():
    """Var v = 1 - h^2 omega^2 / 4 after full steps, positions exact, no correlation [Leimkuhler & Matthews 2013]."""
    h, variances = 0.8, torch.tensor([1.0, 0.25, 4.0], dtype=torch.float64)
    run = last(mcmc.Gaussian(torch.zeros(3), variances), BAOAB(h, friction=1.5), 120)
    both = torch.cat([run.x, run.v], 1)
    exact = np.diag(torch.cat([variances, 1 - h**2 / (4 * variances)]).numpy())
    check_law(both, np.zeros(6), exact)


@pytest.mark.parametrize("sampler", [MALA(0.6), HMC(0.5, leapfrog=4)], ids=["mala", "hmc"])
def test_metropolis_has_no_bias_from_far_away(sampler):
    x = last(gaussian(), sampler, 80).x
    check_law(x, MEAN, COVARIANCE)


@pytest.mark.parametrize(
    ("sampler", "variance"),
    [
        (ULA(0.1, preconditioner=torch.tensor([0.5, 4.0])), [1 / (1 - 0.025), 4 / (1 - 0.05)]),
        (MALA(0.5, preconditioner=torch.tensor([1.0, 4.0])), [1.0, 4.0]),
        (HMC(0.7, 3, preconditioner=torch.tensor([1.0, 4.0])), [1.0, 4.0]),
        (BAOAB(0.7, 2.0, preconditioner=torch.tensor([1.0, 4.0])), [1.0, 4.0]),
        (MALA(0.5, temperature=2.0), [2.0, 8.0]),
        (HMC(0.7, 3, temperature=2.0), [2.0, 8.0]),
        (BAOAB(0.7, 2.0, temperature=2.0), [2.0, 8.0]),
        (ULA(0.2, temperature=2.0), [2 / (1 - 0.1), 8 / (1 - 0.025)]),
        (ULA(0.2, noise_scale=0.5), [0.25 / 0.36, 0.25 / (1 - 0.95**2)]),
    ],
    ids=repr,
)
def test_preconditioners_temperatures_and_noise_scales_have_their_laws(sampler, variance):
    """Of variances 1 and 4: ULA 1 / (a (1 - h P a / 2)) at T = 1; noise c: c^2 / (1 - (1 - h a)^2)."""
    target = mcmc.Gaussian(torch.zeros(2), torch.tensor([1.0, 4.0]))
    x = last(target, sampler, 160, chains=40_000).x
    check_law(x, np.zeros(2), np.diag(variance))


def test_numbers_of_a_chain_are_its_own():
    """Chains with steps and temperatures of their own in one batch: each has the variance T / (1 - h / 2)."""
    steps, temperatures = torch.tensor([0.1, 0.4]).repeat(20_000), torch.tensor([1.0, 1.0, 3.0, 3.0]).repeat(10_000)
    x = last(mcmc.Gaussian([0.0]), ULA(steps, temperatures), 80, chains=40_000).x[:, 0].double()
    for k, (h, temperature) in enumerate([(0.1, 1), (0.4, 1), (0.1, 3), (0.4, 3)]):
        exact = temperature / (1 - h / 2)
        assert abs(x[k::4].var() - exact) < 4 * exact * (2 / 10_000) ** 0.5


@DIVERGENT
@pytest.mark.parametrize("sampler", [MALA(0.15), HMC(0.25, leapfrog=3)], ids=["mala", "hmc"])
def test_the_metropolis_step_is_in_detailed_balance(sampler):
    """At stationarity (x, x') and (x', x) have one law: antisymmetric functions have mean 0, and x' the law of x."""
    target = mcmc.DoubleWell(1, height=1.5, separation=1.0)
    start = target.sample(CHAINS, seed=8)
    run = mcmc.run(target, sampler, chains=CHAINS, steps=1, x_init=start.float(), seed=0, progress=False)
    before, after = start[:, 0], run.x[:, 0].double()
    assert 0.3 < run.acceptance.mean() < 0.95  # something is refused, and much is not
    for f, g in [(lambda x: x, lambda x: x**3), (torch.sin, torch.square), (lambda x: (x > 0.5).double(), torch.abs)]:
        assert within(f(before) * g(after) - f(after) * g(before), 0.0)
        assert within(f(after) - f(before), 0.0)


def test_mala_accepts_as_the_densities_say():
    """The rate is the mean of min(1, p(x') q(x | x') / (p(x) q(x' | x))), from the proposals of ULA, in float64."""
    target, h = mcmc.DoubleWell(2), 0.2
    start = target.sample(4000, seed=1)
    options = {"chains": 4000, "steps": 1, "x_init": start.float(), "seed": 5, "progress": False}
    proposal = mcmc.run(target, ULA(h), **options).x.double()
    run = mcmc.run(target, MALA(h), **options)
    moved = (run.x.double() != start.float().double()).any(1)

    def log_q(to, x):
        return -(to - x - h * target.score(x)).square().sum(1) / (4 * h)

    start = start.float().double()
    ratio = target.log_prob(proposal) - target.log_prob(start) + log_q(start, proposal) - log_q(proposal, start)
    assert torch.equal(run.x[moved].double(), proposal[moved])
    probability = ratio.clamp(max=0).exp()
    assert within(moved.double() - probability, 0.0)
    assert moved[ratio > 1e-4].all()


@pytest.mark.parametrize("dimension", [8, 32, 64])
def test_mala_accepts_at_the_known_rate_as_the_dimension_grows(dimension):
    """2 Phi(-l^3 / 8) with h = l^2 d^(-1/3) / 2 on N(0, I) [Roberts & Rosenthal 1998, theorem 1: K = 1/4]."""
    target, scale = mcmc.Gaussian(torch.zeros(dimension)), 1.65
    h = scale**2 * dimension ** (-1 / 3) / 2
    run = mcmc.run(
        target, MALA(h), chains=4000, steps=40, x_init=target.sample(4000).float(), seed=0, progress=False, store=False
    )
    expected = 2 * scipy.stats.norm.cdf(-(scale**3) / 8)
    assert abs(float(run.acceptance.mean()) - expected) < 0.6 / dimension**0.5 * expected + 0.005


@pytest.mark.parametrize("dimension", [16, 64])
def test_hmc_accepts_at_the_known_rate(dimension):
    """2 Phi(-sqrt(mu / 2)), mu = d tr(M' M - I) / 2 the mean energy error of the leapfrog map M [Beskos 2013]."""
    h, leaps = 1.2 * dimension**-0.25, 5
    kick, drift = np.array([[1, 0], [-h / 2, 1]]), np.array([[1, h], [0, 1]])
    flow = np.linalg.matrix_power(kick @ drift @ kick, leaps)
    mu = dimension * (np.trace(flow.T @ flow) - 2) / 2
    target = mcmc.Gaussian(torch.zeros(dimension))
    options = {"chains": 4000, "x_init": target.sample(4000).float(), "seed": 0, "progress": False, "store": False}
    run = mcmc.run(target, HMC(h, leaps, jitter=0), steps=40, **options)
    assert abs(float(run.acceptance.mean()) - 2 * scipy.stats.norm.cdf(-np.sqrt(mu / 2))) < 0.01


@pytest.mark.parametrize("sampler", [MALA(0.25), HMC(0.4, 4)], ids=["mala", "hmc"])
def test_kolmogorov_smirnov_on_a_mixture(sampler):
    means, std, weights = [-1.5, 0.5, 2.0], [0.6, 0.5, 0.8], [0.2, 0.5, 0.3]
    target = mcmc.GaussianMixture([[m] for m in means], std, weights)
    x = last(target, sampler, 300, chains=20_000).x[:, 0].double().numpy()

    def cdf(at):
        parts = zip(weights, means, std, strict=True)
        return sum(w * scipy.stats.norm.cdf(at, m, s) for w, m, s in parts)

    assert scipy.stats.kstest(x, cdf).pvalue > 1e-3


def test_chi_square_of_separate_modes_by_tempering():
    """Modes that MALA alone does not leave: the chains end in each in proportion to its weight."""
    weights = [0.1, 0.2, 0.3, 0.4]
    target = mcmc.GaussianMixture([[-6, -6], [6, -6], [-6, 6], [6, 6]], 0.7, weights)
    tempering = mcmc.ParallelTempering(MALA(0.3), [1, 2.5, 6, 15, 40], swap_every=2)
    start = torch.full((2000, 2), 6.0)
    options = {"chains": 2000, "warmup": 500, "steps": 1000, "thin": 1000, "progress": False}
    run = mcmc.run(target, tempering, x_init=start, seed=0, **options)
    at = (run.x[:, 0] > 0).long() + 2 * (run.x[:, 1] > 0).long()
    counts = torch.bincount(at, minlength=4).numpy()
    assert scipy.stats.chisquare(counts, np.array(weights) * 2000).pvalue > 1e-3
    assert (run.swaps.mean(0) > 0.15).all()
    alone = last(target, MALA(0.3), 1500, chains=200, x_init=start[:200])
    assert (alone.x > 0).all()


@DIVERGENT
def test_funnel_marginals_are_those_of_exact_draws():
    target = mcmc.Funnel(3, std=1.5)
    start = target.sample(4000, seed=11)
    run = last(target, HMC(0.25, leapfrog=12), 200, chains=4000, x_init=start.float())
    exact = target.sample(20_000, seed=12)
    moved = np.corrcoef(start[:, 0].numpy(), run.x[:, 0].double().numpy())[0, 1]
    assert abs(moved) < 0.3
    for i in range(3):
        assert scipy.stats.ks_2samp(run.x[:, i].double().numpy(), exact[:, i].numpy()).pvalue > 1e-3
    assert scipy.stats.kstest(run.x[:, 0].double().numpy() / 1.5, "norm").pvalue > 1e-3


def test_sgld_takes_the_steps_it_says():
    """On a flat energy the variance is the sum of 2 step_i; at T = 0 a constant score moves x by the sum of step_i."""
    steps = 0.1 * (1 + np.arange(50) / 5.0) ** -0.6
    options = {"chains": 50_000, "warmup": 20, "steps": 30, "thin": 30, "seed": 0, "progress": False}
    start = torch.zeros(50_000, 1)
    flat = mcmc.Score(torch.zeros_like)
    x = mcmc.run(flat, SGLD(0.1, decay=0.6, delay=5.0), x_init=start, **options).x
    check_law(x, np.zeros(1), np.array([[2 * steps.sum()]]))
    cold = mcmc.run(mcmc.Score(torch.ones_like), SGLD(0.1, 0.0, decay=0.6, delay=5.0), x_init=start, **options).x
    assert cold[0].item() == pytest.approx(steps.sum(), rel=1e-5)


@pytest.mark.parametrize("rate", [0.4, 0.574, 0.8])
def test_dual_averaging_reaches_the_acceptance(rate):
    target = mcmc.Gaussian(torch.zeros(16), torch.logspace(-1, 1, 16))
    run = mcmc.run(target, MALA(1.0), chains=200, warmup=500, steps=200, adapt=rate, progress=False)
    assert abs(run.acceptance.mean() - rate) < 0.03
    assert run.step.shape == (200,) and run.step.std() > 0  # each chain's own


@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "score"])
@pytest.mark.parametrize("kind", ["vp", "ve"])
def test_a_denoiser_is_the_score_of_the_noised_density(predicts, kind):
    """For data N(m, std^2): s(y) = (m - y) / (std^2 + sigma^2), at small sigma too, per chain."""
    from oracles import gaussian_output

    schedule = schedules.vp_linear(1000) if kind == "vp" else schedules.ve(0.01, 50.0)
    mean, std = 0.7, 0.4

    def net(x, t):
        alpha, sigma = schedule.levels(t.double().numpy())
        maps = [gaussian_output(predicts, float(a), float(s), mean, std) for a, s in zip(alpha, sigma, strict=True)]
        slope, offset = torch.tensor(maps).T
        return (slope[:, None] * x.double() + offset[:, None]).to(x.dtype)

    sigma = torch.tensor([0.02, 0.1, 1.0, 5.0])
    x = torch.linspace(-1, 2, 8).view(4, 2)
    target = mcmc.DenoiserScore(Denoiser(net, schedule, predicts), sigma)
    _, score = target.bind(x, torch.arange(4), 4, None)(x, False)
    exact = (mean - x) / (std**2 + sigma[:, None] ** 2)
    tolerance = 2e-3 if predicts in ("eps", "score") else 3e-2  # x0 and v know the score as a small difference
    torch.testing.assert_close(score, exact, rtol=tolerance, atol=tolerance)


def test_a_denoiser_is_sampled_at_its_noise_level():
    schedule = schedules.ve(0.01, 50.0)
    denoiser = Denoiser(lambda x, t: -x / (1 + t[:, None] ** 2), schedule, "score")  # of data N(0, 1)
    h, chains = 0.5, 20_000
    sigma = torch.tensor([0.5, 2.0]).repeat(chains // 2)
    run = last(mcmc.DenoiserScore(denoiser, sigma), ULA(h), 60, chains=chains, shape=(1,))
    for k, level in enumerate((0.5, 2.0)):
        a = 1 / (1 + level**2)
        exact = 1 / (a * (1 - h * a / 2)) * (1 - (1 - h * a) ** 120) + (1 - h * a) ** 120
        assert abs(run.x[k::2].double().var() - exact) < 4 * exact * (2 / (chains / 2)) ** 0.5
    assert run.energies is None and run.acceptance is None
