"""The arithmetic of warm-up against plain float64: windows, masses, dual averaging, first steps, path lengths."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import warmup_oracles as oracles
from ulam.mcmc.adaptation import DualAveraging
from ulam.mcmc.warmup.first_step import crossed
from ulam.mcmc.warmup.moments import Moments, inverse_mass
from ulam.mcmc.warmup.paths import ChEES, Decorrelation, chees_gradient
from ulam.mcmc.warmup.windows import windows
from ulam.samplers.mcmc.chain_state import Proposal


def numbers(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def test_windows_of_one_chain_are_stans():
    assert windows(1000, 1) == [(75, False), (25, True), (50, True), (100, True), (200, True), (500, True), (50, False)]
    assert windows(1000, 64)[:3] == [(30, False), (10, True), (20, True)]


@pytest.mark.parametrize("chains", [1, 7, 4096])
def test_windows_are_as_long_as_the_warm_up(chains):
    for steps in (*range(1, 200), 999, 1000, 5000):
        found = windows(steps, chains)
        assert sum(window.steps for window in found) == steps and all(window.steps > 0 for window in found)
        assert not found[-1].mass and (steps < 20) == (len(found) == 1)


@pytest.mark.parametrize("ahead", [1.0, 10.0])
def test_dual_averaging_is_that_of_a_plain_loop(ahead):
    acceptances = np.random.default_rng(1).uniform(size=40)
    averaging, steps = DualAveraging(torch.tensor(0.3).double(), 0.8, ahead), []
    for a in acceptances:
        averaging.take(torch.tensor(a))
        steps.append(float(averaging.step))
    expected, final = oracles.dual_averaging(float(torch.tensor(0.3)), 0.8, acceptances, ahead)
    np.testing.assert_allclose(steps, expected, rtol=1e-12)
    assert float(averaging.final) == pytest.approx(final, rel=1e-12)


def test_first_steps_are_those_of_a_plain_loop():
    limits = [1e-30, 3e-4, 0.9, 1.0, 70.0, 1e30]
    ratio = torch.tensor(limits).double()
    start = torch.full((len(limits),), 1.0).double()
    found = crossed(start, lambda step: 1 / (1 + step / ratio), together=False)
    expected = [oracles.first_step(1.0, lambda step, limit=limit: 1 / (1 + step / limit)) for limit in limits]
    assert found.tolist() == expected and found[0] == 2.0**-50 and found[-1] == 2.0**50


def test_a_first_step_together_is_that_of_the_mean():
    ratio = torch.tensor([1e-3, 0.1, 3.0, 5.0]).double()
    found = crossed(torch.ones(4).double(), lambda step: 1 / (1 + step / ratio), together=True)
    expected = oracles.first_step(1.0, lambda step: float((1 / (1 + step / ratio)).mean()))
    assert found.tolist() == [expected] * 4


def test_moments_of_groups_are_those_of_all():
    x = 1e3 + numbers(50, 2, 3)
    moments = Moments(x.float())
    for part in (x[:1], x[1:30], x[30:30], x[30:]):
        moments.add(part)
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.variance, np.var(x.numpy(), axis=0, ddof=1), rtol=1e-9)
    expected = (50 * moments.variance + 5e-3 * 4.0) / 55
    np.testing.assert_allclose(inverse_mass(moments, torch.full((2, 3), 4.0).double()), expected, rtol=1e-14)


def test_a_mass_of_elements_that_never_move_stays_above_0():
    moments = Moments(torch.zeros(1, 2))
    moments.add(torch.zeros(4, 2))
    mass = torch.ones(2).double()
    for _ in range(100):
        mass = inverse_mass(moments, mass)
    assert bool((mass.sqrt().float() > 0).all())


def harmonic(x, v, time):
    """Exact paths of E = |x|^2 / 2."""
    c, s = np.cos(time)[:, None], np.sin(time)[:, None]
    return c * x + s * v, c * v - s * x


def test_the_gradient_of_chees_is_its_finite_difference():
    x, v, mean = (numbers(40, 3, seed=seed).numpy() for seed in (1, 2, 3))
    mean, scale = mean[0], np.array([0.5, 2.0, 1.0])
    rng = np.random.default_rng(4)
    share, weight, length, small = rng.uniform(0.5, 1.5, 40), rng.uniform(size=40), 0.8, 1e-5

    def value(log_length):
        end, _ = harmonic(x, v, share * math.exp(log_length))
        return oracles.chees(x, end, mean, weight)

    difference = (value(math.log(length) + small) - value(math.log(length) - small)) / (2 * small)
    end, speed = harmonic(x, v, share * length)
    proposal = Proposal(torch.from_numpy(end * scale), torch.from_numpy(speed), torch.from_numpy(share * length))
    found = chees_gradient(
        torch.from_numpy(x * scale), proposal, torch.from_numpy(mean * scale), torch.from_numpy(scale),
        torch.from_numpy(weight),
    )  # fmt: skip
    assert found == pytest.approx(difference, rel=1e-7)


def test_paths_that_are_lost_do_not_count_in_chees():
    x, end, v = (numbers(5, 2, seed=seed) for seed in (1, 2, 3))
    mean, time, weight = torch.zeros(2).double(), torch.ones(5).double(), torch.full((5,), 0.5).double()
    expected = chees_gradient(x[:4], Proposal(end[:4], v[:4], time[:4]), mean, None, weight[:4])
    end[4], v[4, 0] = math.inf, math.nan
    assert chees_gradient(x, Proposal(end, v, time), mean, None, weight) == pytest.approx(expected, rel=1e-12)


def test_chees_finds_the_length_of_a_gaussian():
    """Exact paths of N(0, I), times uniform on [T / 2, 3 T / 2]: ChEES is proportional to E[sin^2 t]."""
    rng, times = np.random.default_rng(5), np.linspace(0.5, 1.5, 1001)
    lengths = np.linspace(0.5, 3.0, 2501)
    best = lengths[np.argmax([(np.sin(times * length) ** 2).mean() for length in lengths])]
    path, mean = ChEES(0.3), torch.zeros(10).double()
    for step in range(600):
        if step == 300:
            path.restart()
        x, v = rng.normal(size=(2, 200, 10))
        time = path.length * rng.uniform(0.5, 1.5, 200)
        end, speed = harmonic(x, v, time)
        made = Proposal(*(torch.from_numpy(part) for part in (end, speed, time)))
        path.update(torch.from_numpy(x), made, mean, None, torch.ones(200).double())
    assert path.final == pytest.approx(best, rel=0.1)


def test_correlated_draws_lengthen_the_paths_of_mams():
    """AR(1) draws of correlation 0.8: n / ESS = 9, of which half is above the bound of 2; of 0.2: 1.5 / 2."""
    for rho, factor in ((0.8, 2.0), (0.2, 0.75)):
        x, path, moments = 5 + numbers(2000, 4, seed=1), Decorrelation(1.0), Moments(torch.zeros(1, 4))
        path.restart(x)
        for step in range(50):
            y = 5 + rho * (x - 5) + math.sqrt(1 - rho * rho) * numbers(2000, 4, seed=2 + step)
            path.update(x, y)
            moments.add(y)
            x = y
        path.whitened(moments, moments.variance)
        assert path.length == pytest.approx(1.3 * 2, rel=1e-9)
        path.decorrelated(moments)
        assert path.length == pytest.approx(2.6 * factor, rel=0.02)
