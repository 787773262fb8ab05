"""Default calls, a sampler without a step, on densities of known moments: within 4 standard errors over chains."""

from __future__ import annotations

import math

import pytest
import torch

from ulam import mcmc
from ulam.mcmc import HMC, MAMS, NUTS


def banana(x):
    """x_0 ~ N(0, 100), x_1 | x_0 ~ N(0.03 (x_0^2 - 100), 1) [Haario, Saksman & Tamminen 1999]: var x_1 = 1 + 18."""
    return x[:, 0].square() / 200 + (x[:, 1] - 0.03 * (x[:, 0].square() - 100)).square() / 2


def check_moments(chains, mean, variance):
    """Assert that means and mean squares over chains are those of the density; more errors where there are many."""
    count, kept, most = len(chains.ids), chains.kept, 4 if mean.numel() < 10 else 5
    for of_chains, exact in zip((chains.sums / kept).unbind(1), (mean, variance + mean**2), strict=True):
        error = of_chains.std(0) / count**0.5
        assert float(((of_chains.mean(0) - exact) / error).abs().max()) < most


@pytest.mark.parametrize("sampler", [HMC(), pytest.param(MAMS(), marks=pytest.mark.long)], ids=repr)
def test_a_gaussian_of_condition_ten_thousand(sampler):
    variance = torch.logspace(-2, 2, 100).double()
    target = mcmc.Gaussian(torch.zeros(100), torch.diag(variance))
    chains = mcmc.run(target, sampler, chains=64, warmup=500, steps=100, seed=1, progress=False)
    check_moments(chains, torch.zeros(100), variance)
    ratio = torch.as_tensor(chains.tuning.preconditioner) / variance
    assert float(ratio.min()) > 0.8 and float(ratio.max()) < 1.25
    assert 1 <= chains.tuning.sampler.leapfrog <= 8  # whitened: without masses it would take hundreds


@pytest.mark.filterwarnings("ignore:[0-9] divergent proposals")
@pytest.mark.parametrize(
    "sampler", [*(pytest.param(one, marks=pytest.mark.long) for one in (HMC(), MAMS())), NUTS()], ids=repr
)
def test_a_banana(sampler):
    chains = mcmc.run(
        mcmc.Energy(banana), sampler, chains=64, shape=(2,), warmup=300, steps=100, seed=1, progress=False
    )
    check_moments(chains, torch.zeros(2), torch.tensor([100.0, 19.0]))
    assert int(chains.divergences.sum()) <= 6  # 0.1%


def half_normal(x):
    """x_0 ~ |N(0, 1)|, by a wall, and three elements N(0, 1)."""
    return torch.where(x[:, 0] < 0, math.inf, 0.5 * x.square().sum(1))


def box(x):
    """Uniform on [-1, 1]^4."""
    return torch.where((x.abs() > 1).any(1), math.inf, 0.0 * x.sum(1))


@pytest.mark.parametrize("sampler", [HMC(), MAMS()], ids=repr)
@pytest.mark.filterwarnings("ignore:[0-9]+ divergent proposals")
@pytest.mark.parametrize("energy", [half_normal, box])
def test_hard_walls_shorten_paths_and_are_named(energy, sampler):
    """Acceptances that count the paths that end beyond would take the step down to 1e-4, in 1,000 leaps."""
    x = 0.05 + 0.9 * torch.rand(64, 4, generator=torch.Generator().manual_seed(0))
    with pytest.warns(RuntimeWarning, match=r"density is 0 where [0-9]+% of the paths end.*expected one without hard"):
        chains = mcmc.run(
            mcmc.Energy(energy), sampler, chains=64, x_init=x, warmup=200, steps=150, seed=1, progress=False
        )
    first = (math.sqrt(2 / math.pi), 1 - 2 / math.pi) if energy is half_normal else (0.0, 1 / 3)
    others = (0.0, 1.0) if energy is half_normal else (0.0, 1 / 3)
    moments = torch.tensor([first, others, others, others])
    check_moments(chains, *moments.unbind(1))
    assert chains.tuning.sampler.leapfrog <= 8 and float(chains.acceptance.mean()) > 0.3


@pytest.mark.filterwarnings("ignore:target. got one whose density is 0")
def test_gradients_at_walls_are_the_calls_and_their_advice_is_no_smaller_step_alone():
    calls = []
    with pytest.warns(RuntimeWarning, match=r"divergent proposals in .* or at hard walls, .*, ulam.mcmc.Model with"):
        chains = mcmc.run(
            mcmc.Energy(lambda x: calls.append(len(x)) or box(x)),
            HMC(),
            chains=8,
            x_init=torch.linspace(-0.5, 0.5, 32).view(8, 4),
            warmup=40,
            steps=4,
            seed=1,
            progress=False,
        )
    assert chains.tuning.gradients == sum(calls) - 8 - 8 * 4 * chains.tuning.sampler.leapfrog
