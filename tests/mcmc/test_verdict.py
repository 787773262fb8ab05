"""Verdicts on chains: their numbers against ArviZ and formulas, the causes they name, and what goes to ArviZ."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

import ulam
from ulam import mcmc
from ulam.mcmc import HMC, MALA, ULA
from ulam.mcmc.verdicts import statistics
from ulam.mcmc.verdicts.causes import modes

arviz = pytest.importorskip("arviz", reason="verdicts are by ArviZ's statistics")

TOLD = {1.009: None, 1.01004: "R-hat 1.01004 (x)", 1.0112: "R-hat 1.011 (x)"}
NORMAL = mcmc.Gaussian(torch.zeros(2))


@pytest.mark.parametrize("value", TOLD)
def test_a_number_that_fails_is_not_printed_as_its_limit(value):
    good = statistics.Worst(1e4, "x")
    said = statistics.failures(statistics.Worst(value, "x"), good, good)
    assert said == ([] if TOLD[value] is None else [f"{TOLD[value]}, expected at most 1.01"])


def run(target, sampler, **options):
    """A run without its own warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mcmc.run(target, sampler, **{"progress": False, "seed": 3, **options})


def failing(chains):
    """The verdict, whose warning is its headline and its cause."""
    with pytest.warns(RuntimeWarning, match="^verdict: failed: ") as caught:
        verdict = chains.verdict()
    (message,) = (str(one.message) for one in caught)
    assert message == f"verdict: {verdict.headline}; {verdict.cause}" and "\n" not in message
    assert str(verdict.cause) in str(verdict) and not verdict.passed
    return verdict


# --------------------------------------------------------------------------------------------- numbers


def test_a_verdict_has_the_numbers_of_arviz():
    chains = run(mcmc.Gaussian(torch.zeros(3)), HMC(0.5, 4), chains=8, warmup=100, steps=2000)
    verdict, data = chains.verdict(), chains.to_arviz()
    assert verdict.passed and verdict.cause is None and verdict.failed == ()
    of_energy = arviz.convert_to_dataset({"energy": chains.energies.numpy()})
    for worst, statistic, choose in (
        (verdict.rhat, arviz.rhat, max),
        (verdict.ess_bulk, arviz.ess, min),
        (verdict.ess_tail, lambda given: arviz.ess(given, method="tail"), min),
    ):
        values = dict(zip(("x[0]", "x[1]", "x[2]"), statistic(data)["x"].values, strict=True))
        values["energy"] = float(statistic(of_energy)["energy"])
        assert worst.where == choose(values, key=values.get)
        assert worst.value == pytest.approx(values[worst.where], rel=1e-12)
    lowest = arviz.bfmi(data)
    assert verdict.bfmi.value == pytest.approx(lowest.min(), rel=1e-12)
    assert verdict.bfmi.where == f"chain {lowest.argmin()}"
    error = (arviz.mcse(data)["x"].values / chains.draws.double().flatten(0, 1).std(0).numpy()).max()
    assert verdict.mcse.value >= error * (1 - 1e-3)  # of the elements and the energy
    assert str(verdict).startswith("passed\nR-hat 1.00")


def test_the_steps_that_would_do_are_those_of_theory():
    """ULA is AR(1): half a chain has an ESS of n h / (2 - h) / 2, and R-hat^2 - 1 is one over it [Vehtari 2021]."""
    h, chains, steps = 0.05, 400, 1000
    verdict = failing(run(mcmc.Gaussian([0.0]), ULA(h), chains=chains, warmup=200, steps=steps))
    assert verdict.cause.name == "slow"
    exact = 2 * (2 - h) / (steps * h) / (1.01**2 - 1)
    deviation = (2 / (2 * chains)) ** 0.5  # of a variance of twice as many halves
    assert abs(verdict.more / exact - 1) < 4 * deviation
    longer = run(mcmc.Gaussian([0.0]), ULA(h), chains=chains, warmup=200, steps=steps * 8, thin=8)
    assert longer.verdict().passed


@pytest.mark.parametrize("chains, steps", [(1, 1000), (8, 3)])
def test_too_few_chains_or_draws_are_no_evidence(chains, steps):
    verdict = failing(run(NORMAL, MALA(0.5), chains=chains, warmup=10, steps=steps))
    assert verdict.cause.name == "few" and np.isnan(verdict.rhat.value)
    assert f"{chains} chains of {steps} draws" in str(verdict)


