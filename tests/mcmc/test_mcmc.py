"""Running chains: the same bits in any company, by steps or launches; adaptation off and on; bad input; output."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from chain_laws import gaussian, rowwise
from chain_runs import SAMPLERS, curved, run, same
from ulam import Denoiser, mcmc, schedules
from ulam.mcmc import BAOAB, HMC, MALA, SGLD, ULA

TARGETS = {
    "gaussian": gaussian(),
    "mixture": mcmc.GaussianMixture([[-1.0, 0.0], [1.0, 1.0]], [0.5, 0.8], [0.3, 0.7]),
    "double well": mcmc.DoubleWell(3, height=0.1, separation=4.0),
    "rosenbrock": mcmc.Rosenbrock(2, a=0.02, b=0.2),
    "funnel": mcmc.Funnel(3, 1.0),
    "ring": mcmc.Ring(2),
}


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize("kind", ["density", "energy"])
def test_chain_5_has_its_bits_alone_and_among_4096(sampler, kind):
    target = gaussian() if kind == "density" else mcmc.Energy(curved)
    many = run(target, sampler, chains=4096, shape=(2,))
    assert same(run(target, sampler, chains=[5], shape=(2,)), many, slice(5, 6))
    assert same(run(target, sampler, chains=[4000, 5], shape=(2,)), many, [4000, 5])
    assert len(many.draws.flatten(1).unique(dim=0)) == 4096
    assert not torch.equal(many.draws, run(target, sampler, chains=4096, shape=(2,), seed=8).draws)


def test_chains_are_their_own_while_they_adapt():
    many = run(gaussian(), MALA(3.0), chains=64, adapt=0.6, warmup=50)
    assert same(run(gaussian(), MALA(3.0), chains=[5], adapt=0.6, warmup=50), many, slice(5, 6))
    assert many.step.std() > 0


@pytest.mark.filterwarnings("ignore:.*divergent proposals")
@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize("name", TARGETS)
def test_launches_have_the_bits_of_single_steps(name, sampler):
    whole, steps = (run(TARGETS[name], sampler, launch=launch) for launch in (True, False))
    assert same(whole, steps)
    alone = sampler.sampler if isinstance(sampler, mcmc.ParallelTempering) else sampler
    launches = alone.kernel is not None or isinstance(sampler, mcmc.NUTS)
    assert whole.report["launch"] == launches and not steps.report["launch"]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize("name", ["gaussian", "funnel"])
def test_backends_agree_on_every_bit(name, sampler):
    reference = run(TARGETS[name], sampler, backend="reference")
    assert same(run(TARGETS[name], sampler), reference)


def test_launches_in_parts_have_the_bits_of_one(monkeypatch):
    whole = run(gaussian(), MALA(0.4), steps=21)
    monkeypatch.setattr("ulam.mcmc.batch.LAUNCH_ELEMENTS", 60)
    assert same(run(gaussian(), MALA(0.4), steps=21), whole)


def test_slots_give_a_coupled_energy_equal_bits():
    """An energy that looks at its batch: with equal slots a chain sees batches of one size, and equal padding."""

    def energy(x):
        return x.square().sum(1) * (1 + 0.01 * len(x))

    few, many = (run(mcmc.Energy(energy), MALA(0.3), chains=n, shape=(2,), slots=4) for n in (6, 8))
    assert same(few, many, slice(0, 6))
    assert few.draws.shape == (6, 4, 2)


def test_warmup_thinning_and_numbering():
    """The states of one course: warm-up moves where a run begins to keep, thinning which it keeps."""
    course = run(gaussian(), HMC(0.4, 2), steps=16, warmup=0, thin=1)
    for warmup, thin in [(4, 3), (0, 4), (15, 1)]:
        kept = run(gaussian(), HMC(0.4, 2), steps=16 - warmup, warmup=warmup, thin=thin)
        assert torch.equal(kept.draws, course.draws[:, warmup + thin - 1 :: thin])
    assert torch.equal(course.draws[:, -1], course.x)


@pytest.mark.parametrize("launch", [True, False])
def test_moments_are_those_of_the_draws(launch):
    full, sums = (run(gaussian(), BAOAB(0.4, 1.0), store=store, launch=launch, chains=50) for store in (True, False))
    assert sums.draws is None and sums.energies is None
    torch.testing.assert_close(sums.moments, full.sums)
    wide = full.draws.double().flatten(0, 1)
    torch.testing.assert_close(sums.mean(), wide.mean(0))
    torch.testing.assert_close(sums.variance(), wide.var(0, correction=0))


def test_energies_are_those_of_the_draws():
    target = TARGETS["double well"]
    for sampler in (ULA(0.05), MALA(0.1), HMC(0.2, 2), BAOAB(0.2)):
        for kind in (target, rowwise(target)):
            result = run(kind, sampler, shape=(3,))
            at = result.draws.double()
            exact = 0.1 * (at**2 - 4).square().sum(2)
            shift = 0.0 if kind is target else 3 * target._law.log_normaliser
            torch.testing.assert_close(result.energies, exact + shift, rtol=1e-5, atol=1e-5)


def test_an_explicit_score_is_used():
    calls = []

    def score(x):
        calls.append(len(x))
        return -x

    given = mcmc.Energy(lambda x: x.square().sum(1) / 2, score=score)
    by_autograd = mcmc.Energy(lambda x: x.square().sum(1) / 2)
    for sampler in (ULA(0.1), MALA(0.5), HMC(0.3, 2)):
        assert same(run(given, sampler, shape=(3,)), run(by_autograd, sampler, shape=(3,)))
    assert calls


def test_conditions_are_the_chains_own():
    centre = torch.tensor([[-5.0], [0.0], [5.0]]).repeat(20, 1)
    target = mcmc.Energy(lambda x, c: (x - c).square().sum(1) / 2, cond={"c": centre})
    result = run(target, MALA(0.5), chains=60, shape=(1,), slots=16, warmup=100, steps=60)
    means = result.draws.mean(1)[:, 0]
    assert all(abs(float(means[k::3].mean()) - 5 * (k - 1)) < 0.5 for k in range(3))


def test_modules_run_in_eval_mode_and_stay_as_they_were():
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Dropout(0.5), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    net.append(torch.nn.Flatten(0))
    net.train()
    a, b = run(mcmc.Energy(net), ULA(0.1), shape=(2,)), run(mcmc.Energy(net.eval()), ULA(0.1), shape=(2,))
    assert same(a, b)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_clip_holds_states_in_the_box():
    for launch in (True, False):
        draws = run(gaussian(), ULA(0.5, clip=(-0.5, 0.25)), chains=200, launch=launch).draws
        assert draws.min() == -0.5 and draws.max() == 0.25


def test_a_chain_that_diverges_is_told_and_leaves_the_others_alone():
    energy = mcmc.Energy(lambda x: x.square().sum(1) / 2)
    start = torch.zeros(4, 2)
    wild = torch.tensor([0.1, 0.1, 30.0, 0.1])  # unstable above 2
    with pytest.warns(RuntimeWarning, match=r"1 of 4 chains left the finite numbers \(chain 2, "):
        result = run(energy, ULA(wild), chains=4, x_init=start, steps=60)
    assert result.divergences.tolist() == [0, 0, 1, 0]
    calm = run(energy, ULA(0.1), chains=4, x_init=torch.zeros(4, 2), steps=60)
    for chain in (0, 1, 3):
        assert torch.equal(result.draws[chain], calm.draws[chain])
    assert torch.isfinite(result.mean()).all()
    with pytest.warns(RuntimeWarning, match=r"divergent proposals in 1 of 4 chains \(chain 2, "):
        result = run(energy, HMC(torch.tensor([0.1, 0.1, 60.0, 0.1]), 3), chains=4, x_init=start, steps=60)
    assert result.divergences[2] > 30 and result.acceptance[2] < 0.5
    assert torch.isfinite(result.draws).all()


@pytest.mark.parametrize("sampler", [MALA, HMC])
def test_launches_count_the_same_divergences(sampler):
    wild = torch.tensor([0.1, 0.1, 60.0, 0.1])
    with pytest.warns(RuntimeWarning, match="divergent proposals in 1 of 4 chains"):
        whole, steps = (run(gaussian(), sampler(wild), chains=4, launch=launch) for launch in (True, False))
    assert whole.divergences[2] > 3 and torch.equal(whole.divergences, steps.divergences)


@pytest.mark.parametrize(
    ("target", "sampler", "options", "message"),
    [
        (mcmc.Energy(lambda x: x.sum()), ULA(0.1), {}, r"target: got energies of shape \[\], expected \[6\]"),
        (mcmc.Energy(lambda x: x), ULA(0.1), {}, r"target: got energies of shape \[6, 2\], expected \[6\]"),
        (mcmc.Energy(lambda x: 3.0), ULA(0.1), {}, r"target: got float, expected energies \[6\]"),
        (mcmc.Energy(lambda x: x.sum(1).long()), ULA(0.1), {}, "target: got energies of torch.int64, expected floats"),
        (mcmc.Energy(lambda x: x.detach().sum(1)), ULA(0.1), {}, "target: got an energy without a gradient in x"),
        (
            mcmc.Energy(lambda x: torch.ones(6, requires_grad=True) * 2),
            ULA(0.1),
            {},
            "target: got an energy without a gradient in x",
        ),
        (
            mcmc.Energy(lambda x: (x * float("nan")).sum(1)),
            MALA(0.1),
            {},
            "target: got no finite energy at the start of chain 0",
        ),
        (mcmc.Energy(lambda x: x.norm(dim=1)), ULA(0.1), {"x_init": torch.zeros(6, 2) / 0}, "x_init: got numbers"),
        (
            mcmc.Score(lambda x: x[:, :1]),
            ULA(0.1),
            {},
            r"target: got scores of shape \[6, 1\], expected \[6, 2\] like x",
        ),
        (
            mcmc.Score(lambda x: x),
            MALA(0.1),
            {},
            r"target: got Score\(.*\), a score alone, expected an energy for MALA",
        ),
        (lambda x: x, ULA(0.1), {}, "target: got function, expected ulam.Energy"),
        (Denoiser(lambda x, t: x, schedules.ve(0.1, 1.0)), ULA(0.1), {}, "target: got a Denoiser, expected"),
        (gaussian(), "ula", {}, "sampler: got 'ula', expected ULA"),
        (gaussian(), ULA([0.1, 0.2]), {}, "step: got 2 numbers, expected one, or one for each of 6 chains"),
        (gaussian(), ULA(0.1, preconditioner=torch.ones(3)), {}, r"preconditioner: got shape \[3\], expected \[2\]"),
        (gaussian(), ULA(0.1), {"shape": (3,)}, r"shape: got \(3,\), expected \(2,\), that of the states of Gaussian"),
        (mcmc.Energy(lambda x: x.sum(1)), ULA(0.1), {"shape": None}, "shape: got None, expected the sizes"),
        (gaussian(), ULA(0.1), {"steps": 0}, "steps: got 0, expected at least 1"),
        (gaussian(), ULA(0.1), {"thin": 20}, "thin: got 20, expected at most the 12 steps"),
        (gaussian(), ULA(0.1), {"adapt": 0.5}, "adapt: got 0.5, expected None: ULA has no Metropolis test"),
        (gaussian(), MALA(0.1), {"adapt": 1.5}, "adapt: got 1.5, expected a target acceptance"),
        (gaussian(), MALA(0.1), {"adapt": 0.5, "warmup": 0}, "adapt: got 0.5 without warm-up, expected"),
        (gaussian(), ULA(0.1), {"chains": [1, 1]}, r"chains: got .* with an id twice, expected distinct ids"),
        (gaussian(), ULA(0.1), {"slots": 0}, "slots: got 0, expected at least 1"),
        (gaussian(), ULA(0.1), {"steps": float("nan")}, "steps: got nan, expected an integer"),
        (gaussian(), ULA(0.1), {"steps": True}, "steps: got True, expected an integer"),
        (gaussian(), ULA(0.1), {"thin": "3"}, "thin: got '3', expected an integer"),
        (gaussian(), ULA(0.1), {"warmup": -1}, "warmup: got -1, expected at least 0"),
        (gaussian(), ULA(0.1), {"warmup": float("inf")}, "warmup: got inf, expected an integer"),
        (gaussian(), ULA(0.1), {"steps": 1 << 60, "thin": 1 << 60}, "steps: got 1152921504606846976, expected at most"),
        (gaussian(), ULA(0.1), {"first_step": -1}, "first_step: got -1, expected at least 0"),
        (gaussian(), ULA(0.1), {"chains": 2.0}, "chains: got 2.0, expected an integer"),
        (gaussian(), ULA(0.1), {"chains": "ab"}, "chains: got 'ab', expected an integer"),
        (gaussian(), MALA(0.1), {"adapt": True, "warmup": 5}, "adapt: got True, expected a target acceptance"),
        (gaussian(), ULA(0.1), {"x_init": [[0.0, 0.0]] * 6}, "x_init: got list, expected a float tensor"),
        (gaussian(), ULA(0.1), {"x_init": torch.zeros(6, 2) * 1j}, "x_init: got torch.complex64, expected a float"),
        (
            gaussian(),
            ULA(0.1),
            {"x_init": torch.full((6, 2), 1e300, dtype=torch.float64)},
            "x_init: got numbers that are",
        ),
        (gaussian(), BAOAB(0.1), {"v_init": torch.zeros(6, 3)}, r"v_init: got shape \[6, 3\], expected \[6, 2\]"),
        (gaussian(), ULA(0.1), {"v_init": torch.zeros(6, 2)}, "v_init: got one, expected None: ULA keeps no velocity"),
        (gaussian(), ULA(0.1), {"resume": 3}, "resume: got int, expected what ulam.mcmc.run returned"),
        (gaussian(), ULA(0.1), {"dtype": torch.bfloat16}, "dtype: got torch.bfloat16"),
        (gaussian(), ULA(0.1), {"x_init": torch.zeros(5, 2)}, r"x_init: got shape \[5, 2\], expected \[6, 2\]"),
    ],
)
def test_bad_input_gets_one_clear_line(target, sampler, options, message):
    options = {"chains": 6, "shape": (2,), **options}
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        run(target, sampler, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ULA(0.0), "step: got 0, expected a finite number above 0"),
        (lambda: MALA(-1.0), "step: got -1, expected a finite number above 0"),
        (lambda: HMC(float("nan")), "step: got nan, expected"),
        (lambda: ULA("fast"), "step: got 'fast', expected a number"),
        (lambda: ULA(0.1, temperature=-1.0), "temperature: got -1, expected a finite number of at least 0"),
        (lambda: MALA(0.1, temperature=0.0), "temperature: got 0, expected a finite number above 0"),
        (lambda: ULA(torch.tensor([0.1, 0.0])), "step: got 0, expected"),
        (lambda: ULA(0.1, preconditioner=torch.tensor([1.0, -1.0])), "preconditioner: got .*, expected a tensor"),
        (lambda: ULA(0.1, clip=(1.0, 0.0)), r"clip: got \(1.0, 0.0\), expected None or a pair"),
        (lambda: BAOAB(0.1, friction=-1.0), "friction: got -1, expected"),
        (lambda: HMC(0.1, leapfrog=0), "leapfrog: got 0, expected at least 1"),
        (lambda: HMC(0.1, jitter=1.0), r"jitter: got 1.0, expected a number in \[0, 1\)"),
        (lambda: HMC(0.1, jitter=float("nan")), "jitter: got nan, expected"),
        (lambda: HMC(0.1, jitter=True), "jitter: got true or false, expected real numbers"),
        (lambda: ULA(torch.tensor([0.1 + 1j])), "step: got complex numbers, expected real numbers"),
        (lambda: MALA(0.1, temperature=1j), "temperature: got complex numbers"),
        (lambda: ULA([True, True]), "step: got true or false"),
        (lambda: ULA(0.1, preconditioner=torch.ones(2) * 1j), "preconditioner: got complex numbers"),
        (lambda: ULA(0.1, noise_scale=np.array([1j])), "noise_scale: got complex numbers"),
        (lambda: ULA(0.1, clip=("a", "b")), "clip: got 'a', expected a number"),
        (lambda: ULA(0.1, clip=(float("nan"), 1.0)), r"clip: got \(nan, 1.0\), expected None or a pair"),
        (lambda: mcmc.ParallelTempering(ULA(0.1), [1.0, 2 + 1j]), "temperatures: got complex numbers"),
        (lambda: mcmc.Gaussian([1j, 0.0]), "mean: got complex numbers"),
        (lambda: mcmc.Gaussian([0.0], torch.tensor([1 + 1j])), "covariance: got complex numbers"),
        (lambda: mcmc.GaussianMixture([[0.0]], 1.0, torch.tensor([1j])), "weights: got complex numbers"),
        (lambda: mcmc.GaussianMixture([[0.0]], [1.0, 2.0]), r"std: got shape \[2\], expected a number or \[1\]"),
        (lambda: mcmc.DoubleWell(1, height="2"), "height: got '2', expected a number"),
        (lambda: SGLD(0.1, delay=0.0), "delay: got 0, expected"),
        (lambda: mcmc.ParallelTempering(ULA(0.1), [2.0, 1.0]), "temperatures: got"),
        (lambda: mcmc.ParallelTempering(ULA(0.1, 2.0), [1.0, 2.0]), "temperature: got 2.0, expected 1"),
        (lambda: mcmc.Energy(3), "fn: got 3, expected a function"),
        (lambda: mcmc.Gaussian([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]]), "covariance: got one that is not positive"),
        (lambda: mcmc.GaussianMixture([[0.0]], 0.0), "std: got"),
        (lambda: mcmc.Rosenbrock(3), "dimension: got 3, expected an even number"),
        (lambda: mcmc.DoubleWell(0), "dimension: got 0, expected at least 1"),
    ],
)
def test_bad_samplers_and_densities_get_one_clear_line(make, message):
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_effective_sample_size_of_a_known_autocorrelation():
    """ULA on N(0, 1) is AR(1) with rho = 1 - h: the ESS of n draws is n (1 - rho) / (1 + rho)."""
    pytest.importorskip("arviz", reason="diagnostics are ArviZ's")
    h, chains, draws = 0.3, 8, 20_000
    options = {"chains": chains, "warmup": 100, "steps": draws, "thin": 1}
    result = run(mcmc.Gaussian([0.0]), ULA(h), **options)
    exact = chains * draws * h / (2 - h)
    assert abs(float(result.ess()[0]) / exact - 1) < 0.1
    table = result.summary()
    assert abs(float(table["r_hat"].iloc[0]) - 1) < 1e-3
    deviation = (1 / (1 - h / 2)) ** 0.5
    assert abs(float(table["sd"].iloc[0]) - deviation) < 0.02
    assert abs(float(table["mcse_mean"].iloc[0]) / (deviation / exact**0.5) - 1) < 0.1
    data = result.to_arviz()
    assert data.posterior["x"].shape == (chains, draws, 1)
    np.testing.assert_array_equal(data.sample_stats["lp"].values, -result.energies.numpy())


def test_only_moments_cannot_go_to_arviz():
    with pytest.raises(ValueError, match="draws: got moments alone, expected those of a run with store=True"):
        run(gaussian(), ULA(0.1), store=False).to_arviz()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup": 1 << 70}, "warmup: got 1180591620717411303424, expected at most 2^60"),
        ({"first_step": 1 << 70}, "first_step: got 1180591620717411303424, expected at most 2^60"),
        ({"steps": 1 << 70}, "steps: got 1180591620717411303424, expected at most 2^60"),
        ({"steps": 1 << 50}, "steps: got 1125899906842624 draws of 4 chains of [1], expected what fits into memory: a"),
        ({"thin": 1 << 70}, "thin: got 1180591620717411303424, expected at most the 1000 steps"),
        ({"chains": 1 << 70}, "chains: got 1180591620717411303424, expected 1 to 2^40"),
        ({"chains": 1 << 39}, "chains: got 549755813888, expected as many as memory holds"),
        ({"chains": range(1 << 70)}, "chains: got range(0, 1180591620717411303424), expected ids in [0, 2^63)"),
        ({"chains": range(1 << 63)}, "chains: got range(0, 9223372036854775808), expected at most 2^40 of them"),
        (
            {"shape": (1 << 30,), "chains": 1 << 20},
            "chains: got 1048576 of [1073741824] in a batch, expected what fits",
        ),
        (
            {"steps": 1 << 40, "store": False, "observables": {"r": lambda x: x}},
            "steps: got 1099511627776 draws of observables, expected what fits into memory: a larger thin=",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_numbers_without_end_are_named(options, message):
    target = mcmc.Energy(lambda x: x.square().sum(1))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        mcmc.run(target, MALA(0.1), **{"shape": (1,), "progress": False, **options})


def test_a_step_of_too_many_bits_is_asked_for_as_a_float():
    with pytest.raises(
        ValueError, match=r"^step: got 1180591620717411303424, expected a float where a number has more"
    ):
        MALA(1 << 70)
    assert MALA(float(1 << 70)).step == 2.0**70
