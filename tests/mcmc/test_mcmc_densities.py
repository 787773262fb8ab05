"""The built-in densities: normalised, with scores that are their gradients, and exact draws."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

from ulam import mcmc

DENSITIES = {
    "gaussian": mcmc.Gaussian([0.3, -0.2], [[1.0, 0.4], [0.4, 0.5]]),
    "diagonal gaussian": mcmc.Gaussian([0.3, -0.2], [1.0, 0.5]),
    "mixture": mcmc.GaussianMixture([[-1.0, 0.0], [1.0, 1.0]], [0.5, 0.8], [1.0, 3.0]),
    "double well": mcmc.DoubleWell(2, height=1.3, separation=1.5),
    "rosenbrock": mcmc.Rosenbrock(2, a=1.0, b=0.5),
    "funnel": mcmc.Funnel(2, std=1.0),
    "ring": mcmc.Ring(2, radius=2.0, std=0.4),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_integrate_to_one(name):
    """On a grid wide enough for all of the mass."""
    density = DENSITIES[name]
    reach = {"rosenbrock": (-5, 30), "funnel": (-60, 60)}.get(name, (-9, 9))
    first = torch.linspace(-9, 9, 601, dtype=torch.float64)
    second = torch.linspace(*reach, 2001, dtype=torch.float64)
    at = torch.stack(torch.meshgrid(first, second, indexing="ij"), 2)
    p = density.log_prob(at.view(-1, 2)).exp().view(len(first), len(second))
    total = scipy.integrate.trapezoid(scipy.integrate.trapezoid(p, second, axis=1), first)
    assert abs(total - 1) < (2e-2 if name == "funnel" else 1e-5)  # the funnel's neck is narrower than the grid


@pytest.mark.parametrize("name", DENSITIES)
def test_scores_are_gradients_of_log_densities(name):
    density = DENSITIES[name]
    x = density.sample(50, seed=4).requires_grad_()
    (gradient,) = torch.autograd.grad(density.log_prob(x).sum(), x)
    torch.testing.assert_close(density.score(x.detach()), gradient)


@pytest.mark.parametrize("name", DENSITIES)
def test_kernels_have_the_same_energy_up_to_a_constant_and_the_same_score(name):
    density = DENSITIES[name]
    x = density.sample(50, seed=4)
    energy, score = density.bind(x.float(), torch.arange(50), 50, None)(x.float(), True)
    at = x.float().double()
    torch.testing.assert_close(score.double(), density.score(at), rtol=1e-4, atol=1e-4)
    shift = energy + density.log_prob(at)
    torch.testing.assert_close(shift, shift[:1].expand(50), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", DENSITIES)
def test_exact_draws_have_the_density(name):
    """By Rosenblatt's transform on the grid's marginals: the first coordinate's distribution function is uniform."""
    density = DENSITIES[name]
    draws = density.sample(20_000, seed=2)
    assert torch.equal(draws, density.sample(20_000, seed=2))
    assert torch.equal(draws[:100], density.sample(100, seed=2))
    first = torch.linspace(-9, 9, 601, dtype=torch.float64)
    second = torch.linspace(
        *{"rosenbrock": (-5, 30), "funnel": (-60, 60)}.get(name, (-9, 9)), 2001, dtype=torch.float64
    )
    at = torch.stack(torch.meshgrid(first, second, indexing="ij"), 2)
    p = density.log_prob(at.view(-1, 2)).exp().view(len(first), len(second))
    marginal = torch.trapezoid(p, second, dim=1)
    cumulative = torch.cat([torch.zeros(1), torch.cumulative_trapezoid(marginal, first)])
    share = np.interp(draws[:, 0].numpy(), first.numpy(), (cumulative / cumulative[-1]).numpy())
    if name == "funnel":
        assert scipy.stats.kstest(draws[:, 0].numpy(), "norm").pvalue > 1e-3
        assert scipy.stats.kstest((draws[:, 1] * (-draws[:, 0] / 2).exp()).numpy(), "norm").pvalue > 1e-3
    else:
        assert scipy.stats.kstest(share, "uniform").pvalue > 1e-3
        cells = [torch.trapezoid(p[:, low:high], second[low:high], dim=1) for low, high in ((0, 1001), (1000, 2001))]
        below = float(torch.trapezoid(cells[0], first))
        count = int((draws[:, 1] < second[1000]).sum())
        assert scipy.stats.binomtest(count, 20_000, min(below, 1.0)).pvalue > 1e-3


def test_ring_draws_have_the_radial_law():
    ring = mcmc.Ring(5, radius=1.0, std=0.5)
    r = ring.sample(20_000).norm(dim=1).numpy()

    def cdf(at):
        grid = np.linspace(0, 6, 60_001)
        weight = np.exp(-((grid - 1) ** 2) / 0.5) * grid**4
        total = scipy.integrate.cumulative_trapezoid(weight, grid, initial=0)
        return np.interp(at, grid, total / total[-1])

    assert scipy.stats.kstest(r, cdf).pvalue > 1e-3


def test_gaussians_above_the_kernels_dimensions_run_step_by_step():
    """130 dimensions: torch's formulas, and the law of a product of coordinates."""
    variances = torch.linspace(0.5, 2.0, 130)
    target = mcmc.Gaussian(torch.zeros(130), variances)
    assert target.kernel is None
    start = target.sample(4000, seed=3)
    run = mcmc.run(
        target, mcmc.MALA(0.14), chains=4000, steps=20, x_init=start.float(), seed=0, progress=False, store=False
    )
    assert not run.report["launch"] and 0.3 < run.acceptance.mean() < 0.9
    scaled = (run.x.double().square() / variances).sum(1)
    assert scipy.stats.kstest(scaled.numpy(), scipy.stats.chi2(130).cdf).pvalue > 1e-3
    dense = mcmc.Gaussian(torch.zeros(130), torch.diag(variances))
    at = start[:5].float()
    for a, b in zip(*(t.bind(at, torch.arange(5), 5, None)(at, True) for t in (target, dense)), strict=True):
        torch.testing.assert_close(a, b)