def test_large_states_are_looked_at_in_part():
    chains = run(ulam.Energy(lambda x: x.square().flatten(1).sum(1) / 2), MALA(0.5), shape=(20, 15), chains=4, steps=8)
    verdict = failing(chains)
    assert len(verdict.table) == 257 and "256 of 300 elements were looked at, evenly spaced" in verdict.notes
    assert [verdict.table.index[i] for i in (0, 255, 256)] == ["x[0, 0]", "x[19, 14]", "energy"]
    assert len({*verdict.table.index}) == 257


def test_draws_are_needed():
    with pytest.raises(ValueError, match="draws: got moments alone, expected those of a run with store=True"):
        run(NORMAL, MALA(0.5), steps=9, store=False).verdict()


def test_a_summary_warns_of_what_fails():
    slow = run(NORMAL, MALA(0.01), steps=100)
    with pytest.warns(
        RuntimeWarning, match="^summary: R-hat .*, expected at most 1.01; bulk ESS .*: verdict\\(\\) says"
    ):
        slow.summary()
    assert "r_hat" not in slow.summary(kind="stats")
    run(NORMAL, HMC(0.5, 4), chains=8, warmup=100, steps=1000).summary()


# --------------------------------------------------------------------------------------------- causes


def two_modes(distance):
    return mcmc.GaussianMixture([[-distance, 0.0], [distance, 0.0]], 1.0)


@pytest.mark.parametrize("sampler", [MALA(0.7), HMC(0.5, 4), ULA(0.2)], ids=repr)
def test_separate_modes_are_named(sampler):
    apart = run(two_modes(5.0), sampler, chains=16, warmup=100, steps=500)
    assert failing(apart).cause.name == "modes"
    together = run(two_modes(0.5), sampler, chains=16, warmup=100, steps=5000, thin=5)
    assert together.verdict().passed


def test_chains_that_stand_still_are_not_modes():
    """Their draws do not vary, so that ArviZ gives each an effective sample size of all of them."""
    generator = torch.Generator().manual_seed(1)
    places, noise = 10 * torch.randn(16, 1, generator=generator), torch.randn(16, 200, generator=generator)
    assert modes(places + noise).name == "modes"
    assert modes(places.expand(16, 200)) is None
    assert modes(places + noise[:, :5].repeat_interleave(40, 1)) is None
    assert modes(noise) is None


@pytest.mark.parametrize("seed", range(5))
def test_chains_that_diffuse_slowly_are_not_modes(seed):
    """Whether they hardly move, or move by a tenth of the way."""
    for step in (1e-3, 1e-2, 1e-1):
        verdict = failing(run(NORMAL, MALA(step), chains=16, steps=200, seed=seed))
        assert verdict.cause.name == "slow"


WRONG = {
    "gaussian": lambda x: -x.square().sum(1) / 2,
    "soft": lambda x: -(1 + x.square()).sqrt().sum(1),
    "linear": lambda x: x.sum(1),
    "quartic": lambda x: -x.square().sum(1).square() / 4,
}


@pytest.mark.parametrize("sampler, adapt", [(MALA(0.1), None), (MALA(0.1), 0.574), (HMC(0.1), 0.8)], ids=repr)
@pytest.mark.parametrize("name", WRONG)
def test_energies_that_fall_without_end_are_named(name, sampler, adapt):
    chains = run(ulam.Energy(WRONG[name]), sampler, shape=(2,), chains=16, warmup=200, steps=400, adapt=adapt)
    verdict = failing(chains)
    assert verdict.cause.name == "runaway"
    assert "the energy falls the farther out the states are" in verdict.cause.found
    assert "the other sign" in verdict.cause.to_try


def test_states_that_grow_without_bound_are_named():
    flat = ulam.Energy(lambda x: 0 * x.sum(1))
    for target, options in (
        (flat, {"adapt": 0.574, "warmup": 300}),  # ever larger steps
        (mcmc.Score(lambda x: 0.02 * x), {}),
    ):
        sampler = MALA(0.1) if options else ULA(0.1)
        verdict = failing(run(target, sampler, shape=(2,), chains=16, steps=1000, **options))
        assert verdict.cause.name == "runaway" and verdict.cause.found.startswith("states run away: states as far as")


