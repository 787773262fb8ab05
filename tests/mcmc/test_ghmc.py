"""Momenta that persist and paths with friction: GHMC and MALT against their exact laws and plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chain_laws import check_law, within
from chain_oracles import Oracle, small_run
from chain_runs import curved, run, same
from ulam import mcmc, noise
from ulam.mcmc import GHMC, HMC, MALA, MALT

CHAINS = 30_000
COVARIANCE = np.array([[1.0, 0.6, -0.3], [0.6, 2.0, 0.5], [-0.3, 0.5, 0.7]])
MEAN = np.array([0.5, -1.0, 2.0])
GAUSSIAN = mcmc.Gaussian(torch.tensor(MEAN), torch.tensor(COVARIANCE))


def stationary(target, sampler, steps, draws=None):
    """``steps`` transitions of chains that start with the law of the target."""
    start = target.sample(CHAINS, seed=8) if draws is None else draws
    return start, mcmc.run(
        target, sampler, steps=steps, thin=steps, chains=CHAINS, x_init=start.float(), seed=1, progress=False
    )


@pytest.mark.parametrize(
    "sampler",
    [
        GHMC(0.9, 1, friction=0.3),
        GHMC(0.8, 3, friction=1.0),
        GHMC(0.7, 2, friction=0.0),
        GHMC(0.7, 2, friction=float("inf"), preconditioner=[0.5, 2.0, 1.0]),
        MALT(0.6, 4, friction=0.5),
        MALT(0.6, 5, friction=2.0, preconditioner=[0.5, 2.0, 1.0]),
        MALT(0.6, 3, friction=0.0),
        MALT(0.6, 3, friction=float("inf")),
    ],
    ids=repr,
)
def test_the_law_stays_and_that_of_the_velocities(sampler):
    _, chains = stationary(GAUSSIAN, sampler, 4)
    assert 0.4 < float(chains.acceptance.mean()) < 0.95  # steps so large that the bias would show
    check_law(chains.x, MEAN, COVARIANCE)
    if sampler.has_velocity:
        both = np.block([[COVARIANCE, np.zeros((3, 3))], [np.zeros((3, 3)), np.eye(3)]])
        check_law(torch.cat([chains.x, chains.v], 1), np.append(MEAN, np.zeros(3)), both)


@pytest.mark.parametrize("sampler", [GHMC(0.8, 2, temperature=2.0), MALT(0.8, 4, temperature=2.0)], ids=repr)
def test_the_law_at_a_temperature(sampler):
    start = MEAN + np.sqrt(2) * (GAUSSIAN.sample(CHAINS, seed=8).numpy() - MEAN)
    _, chains = stationary(GAUSSIAN, sampler, 4, torch.tensor(start))
    assert float(chains.acceptance.mean()) < 0.95
    check_law(chains.x, MEAN, 2 * COVARIANCE)
    if chains.v is not None:
        check_law(chains.v, np.zeros(3), 2 * np.eye(3))


@pytest.mark.parametrize("sampler", [GHMC(0.5, 4, friction=1.0), MALT(0.5, 6, friction=0.7)], ids=repr)
def test_the_law_is_found_from_elsewhere(sampler):
    chains = mcmc.run(GAUSSIAN, sampler, steps=40, thin=40, chains=5000, seed=2, progress=False)
    check_law(chains.x, MEAN, COVARIANCE)


@pytest.mark.filterwarnings("ignore:.*divergent proposals")
@pytest.mark.parametrize("sampler", [GHMC(0.35, 2, friction=0.5), MALT(0.3, 3, friction=0.5)], ids=repr)
def test_a_transition_is_in_detailed_balance(sampler):
    """At stationarity (x, x') and (x', x) have one law; GHMC's x too, since v and -v are equally probable."""
    start, chains = stationary(mcmc.DoubleWell(1, height=1.5, separation=1.0), sampler, 1)
    before, after = start[:, 0], chains.x[:, 0].double()
    assert 0.3 < chains.acceptance.mean() < 0.95
    for f, g in [(lambda x: x, lambda x: x**3), (torch.sin, torch.square), (lambda x: (x > 0.5).double(), torch.abs)]:
        assert within(f(before) * g(after) - f(after) * g(before), 0.0)
        assert within(f(after) - f(before), 0.0)


