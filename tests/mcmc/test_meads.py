"""MEADS: its eigenvalues and folds against plain NumPy, what it finds on Gaussians, and default calls of GHMC."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from chain_runs import same
from ulam import mcmc
from ulam.mcmc import GHMC, Warmup
from ulam.mcmc.warmup.meads import Meads, largest_eigenvalue
from ulam.mcmc.warmup.snapshots import Snapshots


def run(target, sampler=None, **options):
    defaults = {"chains": 64, "steps": 4, "warmup": 200, "seed": 3, "progress": False}
    return mcmc.run(target, sampler or GHMC(), **{**defaults, **options})


def normal(variances):
    variances = torch.as_tensor(variances, dtype=torch.float64)
    return mcmc.Gaussian(torch.zeros(len(variances)), torch.diag(variances))


def trace_ratio(x, chain=None):
    """The same by loops over pairs of rows of two chains."""
    n = len(x)
    chain = range(n) if chain is None else chain
    squared = np.mean([(x[i] @ x[j]) ** 2 for i in range(n) for j in range(n) if chain[i] != chain[j]])
    trace = np.mean([row @ row for row in x])
    return max(squared / trace, trace / x.shape[1])


@pytest.mark.parametrize("shape", [(2, 1), (9, 4), (5, 40)])
def test_eigenvalues_are_those_of_plain_loops(shape):
    x = np.random.default_rng(1).normal(size=shape) * np.linspace(1, 3, shape[1])
    rows, n = torch.from_numpy(x), shape[0]
    assert largest_eigenvalue(rows, torch.arange(n)) == pytest.approx(trace_ratio(x), rel=1e-12)
    assert largest_eigenvalue(rows, torch.zeros(n).long()) == pytest.approx(trace_ratio(x), rel=1e-12)
    halves = torch.arange(n) % 2
    assert largest_eigenvalue(rows, halves) == pytest.approx(trace_ratio(x, halves), rel=1e-12)
    lost = torch.from_numpy(np.vstack([x, np.full((1, shape[1]), np.nan)]))
    assert largest_eigenvalue(lost, torch.arange(n + 1)) == pytest.approx(trace_ratio(x), rel=1e-12)
    assert 0 < largest_eigenvalue(lost[n:], torch.zeros(1)) < 1e-100


def test_the_trace_ratio_is_right_whatever_the_number_of_states():
    """tr(S^2) / tr(S) of variances 9, 1 and many times 0.1: means over many estimates from 10 states each."""
    variances = np.array([9.0, 1.0, *[0.1] * 48])
    rows = np.random.default_rng(2).normal(size=(3000, 10, 50)) * np.sqrt(variances)
    found = np.array([largest_eigenvalue(torch.from_numpy(x), torch.arange(10)) * np.mean((x**2).sum(1)) for x in rows])
    exact = (variances**2).sum()
    assert abs(found.mean() - exact) < 4 * found.std() / math.sqrt(len(found))


def test_steps_come_from_the_fold_before_and_frictions_from_ones_own():
    rng = np.random.default_rng(3)
    x, score = rng.normal(size=(2, 160, 3)) * np.exp(rng.normal(size=(160, 1)))
    scale = np.array([0.5, 1.0, 4.0])
    state = SimpleNamespace(x=torch.from_numpy(x), score=torch.from_numpy(score), scale=torch.from_numpy(scale))
    meads = Meads(torch.arange(160), temperature=2.0, leaps=3, rate=0.9)
    meads.begin(state)
    for _ in range(400):
        meads.take(state, 0.95)
    for fold in range(4):
        before, own = score[(fold - 1) % 4 :: 4] * scale, x[fold::4] / scale
        step = 0.5 * math.sqrt(2 / trace_ratio(before))
        friction = max(math.sqrt(2 / trace_ratio(own - own.mean(0))), 1 / (401 * 3 * step))
        np.testing.assert_allclose(meads.step[fold::4], step, rtol=1e-12)
        np.testing.assert_allclose(meads.friction[fold::4], friction, rtol=1e-12)
    assert len(meads.step.unique()) == 4


def test_memory_is_refreshed_at_first():
    """Friction 1 / (t h leapfrog) at step t, and steps that shrink while the acceptance is below the rate."""
    x = torch.from_numpy(np.random.default_rng(4).normal(size=(40, 5))) * 1e3
    state, meads = SimpleNamespace(x=x, score=-x, scale=None), Meads(torch.arange(40), 1.0, 2, 0.9)
    meads.begin(state)
    first = meads.step
    meads.take(state, 0.95)
    np.testing.assert_allclose(meads.friction, 1 / (2 * meads.step * 2))
    np.testing.assert_allclose(meads.step, first)
    meads.take(state, 0.5)
    np.testing.assert_allclose(meads.step, first * math.exp(-0.5 * 2**-0.6 * 0.4))


def test_snapshots_are_evenly_spaced():
    snapshots = Snapshots(10)
    for step in range(100):
        at = torch.full((2, 1, 1), float(step))
        snapshots.add(at + torch.arange(2)[:, None, None] / 2, -at)
        assert len(snapshots) <= 20
    x, score, chain = snapshots.states()
    steps = x[::2, 0]
    assert len(steps.diff().unique()) == 1 and len(x) >= 10 and float(steps[-1]) > 80
    assert chain.tolist() == [0, 1] * len(steps)
    assert torch.equal(score[::2, 0], -steps) and torch.equal(snapshots.states(1, 2)[0][:, 0], steps + 0.5)
    many = Snapshots(10)
    many.add(torch.arange(25.0)[:, None], torch.zeros(25, 1))
    assert many.states()[0][:, 0].tolist() == [*range(0, 25, 3)]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("mass", ["diagonal", None])
def test_what_it_finds_on_a_gaussian(temperature, mass):
    """Of variance 9 T: the step is 0.5 / omega, the friction omega, with omega = 1 / 3, or sqrt(T) in units of x."""
    omega = temperature**0.5 if mass else 1 / 3
    chains = run(normal([9.0] * 5), GHMC(temperature=temperature), adapt=Warmup(mass=mass), warmup=400)
    assert chains.tuning.step == pytest.approx(0.5 / omega, rel=0.12)
    assert chains.tuning.sampler.friction == pytest.approx(omega, rel=0.12)


def test_frictions_that_are_given_stay():
    chains = run(normal([1.0, 4.0]), GHMC(friction=0.3))
    assert chains.tuning.sampler.friction == 0.3 and chains.tuning.step == pytest.approx(0.5, rel=0.15)
    assert GHMC().friction is None and GHMC(0.1).friction == 1.0
    alone = run(normal([1.0, 4.0]), adapt="chain")
    assert alone.tuning.sampler.friction == 1.0


def test_steps_shrink_where_the_acceptance_would_be_low():
    """100 dimensions, in which half of 1 / omega is accepted at a rate of about 0.88."""
    chains = run(normal([1.0] * 100), warmup=300, steps=100, adapt=Warmup(rate=0.97))
    assert 0.2 < chains.tuning.step < 0.45
    assert abs(float(chains.acceptance.mean()) - 0.97) < 0.015


@pytest.mark.parametrize("off", [0.0, 1e-4])
def test_chains_that_start_at_the_mode_leave_it(off):
    """Scores near 0 would ask for steps of 5e3 and more, at which all is refused, and shrink those that follow."""
    x = off * torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    chains = run(normal([1.0, 4.0]), x_init=x, chains=32, adapt=Warmup(mass=None))
    assert chains.tuning.step == pytest.approx(0.5, rel=0.2) and float(chains.acceptance.mean()) > 0.9


@pytest.mark.parametrize("count", [32, 4])
def test_a_default_call_on_an_ill_conditioned_gaussian(count):
    """Variances from 0.01 to 100 in 10 dimensions: every mean and variance within 4 Monte Carlo standard errors."""
    arviz = pytest.importorskip("arviz", reason="standard errors are ArviZ's")
    variances = torch.logspace(-2, 2, 10).double()
    steps = 400 if count > 4 else 2000
    chains = mcmc.run(normal(variances), GHMC(), chains=count, steps=steps, seed=5, progress=False)
    draws = chains.draws.double()
    for values, exact in ((draws, torch.zeros(10)), (draws.square(), variances)):
        error = torch.from_numpy(arviz.mcse({"v": values.numpy()})["v"].values)
        assert float(((values.mean((0, 1)) - exact) / error).abs().max()) < 4
    assert float((torch.as_tensor(chains.tuning.preconditioner) / variances).log().abs().max()) < 0.7
    assert chains.tuning.step == pytest.approx(0.5, rel=0.25)


def test_after_the_warm_up_chains_are_their_own():
    target = normal([4.0, 0.25, 1.0])
    found = run(target).tuning.sampler
    many = run(target, found, warmup=0, chains=40, steps=7)
    assert same(run(target, found, warmup=0, chains=[33], steps=7), many, slice(33, 34))
    assert same(run(target, found, warmup=0, chains=40, steps=7, slots=9, launch=False), many)
    assert run(target).tuning.step == found.step and run(target).tuning.sampler.friction == found.friction
