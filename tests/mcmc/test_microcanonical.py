"""Velocities of length 1: the isokinetic step, MCLMC's bias and MAMS's exact law, and both against plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.integrate
import torch

from archives import arrays
from chain_laws import check_law, within
from chain_oracles import Oracle, small_run
from chain_runs import curved, run, same
from ulam import ebm, mcmc, noise
from ulam.cli import main as cli
from ulam.mcmc import MAMS, MCLMC
from ulam.samplers.mcmc import isokinetic
from ulam.samplers.mcmc.chain_state import ChainState
from ulam.samplers.mcmc.paths import Path

CHAINS = 20_000
COVARIANCE = np.array([[1.0, 0.6, -0.3], [0.6, 2.0, 0.5], [-0.3, 0.5, 0.7]])
MEAN = np.array([0.5, -1.0, 2.0])
GAUSSIAN = mcmc.Gaussian(torch.tensor(MEAN), torch.tensor(COVARIANCE))
WIDE = mcmc.Gaussian(torch.zeros(10), torch.linspace(0.5, 2.0, 10))


def at(target, x, u):
    """A state and a path that begin at x and u, float64."""
    ids = torch.arange(len(x))
    state = ChainState(x.clone(), target.bind(x, ids, len(x), None), ids, ids, ids, None, None)
    state.evaluate_here(True)
    return state, Path(state.x, u, state.score, state.energy, torch.zeros(len(x), dtype=torch.float64))


def starts(target, chains=200):
    z = noise.normal((target.dimension,), seed=4, chains=chains).double()
    return target.sample(chains, seed=3), isokinetic.unit(z)


def steps(target, x, u, h, count):
    """Isokinetic steps without refreshment: where they end, and the energies E + kinetic after each."""
    state, path = at(target, x, u)
    size, one, totals = torch.full((len(x),), h).double(), torch.ones(len(x)).double(), [state.energy.clone()]
    for _ in range(count):
        path = isokinetic.isokinetic_step(state, path, size, one, True)
        totals.append(path.energy - path.lost)
    return path, torch.stack(totals)


@pytest.mark.parametrize("d", [1, 2, 3, 5, 64, 100, 1000])
def test_sums_of_a_chain_are_sums_and_its_own(d):
    a, b = (noise.normal((d,), seed=s, chains=50).double() for s in (1, 2))
    found = isokinetic.inner(a, b)
    torch.testing.assert_close(found, (a * b).sum(1), rtol=1e-12, atol=1e-12)
    assert torch.equal(torch.cat([isokinetic.inner(a[k : k + 1], b[k : k + 1]) for k in range(50)]), found)


def test_a_kick_is_the_flow_of_its_equation():
    d, s = 4, np.array([1.0, -3.0, 0.5, 2.0])
    u = np.array([0.5, 0.5, -0.5, 0.5])

    def flow(_, y):
        return np.append((s - y[:d] * (y[:d] @ s)) / (d - 1), y[:d] @ s)

    exact = scipy.integrate.solve_ivp(flow, (0, 1.3), np.append(u, 0.0), rtol=1e-11, atol=1e-12).y[:, -1]
    turned, growth = isokinetic.kick(*(torch.tensor(a)[None] for a in (u, s)), torch.tensor([1.3], dtype=torch.float64))
    np.testing.assert_allclose(np.append(turned[0], growth), exact, rtol=1e-9, atol=1e-9)


def test_the_growth_is_minus_the_log_of_the_jacobian_on_the_sphere():
    """By automatic differentiation, in tangents at u and at u'."""
    s, time = torch.tensor([[0.7, -1.0, 2.0, 0.3]]).double(), torch.tensor([1.1]).double()
    u = isokinetic.unit(torch.tensor([[1.0, 2.0, -1.0, 0.5]]).double())
    turned, growth = isokinetic.kick(u, s, time)
    whole = torch.func.jacrev(lambda at: isokinetic.kick(isokinetic.unit(at), s, time)[0])(u)[0, :, 0]
    before, after = (torch.linalg.svd(v).Vh[1:] for v in (u, turned))  # the tangents, orthonormal
    jacobian = torch.linalg.det(after @ whole @ before.T).abs()
    torch.testing.assert_close(-growth[0], jacobian.log(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [0.0, 1e-12, 1.0, 1e3, 3e4, 1e6, 1e9])
@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
def test_kicks_of_any_strength_keep_the_length(size, sign):
    """Along u, against it, and across; nothing where there is no score."""
    u = torch.tensor([[sign, 1 - abs(sign), 0.0]]).double()
    s = size * torch.tensor([[1.0, 0.0, 0.0]]).double()
    turned, growth = isokinetic.kick(u, s, torch.tensor([1e-3], dtype=torch.float64))
    assert abs(float(isokinetic.inner(turned, turned)) - 1) < 1e-15
    delta = 1e-3 * size / 2
    exact = {1.0: delta, -1.0: -delta, 0.0: np.logaddexp(delta, -delta) - np.log(2)}[sign]
    np.testing.assert_allclose(float(growth), 2 * exact, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(
        turned[0], [sign, 0, 0] if sign else [np.tanh(delta), 1 / np.cosh(min(delta, 99)), 0], atol=1e-12
    )


def test_a_path_turned_round_comes_back():
    x, u = starts(GAUSSIAN)
    there, totals = steps(GAUSSIAN, x, u, 0.4, 7)
    back, reverse = steps(GAUSSIAN, there.x.clone(), -there.v, 0.4, 7)
    torch.testing.assert_close(back.x, x, rtol=0, atol=1e-11)
    torch.testing.assert_close(-back.v, u, rtol=0, atol=1e-11)
    torch.testing.assert_close(totals[-1] - totals[0], reverse[0] - reverse[-1], rtol=0, atol=1e-11)


def test_the_energy_of_a_step_is_kept_to_the_third_order():
    x, u = starts(WIDE)
    changes = []
    for h in (0.2, 0.1, 0.05):
        path, totals = steps(WIDE, x, u, h, 1)
        changes.append(float((totals[1] - totals[0]).square().mean().sqrt()))
        assert float((isokinetic.inner(path.v, path.v) - 1).abs().max()) < 1e-14
    assert 7 < changes[0] / changes[1] < 9 and 7 < changes[1] / changes[2] < 9
    assert changes[2] > 1e-8


def test_the_energy_stays_bounded_over_many_steps_and_the_length_is_one():
    path, totals = steps(WIDE, *starts(WIDE), 0.2, 1000)
    assert 1e-4 < float((totals - totals[0]).abs().max()) < 0.5
    assert float((isokinetic.inner(path.v, path.v) - 1).abs().max()) < 1e-14


def test_the_bias_of_mclmc_falls_as_the_square_of_its_step():
    """In the variance of every direction, over long runs; without it at small steps."""
    errors = []
    for h in (3.0, 1.5):
        options = {"chains": 1000, "steps": 300, "x_init": WIDE.sample(1000, seed=2).float(), "store": False}
        chains = mcmc.run(WIDE, MCLMC(h, length=4.0), seed=0, progress=False, **options)
        errors.append(float((chains.variance() / torch.linspace(0.5, 2.0, 10).double() - 1).mean()))
    assert abs(errors[0]) > 0.02 and 2.5 < errors[0] / errors[1] < 6.5, errors


@pytest.mark.parametrize("length", [0.5, 3.0, None])
def test_mclmc_has_the_law_at_small_steps(length):
    """From elsewhere, within statistical error and the bias of the step; at a temperature, preconditioned."""
    sampler = MCLMC(0.5, length, temperature=2.0, preconditioner=[1.0, 2.0, 0.7])
    chains = mcmc.run(GAUSSIAN, sampler, chains=4000, steps=100, thin=100, seed=2, progress=False)
    check_law(chains.x, MEAN, 2 * COVARIANCE)
    assert float((chains.v.double().square().sum(1) - 1).abs().max()) < 1e-6


def test_a_direction_is_forgotten_over_the_length():
    """On a flat density E u_0 u_n = exp(-n step / length), nearly: refreshment keeps 1 / sqrt(1 + nu^2 d) a step."""
    d, flat = 50, mcmc.Energy(lambda x: 0 * x.sum(1))
    v = noise.normal((d,), seed=1, chains=2000)
    options = {"chains": 2000, "steps": 20, "shape": (d,), "seed": 3, "v_init": v, "progress": False}
    first = isokinetic.unit(v.double())
    for length in (1.0, 4.0, float("inf"), 1e-3):
        found = isokinetic.inner(first, mcmc.run(flat, MCLMC(0.1, length), **options).v.double())
        assert abs(float(found.mean()) - np.exp(-20 * 0.1 / length)) < 0.02


@pytest.mark.parametrize(
    "sampler",
    [
        MAMS(1.2, 2),
        MAMS(1.5, 1, jitter=0),
        MAMS(0.9, 4, preconditioner=[0.5, 2.0, 1.0]),
        MAMS(1.2, 3, temperature=2.0),
    ],
    ids=repr,
)
def test_mams_keeps_the_law(sampler):
    heat = float(sampler.temperature)
    start = torch.tensor(MEAN + np.sqrt(heat) * (GAUSSIAN.sample(CHAINS, seed=8).numpy() - MEAN)).float()
    chains = mcmc.run(GAUSSIAN, sampler, chains=CHAINS, steps=4, thin=4, seed=1, x_init=start, progress=False)
    assert 0.4 < float(chains.acceptance.mean()) < 0.95  # steps so large that the bias would show
    check_law(chains.x, MEAN, heat * COVARIANCE)


def test_mams_finds_the_law_from_elsewhere():
    chains = mcmc.run(GAUSSIAN, MAMS(0.8, 4), steps=50, thin=50, chains=4000, seed=2, progress=False)
    check_law(chains.x, MEAN, COVARIANCE)


@pytest.mark.filterwarnings("ignore:.*divergent proposals")
@pytest.mark.parametrize("target", [mcmc.DoubleWell(2, 1.5, 1.0), mcmc.Rosenbrock(2, a=0.5, b=1.0)], ids=repr)
def test_mams_is_in_detailed_balance(target):
    """At stationarity (x, x') and (x', x) have one law: antisymmetric functions have mean 0, and x' the law of x."""
    start = target.sample(CHAINS, seed=8)
    chains = mcmc.run(target, MAMS(0.5, 3), chains=CHAINS, steps=1, x_init=start.float(), seed=0, progress=False)
    assert 0.3 < chains.acceptance.mean() < 0.95
    for i in (0, 1):
        before, after = start[:, i], chains.x[:, i].double()
        for f, g in [
            (lambda x: x, lambda x: x**3),
            (torch.sin, torch.square),
            (torch.abs, lambda x: (x > 0.5).double()),
        ]:
            assert within(f(before) * g(after) - f(after) * g(before), 0.0)
            assert within(f(after) - f(before), 0.0)


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("scale", [1.0, np.array([0.8, 1.3, 1.0])], ids=["plain", "scaled"])
def test_the_states_are_those_of_plain_numpy(temperature, scale):
    start, settings, options = small_run(GAUSSIAN, temperature, scale)
    mclmc = mcmc.run(GAUSSIAN, MCLMC(0.6, 1.5, **settings), **options)
    mams = mcmc.run(GAUSSIAN, MAMS(1.4, 2, jitter=0.3, **settings), **options)
    tests = []
    for chain in range(6):
        oracle = Oracle(GAUSSIAN, chain, 5, temperature, scale)
        x, u = oracle.mclmc(start[chain].numpy(), 8, 0.6, 1.5)
        np.testing.assert_allclose(mclmc.x[chain], x, rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(mclmc.v[chain], u, rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(mams.x[chain], oracle.mams(start[chain].numpy(), 8, 1.4, 2, 0.3), rtol=1e-11)
        assert np.mean(oracle.accepted) == mams.acceptance[chain]
        tests += oracle.accepted
    assert 0 < np.mean(tests) < 1


def test_no_length_is_the_root_of_the_dimension_times_the_temperature():
    for temperature in (1.0, 4.0):
        given, default = (
            run(GAUSSIAN, MCLMC(0.4, length, temperature=temperature), dtype=torch.float64).x
            for length in ((3 * temperature) ** 0.5, None)
        )
        torch.testing.assert_close(given, default, rtol=1e-10, atol=1e-10)


def test_adaptation_keeps_the_path_of_mams():
    variance = torch.logspace(-1, 1, 20, dtype=torch.float64)
    sampler, target = MAMS(1.0, leapfrog=6), mcmc.Gaussian(torch.zeros(20), variance)
    chains = run(target, sampler, chains=48, warmup=150, steps=150, thin=1, adapt=0.9)
    assert abs(float(chains.acceptance.mean()) - 0.9) < 0.06
    assert float((chains.variance() / variance - 1).abs().max()) < 0.2
    path = sampler.leap_counts(torch.full((48,), 1.0, dtype=torch.float64), chains.step) * chains.step
    assert (path >= 6 - 1e-9).all() and (path < 6 + chains.step).all()


@pytest.mark.parametrize("kind", ["density", "energy"])
def test_adapted_chains_have_their_bits_alone(kind):
    target = GAUSSIAN if kind == "density" else mcmc.Energy(curved)
    options = {"shape": (3,) if kind == "density" else (2,), "adapt": 0.7, "warmup": 15}
    many = run(target, MAMS(0.7, 3), chains=20, **options)
    for chain in (0, 7, 19):
        assert same(run(target, MAMS(0.7, 3), chains=[chain], **options), many, slice(chain, chain + 1))
    assert same(run(target, MAMS(0.7, 3), chains=20, slots=7, **options), many)
    assert len(MAMS(0.7, 3).leap_counts(torch.full((20,), 0.7, dtype=torch.float64), many.step).unique()) > 1


def test_lengths_of_a_chain_are_its_own_and_images_are_states():
    many = run(
        mcmc.Energy(lambda x: x.square().sum((1, 2)) / 2), MCLMC(0.4, [0.5, 2.0, float("inf")]), chains=3, shape=(2, 5)
    )
    for k, length in enumerate((0.5, 2.0, float("inf"))):
        target = mcmc.Energy(lambda x: x.square().sum((1, 2)) / 2)
        assert same(run(target, MCLMC(0.4, length), chains=[k], shape=(2, 5)), many, slice(k, k + 1))


def test_tempered_mclmc_keeps_lengths_of_one():
    tempering = mcmc.ParallelTempering(MCLMC(0.4), [1.0, 4.0])
    chains = mcmc.run(GAUSSIAN, tempering, chains=1000, steps=30, thin=30, seed=3, progress=False)
    assert float((chains.position.v.double().square().sum(1) - 1).abs().max()) < 1e-6
    check_law(chains.x, MEAN, COVARIANCE)
    assert float(chains.swaps.mean()) > 0.2


def test_a_score_alone_is_enough_for_mclmc():
    chains = run(mcmc.Score(torch.neg), MCLMC(0.4), shape=(3,))
    assert chains.energies is None and torch.isfinite(chains.x).all()
    assert torch.equal(
        chains.x, run(mcmc.Energy(lambda x: x.square().sum(1) / 2, score=torch.neg), MCLMC(0.4), shape=(3,)).x
    )


def test_paths_of_mams_and_hmc_have_noise_of_their_own():
    assert not torch.equal(*(noise.normal_for(p, (3,), seed=0, chains=4) for p in (noise.MAMS_PATH, noise.HMC_PATH)))


@pytest.mark.parametrize(
    ("name", "options", "sampler"),
    [
        ("ghmc", "--friction 0.5", mcmc.GHMC(0.02, friction=0.5)),
        ("malt", "--friction 0.5 --leapfrog 4", mcmc.MALT(0.02, 4, 0.5)),
        ("mclmc", "--length 2", MCLMC(0.02, 2.0)),
        ("mams", "--leapfrog 4 --jitter 0.2", MAMS(0.02, 4, jitter=0.2)),
    ],
)
def test_the_command_line_runs_them(tmp_path, name, options, sampler):
    sizes = "--chains 5 --steps 6 --warmup 2 --seed 3 --adapt off --no-plots"
    command = f"mcmc --target rosenbrock --sampler {name} --step 0.02 {options} {sizes} --out {tmp_path / 'out'}"
    assert cli.main(command.split()) == 1, "so few steps do not mix"
    expected = mcmc.run(mcmc.Rosenbrock(2), sampler, chains=5, steps=6, warmup=2, seed=3, progress=False)
    np.testing.assert_array_equal(arrays(tmp_path / "out" / "draws.npz")["draws"], expected.draws)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MCLMC(0.1, 0.0), "length: got 0, expected a finite number above 0"),
        (lambda: MCLMC(0.1, temperature=0.0), "temperature: got 0, expected a finite number above 0"),
        (lambda: MAMS(0.1, 0), "leapfrog: got 0, expected at least 1"),
        (lambda: MAMS(0.1, jitter=1.0), r"jitter: got 1.0, expected a number in \[0, 1\)"),
        (lambda: run(mcmc.DoubleWell(1), MAMS(0.1)), "shape: got states of 1 element, expected at least 2 for MAMS"),
        (lambda: run(mcmc.DoubleWell(1), MCLMC(0.1)), "shape: got states of 1 element, expected at least 2 for MCLMC"),
        (lambda: ebm.PersistentChains(4, (1,), MAMS(0.1)), "shape: got states of 1 element, expected at least 2"),
        (lambda: run(GAUSSIAN, MCLMC(0.1), v_init=torch.eye(6, 3)), "v_init: got a velocity of 0, expected one with a"),
        (lambda: run(GAUSSIAN, MCLMC(0.1, [1.0, 2.0])), "length: got 2 numbers, expected one, or one for each of 6"),
        (lambda: run(GAUSSIAN, MCLMC(0.1), adapt=0.9), "adapt: got 0.9, expected None: MCLMC has no Metropolis test"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
