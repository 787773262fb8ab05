"""Warm-up in runs: exact laws after it, what it finds, the same bits again and in parts, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch

from chain_laws import COVARIANCE, MEAN, check_law, gaussian, rowwise
from chain_runs import curved, same
from ulam import mcmc
from ulam.mcmc import GHMC, HMC, MALA, MALT, MAMS, NUTS, Warmup

STEPLESS = [NUTS(), HMC(), HMC(leapfrog=3), MALA(), MALT(leapfrog=4), GHMC(), MAMS()]
MOST_STEPLESS = [*STEPLESS[:-1], pytest.param(MAMS(), marks=pytest.mark.long)]


def run(target, sampler, **options):
    defaults = {"chains": 16, "steps": 4, "warmup": 60, "seed": 7, "progress": False}
    return mcmc.run(target, sampler, **{**defaults, **options})


@pytest.mark.parametrize("sampler", STEPLESS, ids=repr)
def test_the_law_after_a_warm_up_is_exact(sampler):
    """1,000 chains, which are independent once their step, mass and path stay."""
    warmup, steps = (150, 150) if isinstance(sampler, (MALA, GHMC)) else (40, 10)
    chains = run(gaussian(), sampler, chains=1000, warmup=warmup, steps=steps, thin=steps)
    check_law(chains.x, MEAN, COVARIANCE)
    assert sampler.rate - 0.12 < float(chains.acceptance.mean()) < 0.995  # the harmonic mean is below this one


@pytest.mark.parametrize("sampler", STEPLESS, ids=repr)
def test_the_mass_is_that_of_the_density(sampler):
    """Scales 10 and 0.1: variances within 4 standard errors of 640 independent draws, and a step for unit scales."""
    sd = torch.tensor([10.0, 0.1, 1.0])
    chains = run(mcmc.Gaussian(torch.zeros(3), torch.diag(sd.double() ** 2)), sampler, chains=64, warmup=250)
    ratio = torch.as_tensor(chains.tuning.preconditioner) / sd.double() ** 2
    assert float((ratio - 1).abs().max()) < 4 * math.sqrt(2 / 640)
    assert 0.2 < chains.tuning.step < 4.0
    assert chains.tuning.gradients >= 64 * 250 and 0.3 < chains.tuning.acceptance < 1


@pytest.mark.parametrize("launch", [True, False])
@pytest.mark.parametrize("sampler", MOST_STEPLESS, ids=repr)
def test_the_same_bits_again_and_in_parts(sampler, launch):
    for target, options in ((gaussian(), {}), (mcmc.Energy(curved), {"shape": (2,)})):
        options = {**options, "launch": launch}
        whole, again, first = (run(target, sampler, steps=steps, **options) for steps in (9, 9, 4))
        assert same(whole, again)
        second = mcmc.run(target, sampler, resume=first, steps=5, launch=launch, progress=False)
        assert torch.equal(torch.cat([first.draws, second.draws], 1), whole.draws)
        assert second.tuning is first.tuning
        third = mcmc.run(
            target, first.tuning.sampler, chains=first.ids, seed=7, steps=5, launch=launch, progress=False,
            x_init=first.x, v_init=first.v, first_step=first.next_step,
        )  # fmt: skip
        assert same(second, third)


@pytest.mark.parametrize("sampler", MOST_STEPLESS, ids=repr)
def test_chains_that_warm_up_alone_are_their_own(sampler):
    for target, options in ((gaussian(), {}), (mcmc.Energy(curved), {"shape": (2,)})):
        options = {**options, "adapt": "chain"}
        many = run(target, sampler, steps=6, **options)
        assert same(run(target, sampler, chains=[5], steps=6, **options), many, slice(5, 6))
        parts = run(target, sampler, steps=6, slots=3, **options)
        assert same(parts, many) and parts.tuning.gradients == many.tuning.gradients
        assert float(many.step.std()) > 0 and torch.equal(torch.as_tensor(many.tuning.step), many.step)
        first = run(target, sampler, steps=2, **options)
        second = mcmc.run(target, sampler, resume=first, steps=4, progress=False)
        assert torch.equal(torch.cat([first.draws, second.draws], 1), many.draws)
        assert many.tuning.gradients > 16 * 60 and 0.2 < many.tuning.acceptance < 1


@pytest.mark.parametrize("launch", [True, False])
@pytest.mark.parametrize("store", [True, False])
def test_trees_adapt_alone_whatever_grows_them(launch, store):
    for target in (gaussian(), mcmc.Energy(curved)):
        options = {"shape": (2,), "adapt": 0.8, "steps": 30, "launch": launch, "store": store}
        chains = run(target, NUTS(0.01), **options)
        assert float(chains.step.min()) > 0.1 and float(chains.step.std()) > 0


@pytest.mark.filterwarnings("ignore:adapt. the step fell", "ignore:.*divergent proposals")
@pytest.mark.parametrize("sampler", STEPLESS, ids=repr)
def test_gradients_of_chains_that_warm_up_alone_are_the_sum_of_their_own(sampler):
    """Chains as far apart as a step that grows tenfold and one that shrinks, against calls for each chain alone."""
    options = {"shape": (2,), "adapt": "chain", "warmup": 8, "steps": 1}
    scales, calls = torch.tensor([[0.03], [1.0], [30.0]]), 0

    def energy(x, scale):
        nonlocal calls
        calls += 1
        return curved(x / scale)

    def found(rows):
        of = mcmc.Energy(energy, cond={"scale": scales[rows]})
        return mcmc.run(of, sampler, chains=rows, seed=2, progress=False, **options)

    alone = []
    for row in range(3):
        before, made = calls, found([row])
        after_warm_up = calls - before - 1 - (int(made.leapfrogs.sum()) if made.leapfrogs is not None else 0)
        alone.append(made.tuning.gradients)
        if isinstance(sampler, NUTS):  # a start, and the leaps of the run
            assert alone[-1] == after_warm_up
    assert found([0, 1, 2]).tuning.gradients == sum(alone) and len({*alone}) > 1


def test_chain_is_the_samplers_own_rate():
    assert same(run(gaussian(), MALA(3.0), adapt="chain"), run(gaussian(), MALA(3.0), adapt=0.574))
    assert run(gaussian(), MALA(3.0), adapt=0.574).tuning is None


@pytest.mark.filterwarnings("ignore:.*divergent proposals", "ignore:adapt. the step fell")
@pytest.mark.parametrize("sampler", [*STEPLESS, NUTS(0.3), HMC(0.1)], ids=repr)
@pytest.mark.parametrize("warmup", [1, 2, 19, 20])
@pytest.mark.parametrize("chains", [1, 3])
def test_short_warm_ups_of_few_chains(sampler, warmup, chains):
    for adapt in ("pooled", "chain"):
        made = run(rowwise(gaussian()), sampler, shape=(2,), warmup=warmup, chains=chains, adapt=adapt)
        assert bool(torch.isfinite(made.draws).all()) and bool((made.step > 0).all())
        assert made.next_step == warmup + 4


@pytest.mark.parametrize("sampler", [s for s in STEPLESS if not isinstance(s, MAMS)], ids=repr)
def test_one_dimension(sampler):
    chains = run(mcmc.Gaussian([2.0], [[9.0]]), sampler, chains=500, warmup=100, steps=100, thin=100)
    assert abs(float(chains.x.mean()) - 2) < 4 * 3 / math.sqrt(500)


def test_a_step_that_is_given_may_be_pooled_too():
    chains = run(gaussian(), HMC(50.0, 2), chains=64, warmup=100, adapt="pooled")
    assert chains.tuning.sampler.leapfrog == 2 and chains.tuning.step < 3
    assert torch.equal(chains.step, torch.full((64,), chains.tuning.step, dtype=torch.float64))


def test_a_rate_and_a_mass_of_ones_own():
    few, many = (
        run(gaussian(), HMC(leapfrog=3), chains=64, warmup=300, steps=50, adapt=Warmup(rate=rate, mass=None))
        for rate in (0.6, 0.95)
    )
    assert few.tuning.preconditioner is None and many.tuning.step < few.tuning.step
    assert abs(float(many.acceptance.mean()) - 0.95) < 0.03


def test_paths_of_hmc_grow_where_elements_are_correlated():
    """Correlations of 0.9 in 10 dimensions, which no diagonal mass takes away: sqrt(9.1) units the long way."""
    covariance = 0.1 * torch.eye(10) + 0.9
    lengths = [
        float(run(mcmc.Gaussian(torch.zeros(10), c), HMC(), chains=64, warmup=300).tuning.path)
        for c in (torch.eye(10), covariance)
    ]
    assert 0.8 < lengths[0] < 3 and lengths[1] > 1.5 * lengths[0]


def test_float64_and_moments():
    made = run(rowwise(gaussian()), NUTS(), shape=(2,), dtype=torch.float64, store=False)
    assert made.moments.shape == (16, 2, 2) and made.tuning.preconditioner.dtype == torch.float64


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        (mcmc.ULA(0.1), {"adapt": "pooled"}, "adapt: got 'pooled', expected None: ULA has no Metropolis test"),
        (MALA(0.1), {"adapt": "both"}, "adapt: got 'both', expected a target acceptance in (0, 1), \"chain\""),
        (MALA(0.1), {"adapt": "pooled", "warmup": 0}, "adapt: got 'pooled' without warm-up, expected"),
        (MALA(), {"warmup": 0}, "adapt: got 'pooled' without warm-up, expected"),
        (NUTS(), {"slots": 3}, "slots: got 3, expected None or the number of chains, 16, where all warm up together"),
        (
            mcmc.ParallelTempering(MALA(0.1), [1.0, 2.0]),
            {"adapt": "pooled"},
            "adapt: got 'pooled', expected a target acceptance",
        ),
    ],
    ids=["ula", "name", "no warm-up", "no step", "slots", "tempering"],
)
def test_what_is_refused(sampler, options, message):
    with pytest.raises(ValueError) as caught:
        run(rowwise(gaussian()), sampler, shape=(2,), **options)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_samplers_without_a_step_are_refused_where_nothing_warms_up():
    with pytest.raises(ValueError, match="step: got None, expected a step size for HMC under ParallelTempering"):
        mcmc.ParallelTempering(HMC(), [1.0, 2.0])
    with pytest.raises(ValueError, match="step: got None, expected a step size for MALA in persistent chains"):
        ulam_ebm_chains(MALA())
    with pytest.raises(TypeError, match="step: got None"):
        mcmc.BAOAB(None)


def ulam_ebm_chains(sampler):
    from ulam.ebm import PersistentChains

    return PersistentChains(4, (2,), sampler)


def test_a_chain_that_starts_nowhere_is_named():
    target = mcmc.Energy(lambda x: x.log().sum(1))
    with pytest.raises(ValueError, match=r"target: got no finite .* at the start of chain"):
        run(target, NUTS(), shape=(2,))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rate": 1.0}, "rate: got 1.0, expected a target acceptance"),
        ({"mass": "dense"}, 'mass: got \'dense\', expected "diagonal", "low-rank" or None'),
        ({"mass": 1}, "mass: got"),
    ],
    ids=["rate", "dense", "number"],
)
def test_settings_that_are_wrong(given, message):
    with pytest.raises(ValueError) as caught:
        Warmup(**given)
    assert str(caught.value).startswith(message)
