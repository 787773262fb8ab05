"""Hamiltonian Monte Carlo: paths of random length, and adaptation that keeps a path."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from chain_runs import curved, run, same
from ulam import mcmc
from ulam.mcmc import HMC, MALA
from ulam.samplers.mcmc.chain_state import ChainState


def state(chains, draw, backend=None):
    ids = torch.arange(chains)
    x = torch.zeros(chains, 1)
    return ChainState(x, lambda at, wanted: (None, at), torch.full_like(ids, 3), ids, draw * 16, None, backend)


def test_the_uniforms_of_a_step_are_uniform_and_the_chains_own():
    many = state(20_000, torch.zeros(20_000, dtype=torch.int64))
    first = many.uniforms()
    assert many.uniforms() is first and scipy.stats.kstest(first.numpy(), "uniform", (-1, 2)).pvalue > 1e-3
    many.advance()
    second = many.uniforms()
    assert abs(np.corrcoef(first.numpy(), second.numpy())[0, 1]) < 4 / 20_000**0.5
    many.advance(20)  # beyond those that were made together
    alone = state(8, torch.full((8,), 21))
    assert torch.equal(many.uniforms()[:8], alone.uniforms())
    assert torch.equal(state(8, torch.full((8,), 21), "reference").uniforms(), alone.uniforms())


def test_a_step_is_one_plus_jitter_u_times_the_given():
    """A path of one leapfrog on a flat energy moves by step (1 + jitter u) times the momentum."""
    flat = mcmc.Energy(lambda x: 0 * x.sum(1))
    options = {"chains": 6, "shape": (1,), "x_init": torch.zeros(6, 1), "steps": 1, "warmup": 0, "thin": 1}
    plain, varied = (run(flat, HMC(0.5, 1, jitter=jitter), **options).x[:, 0] for jitter in (0, 0.25))
    at = ChainState(
        torch.zeros(6, 1), lambda x, wanted: (None, x), torch.full((6,), 7), torch.arange(6),
        torch.zeros(6, dtype=torch.int64), None, None,
    )  # fmt: skip
    torch.testing.assert_close(varied / plain, (1 + 0.25 * at.uniforms()).float())


def test_no_period_stands_still():
    """Paths of 0.4 to 2.1 periods; at one length those of whole and half periods never mix."""
    arviz = pytest.importorskip("arviz", reason="diagnostics are ArviZ's")
    periods = torch.linspace(0.4, 2.1, 18, dtype=torch.float64)
    variance = (3 / (2 * math.pi * periods)) ** 2
    options = {"chains": 64, "steps": 1000, "warmup": 50, "thin": 1}
    chains = run(mcmc.Gaussian(torch.zeros(18), variance), HMC(0.06, 50), **options)
    assert float((chains.variance() / variance - 1).abs().max()) < 0.05
    assert float(arviz.rhat(chains.to_arviz())["x"].values.max()) < 1.01
    still = run(mcmc.Gaussian(torch.zeros(18), variance), HMC(0.06, 50, jitter=0), **options)
    assert float(arviz.rhat(still.to_arviz())["x"].values.max()) > 1.5


def test_a_direction_of_half_a_period_is_sampled():
    arviz = pytest.importorskip("arviz", reason="diagnostics are ArviZ's")
    variance = torch.tensor([1.0, 0.32**2], dtype=torch.float64)
    chains = run(mcmc.Gaussian(torch.zeros(2), variance), HMC(0.2, 10), chains=64, steps=1000, warmup=50, thin=1)
    assert float(arviz.rhat(chains.to_arviz())["x"].values.max()) < 1.01
    assert float((chains.variance() / variance - 1).abs().max()) < 0.05


def test_adaptation_keeps_the_path_and_the_variance():
    variance = torch.logspace(-1, 1, 50, dtype=torch.float64)
    sampler = HMC(0.4, leapfrog=8)
    chains = run(mcmc.Gaussian(torch.zeros(50), variance), sampler, chains=64, warmup=150, steps=300, thin=1, adapt=0.8)
    assert abs(float(chains.acceptance.mean()) - 0.8) < 0.08
    assert float((chains.variance() / variance - 1).abs().max()) < 0.1
    leaps = sampler.leap_counts(torch.full((64,), 0.4, dtype=torch.float64), chains.step)
    path = leaps * chains.step
    assert len(leaps.unique()) > 1 and (path >= 3.2 - 1e-9).all() and (path < 3.2 + chains.step).all()


def test_leapfrog_counts():
    given = torch.full((5,), 0.3, dtype=torch.float64)
    step = torch.tensor([0.3, 0.29, 0.6, 9.0, 1e-6], dtype=torch.float64)
    assert HMC(0.3, 12).leap_counts(given, step).tolist() == [12, 13, 6, 1, 120]
    assert MALA(0.3).leap_counts(given, step) is None


@pytest.mark.parametrize("kind", ["density", "energy"])
def test_paths_of_several_lengths_are_those_of_chains_alone(kind):
    """A chain whose path is short has the bits it has without the others, whose paths go on."""
    target = mcmc.Gaussian(torch.zeros(2), [1.0, 0.5]) if kind == "density" else mcmc.Energy(curved)
    options = {"shape": (2,), "adapt": 0.7, "warmup": 15}
    many = run(target, HMC(0.5, 3), chains=20, **options)
    for chain in (0, 7, 19):
        assert same(run(target, HMC(0.5, 3), chains=[chain], **options), many, slice(chain, chain + 1))
    assert len(HMC(0.5, 3).leap_counts(torch.full((20,), 0.5, dtype=torch.float64), many.step).unique()) > 1
    assert same(run(target, HMC(0.5, 3), chains=20, backend="reference", **options), many)