@pytest.mark.parametrize(
    "target",
    [NORMAL, two_modes(4.0), mcmc.DoubleWell(2), mcmc.Rosenbrock(), mcmc.Funnel(), mcmc.Ring(),
     mcmc.Gaussian(torch.zeros(2), torch.tensor([1e4, 1.0])), mcmc.Gaussian(torch.zeros(100))],
    ids=["normal", "modes", "double-well", "rosenbrock", "funnel", "ring", "wide", "high"],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(3))
def test_proper_densities_do_not_run_away(target, seed):
    """However badly they are sampled: none has an energy that falls outwards."""
    for sampler, adapt in ((MALA(0.1), 0.574), (MALA(0.01), None), (HMC(0.1), None)):
        chains = run(target, sampler, chains=16, warmup=200, steps=400, adapt=adapt, seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            verdict = chains.verdict()
        assert verdict.passed or verdict.cause.name != "runaway"


def test_chains_that_left_the_finite_numbers_fail():
    """Statistics are those of the others."""
    step = torch.tensor([0.5] * 6 + [3.0, 3.0])
    chains = run(mcmc.Gaussian([0.0]), ULA(step), chains=8, warmup=50, steps=1500)
    verdict = failing(chains)
    assert verdict.failed == ("2 of 8 chains left the finite numbers, expected none",)
    assert verdict.divergences == 2 and verdict.cause.name == "divergences"
    others = arviz.rhat(chains.draws[:6, :, 0].numpy().astype(np.float64))
    assert verdict.table.loc["x[0]", "r_hat"] == pytest.approx(others, abs=1e-4)
    assert any("without a Metropolis test" in note for note in verdict.notes)


# --------------------------------------------------------------------------------------------- divergences


def wall(x):
    """N(0, 1) cut at 1: beyond it the energy is infinite, and every proposal there diverges."""
    return torch.where(x[:, 0] < 1, x.square().sum(1) / 2, float("inf"))


START = {"x_init": torch.zeros(6, 2), "chains": 6}


@pytest.mark.parametrize("sampler", [MALA(0.3), HMC(0.5, 3)], ids=repr)
def test_divergences_are_recorded_where_they_began(sampler):
    chains = run(ulam.Energy(wall), sampler, warmup=10, steps=200, **START)
    assert torch.equal(chains.diverging.sum(1), chains.divergences) and int(chains.divergences.sum()) > 50
    later = chains.diverging[:, 1:]
    assert torch.equal(chains.draws[:, 1:][later], chains.draws[:, :-1][later])  # rejected: the state is the one before
    verdict = failing(chains)
    assert verdict.cause.name == "divergences" and verdict.divergence_rate > 1e-3
    assert torch.equal(verdict.divergent, chains.diverging.nonzero())
    chain, draw = verdict.divergent[0].tolist()
    place = ", ".join(f"{value:.3g}" for value in chains.draws[chain, draw].tolist())
    assert f"divergences at {len(verdict.divergent)} draws: see verdict.divergent; first near x = [{place}]" in str(
        verdict
    )


def test_thinned_draws_have_the_divergences_on_the_way_to_them():
    every = run(ulam.Energy(wall), MALA(0.3), warmup=10, steps=200, **START)
    fifth = run(ulam.Energy(wall), MALA(0.3), warmup=10, steps=200, thin=5, **START)
    assert torch.equal(fifth.draws, every.draws[:, 4::5])
    assert torch.equal(fifth.diverging, every.diverging.view(6, 40, 5).any(2))
    batches = run(ulam.Energy(wall), MALA(0.3), warmup=10, steps=200, slots=4, **START)
    assert torch.equal(batches.diverging, every.diverging)


def test_tempered_draws_have_those_of_the_first_temperature():
    chains = run(ulam.Energy(wall), mcmc.ParallelTempering(MALA(0.3), [1.0, 3.0]), steps=200, **START)
    assert torch.equal(chains.diverging.sum(1), chains.divergences) and int(chains.divergences.sum()) > 50


def test_launches_know_counts_alone():
    options = {"chains": 64, "steps": 300, "seed": 0}
    launched, stepped = (run(mcmc.Rosenbrock(), MALA(0.1), launch=launch, **options) for launch in (True, False))
    assert launched.diverging is None and torch.equal(launched.draws, stepped.draws)
    assert torch.equal(stepped.diverging.sum(1), launched.divergences)
    verdict = failing(launched)
    assert verdict.divergent is None and any("launch=False" in note for note in verdict.notes)
    assert "diverging" not in launched.to_arviz().sample_stats
    np.testing.assert_array_equal(stepped.to_arviz().sample_stats["diverging"].values, stepped.diverging.numpy())


# --------------------------------------------------------------------------------------------- energies of paths


@pytest.mark.parametrize("launch", [True, False])
@pytest.mark.parametrize("temperature", [1.0, [0.5, 2.0, 3.0]])
def test_the_energy_is_that_with_which_the_next_path_begins(launch, temperature):
    """One short leap shows the momentum: x' - x = sqrt(P) (h v + h^2 / 2 sqrt(P) s)."""
    h, mass = 1e-3, torch.tensor([4.0, 0.25])
    sampler = HMC(h, 1, temperature=temperature, preconditioner=mass, jitter=0.0)
    options = {"chains": [4, 9, 2], "first_step": 5, "warmup": 7, "launch": launch, "dtype": torch.float64}
    if launch:
        options["dtype"] = torch.float32
    chains = run(NORMAL, sampler, steps=30, **options)
    assert float(chains.acceptance.min()) > 0.96
    x = chains.draws.double()
    moved = (x[:, 1:] - x[:, :-1] + h * h / 2 * mass * x[:, :-1]) / (h * mass.double().sqrt())
    accepted = (x[:, 1:] != x[:, :-1]).all(2)
    found = torch.from_numpy(chains.to_arviz().sample_stats["energy"].values.copy())[:, :-1]
    expected = chains.energies[:, :-1] + moved.square().sum(2) / 2
    assert torch.allclose(found[accepted], expected[accepted], rtol=5e-3 if launch else 1e-5)
    more = run(NORMAL, sampler, steps=10, resume=chains)
    whole = run(NORMAL, sampler, steps=40, **options)
    both = [part.to_arviz().sample_stats["energy"].values for part in (chains, more)]
    np.testing.assert_array_equal(np.concatenate(both, 1), whole.to_arviz().sample_stats["energy"].values)


def test_the_energy_of_nuts_is_that_of_its_momentum():
    """As above for one leap, forwards or backwards in time: x' = x +- h v + h^2 / 2 s."""
    h = 1e-3
    chains = run(NORMAL, mcmc.NUTS(h, max_depth=1), chains=[7, 3], warmup=5, steps=60, dtype=torch.float64)
    x, found = chains.draws, torch.from_numpy(chains.to_arviz().sample_stats["energy"].values.copy())[:, :-1]
    moved = (x[:, 1:] - x[:, :-1] + h * h / 2 * x[:, :-1]) / h
    leapt = (x[:, 1:] != x[:, :-1]).all(2)
    assert int(leapt.sum()) > 40
    expected = chains.energies[:, :-1] + moved.square().sum(2) / 2
    assert torch.allclose(found[leapt], expected[leapt], rtol=1e-5)


def test_a_funnel_has_a_low_bfmi_and_a_gaussian_has_not():
    funnel = failing(run(mcmc.Funnel(), HMC(0.1, 10), chains=16, warmup=200, steps=1000))
    assert funnel.bfmi.value < 0.3 and any(note.startswith("E-BFMI ") for note in funnel.notes)
    normal = run(NORMAL, HMC(0.5, 4), chains=16, warmup=100, steps=1000).verdict()
    assert normal.bfmi.value > 0.7 and normal.notes == ()


@pytest.mark.parametrize(
    "sampler, options, why",
    [
        (MALA(0.5), {}, "MALA has no paths from fresh momenta that keep their energy"),
        (mcmc.BAOAB(0.5), {}, "BAOAB has no paths"),
        (mcmc.MALT(0.5, 4), {}, "MALT has no paths from fresh momenta that keep their energy"),
        (mcmc.ParallelTempering(HMC(0.5), [1.0, 2.0]), {}, "ParallelTempering has no paths"),
        (HMC(0.5), {"thin": 2}, "it needs the energy of every state, and thinning leaves some out"),
    ],
    ids=repr,
)
def test_where_there_is_no_bfmi_it_is_said(sampler, options, why):
    chains = run(NORMAL, sampler, chains=8, warmup=100, steps=2000, **options)
    verdict = chains.verdict()
    assert verdict.bfmi is None and verdict.bfmi_note.startswith(why) and f"no E-BFMI: {why}" in str(verdict)
    assert "energy" not in chains.to_arviz().sample_stats


# --------------------------------------------------------------------------------------------- what goes to ArviZ


def test_statistics_of_draws():
    chains = run(NORMAL, HMC(0.3, 3), chains=3, warmup=50, steps=20, adapt=0.8)
    chains.tree_depth, chains.leapfrogs = torch.full((3, 20), 2), torch.full((3, 20), 3)
    stats = chains.to_arviz().sample_stats
    np.testing.assert_array_equal(stats["lp"].values, -chains.energies.numpy())
    for name, values in (("step_size", chains.step), ("acceptance_rate", chains.acceptance)):
        np.testing.assert_array_equal(stats[name].values, values[:, None].expand(3, 20).numpy())
    assert (stats["tree_depth"].values == 2).all() and (stats["n_steps"].values == 3).all()
    fixed = run(mcmc.Score(torch.neg), mcmc.SGLD(0.1), shape=(2,), steps=9).to_arviz()
    assert "sample_stats" not in fixed.groups()


def test_names_coordinates_and_dimensions():
    chains = run(ulam.Energy(lambda x: x.square().flatten(1).sum(1)), MALA(0.2), shape=(2, 3), chains=2, steps=5)
    data = chains.to_arviz("w", {"row": ["a", "b"]}, ["row", "column"]).posterior
    assert data["w"].dims == ("chain", "draw", "row", "column") and list(data["row"].values) == ["a", "b"]
    np.testing.assert_array_equal(data["w"].sel(row="b").values, chains.draws[:, :, 1].numpy())
    flat = run(NORMAL, MALA(0.2), chains=2, steps=5)
    named = flat.to_arviz(names=["mu", "tau"]).posterior
    assert list(named.data_vars) == ["mu", "tau"]
    np.testing.assert_array_equal(named["tau"].values, flat.draws[:, :, 1].numpy())


@pytest.mark.parametrize(
    "given, error, message",
    [
        ({"names": ["a"]}, ValueError, "names: got .*, expected one name, or one for each element"),
        ({"names": ["a", "a"]}, ValueError, "names: got .* all different"),
        ({"names": 3}, TypeError, "names: got 3, expected one name"),
        ({"names": ["a", 2]}, TypeError, "names: got"),
        ({"names": "chain"}, ValueError, "names: got 'chain', expected another name"),
        (
            {"names": ["a", "b"], "dims": ["c"]},
            ValueError,
            "dims: got .* beside a name for each element, expected None",
        ),
        ({"dims": "c"}, TypeError, "dims: got 'c', expected 1 names, one for each axis"),
        ({"dims": ["c", "d"]}, ValueError, "dims: got"),
        ({"dims": ["draw"]}, ValueError, "dims: got .* not chain or draw"),
        ({"coords": {"c": [1, 2]}}, ValueError, "coords: got 'c', expected names of dims: none given"),
        ({"coords": {"c": [1]}, "dims": ["c"]}, ValueError, "coords: got .* for c, expected 2 labels"),
        ({"coords": {"c": "ab"}, "dims": ["c"]}, ValueError, "coords: got 'ab' for c, expected 2 labels"),
        ({"coords": [1]}, TypeError, "coords: got"),
    ],
    ids=repr,
)
def test_bad_names_get_one_clear_line(given, error, message):
    with pytest.raises(error, match=message) as caught:
        run(NORMAL, MALA(0.2), chains=2, steps=5).to_arviz(**given)
    assert "\n" not in str(caught.value)


def test_what_arviz_says_once_a_day_is_not_said(tmp_path):
    """As by `ulam mcmc`; where it keeps the day is a folder that is empty."""
    command = [sys.executable, "-W", "error::FutureWarning", "-c", "from ulam.mcmc.arviz_data import arviz; arviz()"]
    done = subprocess.run(
        command, env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)}, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.rglob("daily_warning"))