@pytest.mark.filterwarnings("ignore:.*divergent proposals")
@pytest.mark.parametrize("sampler", [GHMC(0.4, 2, friction=1.0), MALT(0.35, 4, friction=1.0)], ids=repr)
def test_a_curved_density_stays(sampler):
    """Rosenbrock's, after several transitions, against the exact draws that they started from."""
    start, chains = stationary(mcmc.Rosenbrock(2, a=0.5, b=1.0), sampler, 5)
    assert 0.3 < chains.acceptance.mean() < 0.95
    after = chains.x.double()
    assert float((after - start).square().mean()) > 0.02
    for f in (lambda x: x[:, 0], lambda x: x[:, 1], lambda x: x[:, 0] ** 2, lambda x: (x[:, 1] - x[:, 0] ** 2) ** 2):
        assert within(f(after) - f(start), 0.0)


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("scale", [1.0, np.array([0.8, 1.3, 1.0])], ids=["plain", "scaled"])
def test_the_states_are_those_of_plain_numpy(temperature, scale):
    start, settings, options = small_run(GAUSSIAN, temperature, scale)
    ghmc = mcmc.run(GAUSSIAN, GHMC(0.9, 2, 0.4, **settings), **options)
    malt = mcmc.run(GAUSSIAN, MALT(0.9, 3, 0.4, **settings), **options)
    tests = []
    for chain in range(6):
        oracle = Oracle(GAUSSIAN, chain, 5, temperature, scale)
        x, v = oracle.ghmc(start[chain].numpy(), 8, 0.9, 2, 0.4)
        np.testing.assert_allclose(ghmc.x[chain], x, rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(ghmc.v[chain], v, rtol=1e-11, atol=1e-11)
        assert np.mean(oracle.accepted) == ghmc.acceptance[chain]
        oracle = Oracle(GAUSSIAN, chain, 5, temperature, scale)
        np.testing.assert_allclose(malt.x[chain], oracle.malt(start[chain].numpy(), 8, 0.9, 3, 0.4), rtol=1e-11)
        assert np.mean(oracle.accepted) == malt.acceptance[chain]
        tests += oracle.accepted
    assert 0 < np.mean(tests) < 1


def test_without_friction_and_with_nothing_but_friction_they_are_hmc():
    """MALT without friction has HMC's path of one length, GHMC with infinite friction too, to rounding."""
    options = {"chains": 50, "steps": 5, "seed": 4, "progress": False, "dtype": torch.float64}
    hmc = mcmc.run(GAUSSIAN, HMC(0.6, 3, jitter=0), **options)
    for sampler in (MALT(0.6, 3, friction=0.0), GHMC(0.6, 3, friction=float("inf"))):
        torch.testing.assert_close(mcmc.run(GAUSSIAN, sampler, **options).x, hmc.x, rtol=1e-10, atol=1e-10)


def test_a_refusal_turns_the_velocity_back():
    target = mcmc.Energy(lambda x: 1e6 * x.square().sum(1))
    start, v = torch.zeros(4, 3), torch.tensor([1.0, -2.0, 0.5]).expand(4, 3).contiguous()
    options = {"chains": 4, "steps": 1, "seed": 0, "x_init": start, "v_init": v, "progress": False}
    with pytest.warns(RuntimeWarning, match="divergent proposals"):
        chains = mcmc.run(target, GHMC(1.0, friction=0.0), **options)
    assert torch.equal(chains.v, -v) and torch.equal(chains.x, start)


def test_small_friction_reaches_farther_in_as_many_leaps():
    """Momenta that persist carry a chain along: over a wide direction it mixes faster than with fresh ones."""
    target = mcmc.Gaussian(torch.zeros(2), [1.0, 400.0])
    start = torch.tensor([[0.0, 40.0]]).expand(2000, 2).contiguous()
    options = {"chains": 2000, "steps": 60, "x_init": start, "seed": 6, "progress": False}
    persistent, fresh = (mcmc.run(target, GHMC(0.5, friction=friction), **options) for friction in (0.1, float("inf")))
    assert persistent.acceptance.mean() > 0.9
    assert float(fresh.x[:, 1].mean()) > 36 and float(persistent.x[:, 1].mean()) < 28


def test_adaptation_keeps_the_path_of_malt():
    variance = torch.logspace(-1, 1, 20, dtype=torch.float64)
    sampler = MALT(0.4, leapfrog=6, friction=0.5)
    chains = run(mcmc.Gaussian(torch.zeros(20), variance), sampler, chains=64, warmup=150, steps=200, thin=1, adapt=0.8)
    assert abs(float(chains.acceptance.mean()) - 0.8) < 0.08
    assert float((chains.variance() / variance - 1).abs().max()) < 0.15
    path = sampler.leap_counts(torch.full((64,), 0.4, dtype=torch.float64), chains.step) * chains.step
    assert (path >= 2.4 - 1e-9).all() and (path < 2.4 + chains.step).all()


@pytest.mark.parametrize("sampler", [GHMC(0.5, 2), MALT(0.5, 3)], ids=repr)
@pytest.mark.parametrize("kind", ["density", "energy"])
def test_adapted_chains_have_their_bits_alone(sampler, kind):
    target = GAUSSIAN if kind == "density" else mcmc.Energy(curved)
    options = {"shape": (3,) if kind == "density" else (2,), "adapt": 0.7, "warmup": 15}
    many = run(target, sampler, chains=20, **options)
    for chain in (0, 7, 19):
        assert same(run(target, sampler, chains=[chain], **options), many, slice(chain, chain + 1))
    assert same(run(target, sampler, chains=20, slots=7, **options), many)
    if isinstance(sampler, MALT):
        assert len(sampler.leap_counts(torch.full((20,), 0.5, dtype=torch.float64), many.step).unique()) > 1


def test_frictions_of_a_chain_are_its_own():
    frictions = torch.tensor([0.0, 0.7, float("inf")])
    for make in (lambda f: GHMC(0.8, 2, friction=f), lambda f: MALT(0.8, 3, friction=f)):
        many = run(GAUSSIAN, make(frictions), chains=3)
        for k, friction in enumerate(frictions.tolist()):
            assert same(run(GAUSSIAN, make(friction), chains=[k]), many, slice(k, k + 1))


def test_replicas_that_swap_have_velocities_of_their_temperatures():
    tempering = mcmc.ParallelTempering(GHMC(0.5, friction=0.5), [1.0, 4.0])
    chains = mcmc.run(GAUSSIAN, tempering, chains=3000, steps=30, thin=30, seed=3, progress=False)
    replicas = chains.position.v.view(3000, 2, 3)
    check_law(replicas[:, 0], np.zeros(3), np.eye(3))
    check_law(replicas[:, 1], np.zeros(3), 4 * np.eye(3))
    check_law(chains.x, MEAN, COVARIANCE)
    assert float(chains.swaps.mean()) > 0.2


def test_the_noise_on_a_path_is_one_row_of_its_purpose():
    """The same for a path of any length: leap k takes the k-th part of the elements."""
    whole = noise.normal_for(noise.MALT_PATH, (5, 3), seed=5, chains=[2], row=7)
    assert torch.equal(noise.normal_for(noise.MALT_PATH, (2, 3), seed=5, chains=[2], row=7), whole[:, :2])
    assert not torch.isin(whole, noise.normal_for(noise.ROW, (15,), seed=5, chains=[2], row=7)).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GHMC(0.1, friction=-1), "friction: got -1, expected a finite number of at least 0"),
        (lambda: MALT(0.1, friction=float("nan")), "friction: got nan, expected"),
        (lambda: GHMC(0.1, 0), "leapfrog: got 0, expected at least 1"),
        (lambda: MALT(0.1, (1 << 26) + 1), "leapfrog: got 67108865, expected at least 1 and at most 2.26"),
        (lambda: GHMC(0.1, temperature=0.0), "temperature: got 0, expected a finite number above 0"),
        (
            lambda: run(GAUSSIAN, MALT(0.1, 1 << 26)),
            "leapfrog: got 67108864 for states of 3 elements, expected at most 35791394",
        ),
        (lambda: run(mcmc.Score(torch.neg), GHMC(0.1), shape=(2,)), "a score alone, expected an energy for GHMC"),
        (lambda: run(GAUSSIAN, MALT(0.1), v_init=torch.zeros(6, 3)), "v_init: got one, expected None: MALT keeps no"),
        (lambda: run(GAUSSIAN, GHMC(0.1, friction=[1.0, 2.0])), "friction: got 2 numbers, expected one, or one for"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_mala_is_a_path_of_one_leap():
    """Its step is h^2 / 2 of a leapfrog step h: MALT(h, 1) and MALA accept at one rate and have one law."""
    options = {"chains": 20_000, "steps": 1, "seed": 9, "x_init": GAUSSIAN.sample(20_000, seed=2).float()}
    malt, mala = (mcmc.run(GAUSSIAN, s, progress=False, **options) for s in (MALT(1.0, 1), MALA(0.5)))
    torch.testing.assert_close(malt.x, mala.x, rtol=1e-4, atol=1e-4)
