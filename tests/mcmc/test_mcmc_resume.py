"""Runs that go on from others: n steps and then m have the bits of n + m, for every sampler, thinning and batch."""

from __future__ import annotations

import pickle
import warnings

import pytest
import torch
from torch.distributions import constraints

from chain_laws import gaussian
from chain_runs import SAMPLERS, curved
from ulam import mcmc
from ulam.mcmc import BAOAB, GHMC, HMC, MALA, NUTS, SGLD, ULA, Interval, Parameter, Positive, Real

TARGETS = {"density": gaussian(), "energy": mcmc.Energy(curved)}


def run(target, sampler, **options):
    return mcmc.run(target, sampler, **{"chains": 5, "shape": (2,), "seed": 7, "progress": False, **options})


def go_on(target, sampler, first, **options):
    return mcmc.run(target, sampler, resume=first, progress=False, **options)


def check_same(parts, whole):
    """Assert that these runs, each resuming the one before, are ``whole``."""
    assert torch.equal(torch.cat([part.draws for part in parts], 1), whole.draws)
    assert torch.equal(torch.cat([part.energies for part in parts], 1), whole.energies)
    last = parts[-1]
    assert torch.equal(last.x, whole.x) and torch.equal(last.step, whole.step)
    assert last.v is None if whole.v is None else torch.equal(last.v, whole.v)
    assert torch.equal(last.position.x, whole.position.x) and last.next_step == whole.next_step


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize("kind", TARGETS)
def test_parts_have_the_bits_of_one_run(kind, sampler):
    target = TARGETS[kind]
    for thin, parts in ((1, (4, 1, 6)), (3, (4, 3, 7))):
        options = {"thin": thin}
        chains = [run(target, sampler, steps=parts[0], warmup=2, slots=2, **options)]
        chains.append(go_on(target, sampler, chains[-1], steps=parts[1], slots=3, launch=False, **options))
        chains.append(go_on(target, sampler, chains[-1], steps=parts[2], **options))
        check_same(chains, run(target, sampler, steps=sum(parts), warmup=2, **options))


@pytest.mark.parametrize("sampler", [MALA(0.4), HMC(0.4, 3), mcmc.ParallelTempering(MALA(0.4), [1.0, 3.0])], ids=repr)
@pytest.mark.parametrize("kind", TARGETS)
def test_adapted_steps_come_with_a_run(kind, sampler):
    tuned = {"warmup": 20, "adapt": 0.7}
    chains = [run(TARGETS[kind], sampler, steps=3, **tuned)]
    chains.append(go_on(TARGETS[kind], sampler, chains[-1], steps=5))
    check_same(chains, run(TARGETS[kind], sampler, steps=8, **tuned))
    assert chains[0].step.std() > 0


def test_launches_in_parts_go_on_between_kept_states(monkeypatch):
    whole = run(gaussian(), MALA(0.4), steps=23, thin=4)
    monkeypatch.setattr("ulam.mcmc.batch.LAUNCH_ELEMENTS", 60)
    first = run(gaussian(), MALA(0.4), steps=6, thin=4)
    check_same([first, go_on(gaussian(), MALA(0.4), first, steps=17, thin=4)], whole)


def test_moments_add_up():
    whole, first = (run(gaussian(), BAOAB(0.4), steps=n, thin=3, store=False) for n in (11, 4))
    second = go_on(gaussian(), BAOAB(0.4), first, steps=7, thin=3, store=False)
    torch.testing.assert_close(first.moments + second.moments, whole.moments)
    assert first.kept + second.kept == whole.kept == 3


def test_many_short_runs_keep_the_variance():
    """With the noise begun anew in every piece the chains would share one orbit: 2.27 in place of 1.05."""
    target, chains = mcmc.Gaussian([0.0]), None
    for _ in range(20):
        chains = mcmc.run(
            target, ULA(0.1), chains=4000 if chains is None else None, steps=10, thin=10, resume=chains, progress=False
        )
    exact = 1 / (1 - 0.05)
    assert abs(float(chains.x.double().var()) - exact) < 4 * exact * (2 / 4000) ** 0.5


def test_warm_up_may_go_on_and_thinning_counts_from_its_end():
    first = run(gaussian(), MALA(0.4), steps=4)
    second = go_on(gaussian(), MALA(0.4), first, warmup=3, steps=6, thin=3)
    course = run(gaussian(), MALA(0.4), steps=13)
    assert torch.equal(second.draws, course.draws[:, [9, 12]])


@pytest.mark.parametrize("sampler", [ULA(0.1), SGLD(0.2), MALA(0.4), BAOAB(0.4), HMC(0.4, 2)], ids=repr)
def test_going_on_by_hand(sampler):
    whole, first = (run(TARGETS["energy"], sampler, steps=n) for n in (9, 4))
    rest = run(TARGETS["energy"], sampler, steps=5, x_init=first.x, v_init=first.v, first_step=first.next_step)
    assert torch.equal(rest.draws, whole.draws[:, 4:])
    anew = run(TARGETS["energy"], sampler, steps=5, x_init=first.x, v_init=first.v)
    assert not torch.equal(anew.draws, rest.draws)


def test_velocities_of_replicas_have_their_temperature():
    v = torch.ones(5, 2)
    sampler = mcmc.ParallelTempering(BAOAB(1e-9, friction=0.0), [1.0, 4.0], swap_every=99)
    replicas = run(TARGETS["energy"], sampler, steps=1, v_init=v).position.v.view(5, 2, 2)
    torch.testing.assert_close(replicas[:, 0], v, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(replicas[:, 1], 2 * v, rtol=1e-5, atol=1e-5)


def test_a_saved_run_goes_on_and_what_is_done_to_its_tensors_does_not_matter():
    sampler = BAOAB(torch.full((5,), 0.4))
    first = run(gaussian(), sampler, steps=4)
    saved = pickle.dumps(first)
    for tensor in (first.x, first.v, first.step, first.ids, first.draws):
        tensor.zero_()
    whole = run(gaussian(), sampler, steps=9)
    for chains in (first, pickle.loads(saved)):
        rest = go_on(gaussian(), sampler, chains, steps=5)
        assert torch.equal(rest.draws, whole.draws[:, 4:]) and torch.equal(rest.v, whole.v)


def test_float64_goes_on():
    first = run(TARGETS["energy"], HMC(0.4, 2), steps=4, dtype=torch.float64)
    whole = run(TARGETS["energy"], HMC(0.4, 2), steps=6, dtype=torch.float64)
    assert torch.equal(go_on(TARGETS["energy"], HMC(0.4, 2), first, steps=2).draws, whole.draws[:, 4:])


def test_another_energy_is_asked_anew():
    """A Metropolis test that compared the old energy with the new one would accept, or refuse, everything."""
    first = run(mcmc.Energy(curved), MALA(0.4), chains=200, steps=20)
    shifted = mcmc.Energy(lambda x: curved(x) + 1000)
    assert 0.5 < float(go_on(shifted, MALA(0.4), first, steps=20).acceptance.mean()) < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 8}, "seed: got 8, expected 7 of the run to resume; leave it out"),
        ({"chains": 4}, "chains: got others, expected the 5 of the run to resume"),
        ({"shape": (3,)}, r"shape: got \(3,\), expected \(2,\) of the run to resume"),
        ({"dtype": torch.float64}, "dtype: got torch.float64, expected torch.float32 of the run to resume"),
        ({"x_init": torch.zeros(5, 2)}, "x_init: got one beside resume"),
        ({"v_init": torch.zeros(5, 2)}, "v_init: got one beside resume"),
        ({"first_step": 4}, "first_step: got one beside resume"),
        ({"adapt": 0.6, "warmup": 9}, "adapt: got one beside resume"),
        ({"steps": 1, "thin": 9}, "thin: got 9, expected at most the 1 steps"),
        ({"steps": (1 << 60) - 4}, "steps: got 1152921504606846972, expected at most 2.60"),
        ({"warmup": 1 << 70}, "warmup: got 1180591620717411303424, expected at most 2.60"),
    ],
)
def test_what_does_not_fit_the_run_to_resume_is_refused(options, message):
    first = run(gaussian(), MALA(0.4), steps=5)
    with pytest.raises((TypeError, ValueError), match=message):
        go_on(gaussian(), MALA(0.4), first, **{"steps": 3, **options})


def model(**parameters):
    return mcmc.Model(lambda **values: -sum(x.square().sum() for x in values.values()), parameters)


BETWEEN = constraints.interval
PAIRS = {
    "names": (model(a=Real(), b=Real()), model(a=Real(), c=Real()), r"b \[\] Real, expected c \[\] Real"),
    "order": (model(a=Real(), b=Real()), model(b=Real(), a=Real()), r"a \[\] Real, expected b \[\] Real"),
    "sets": (model(a=Real()), model(a=Positive()), r"a \[\] Real, expected a \[\] GreaterThan\(lower_bound=0.0\)"),
    "ends": (model(a=Interval(0, 1)), model(a=Interval(0, 2)), r"upper_bound=1.0\), expected a .*upper_bound=2.0\)"),
    "ends that are tensors": (
        model(a=Parameter((2,), BETWEEN(torch.zeros(2), torch.ones(2)))),
        model(a=Parameter((2,), BETWEEN(torch.zeros(2), torch.tensor([1.0, 3.0])))),
        r"upper_bound=\[1.0, 1.0\]\), expected a .*upper_bound=\[1.0, 3.0\]\)",
    ),
    "shapes": (model(a=Real((2,))), model(a=Real(), b=Real()), r"a \[2\] Real, expected a \[\] Real"),
    "fewer": (model(a=Real((2,))), mcmc.Gaussian([0.0, 0.0]), r"a \[2\] Real, expected none"),
    "more": (mcmc.Gaussian([0.0, 0.0]), model(a=Real((2,))), r"none, expected a \[2\] Real"),
}


@pytest.mark.parametrize("case", PAIRS)
def test_a_run_of_other_parameters_is_refused(case):
    """Its states have the same shape and would be read as other parameters."""
    before, after, message = PAIRS[case]
    first = mcmc.run(before, MALA(0.1), steps=2, progress=False)
    with pytest.raises(ValueError, match=rf"^resume: got a run whose parameter \d is .*{message} of the target$"):
        go_on(after, MALA(0.1), first, steps=2)
    assert go_on(before, MALA(0.1), first, steps=2).kept == 2


def test_parameters_that_are_made_anew_are_the_same():
    """As in another process: the run pickled, and the model built again."""
    first, again = (model(a=Interval(0, 1), b=Positive(), c=mcmc.Simplex(3)) for _ in range(2))
    chains = pickle.loads(pickle.dumps(mcmc.run(first, MALA(0.1), steps=2, progress=False)))
    assert go_on(again, MALA(0.1), chains, steps=2).kept == 2


def test_a_target_of_another_shape_is_refused():
    first = run(gaussian(), MALA(0.4), steps=5)
    with pytest.raises(
        ValueError, match=r"^resume: got a run with states \[2\], expected those of Funnel\(dimension=3"
    ):
        go_on(mcmc.Funnel(3), MALA(0.4), first, steps=3)


@pytest.mark.parametrize("other", [MALA(0.3), ULA(0.4), mcmc.ParallelTempering(MALA(0.4), [1.0, 2.0])], ids=repr)
def test_another_sampler_is_refused(other):
    first = run(gaussian(), MALA(0.4), steps=5)
    with pytest.raises(ValueError, match=r"of the run to resume; for another sampler pass x_init=chains.x"):
        go_on(gaussian(), other, first, steps=3)


def test_arguments_that_say_the_same_are_no_conflict():
    first = run(gaussian(), MALA(0.4), steps=5)
    same = run(gaussian(), MALA([0.4] * 5), steps=5)  # one a chain: other numbers to the eye, not to the check
    again = run(gaussian(), MALA(0.4), steps=2, resume=first, chains=range(5), dtype=torch.float32)
    assert torch.equal(again.draws, go_on(gaussian(), MALA(0.4), first, steps=2).draws)
    with pytest.raises(ValueError, match="sampler: got MALA with other settings"):
        go_on(gaussian(), MALA(0.4), same, steps=2)


def test_states_alone_bring_a_warning_that_the_noise_begins_anew():
    start = torch.zeros(4, 2)
    with pytest.warns(UserWarning, match="x_init: the noise begins anew at step 0 of seed 0; pass resume=") as caught:
        mcmc.run(gaussian(), ULA(0.1), steps=1, x_init=start, progress=False)
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = mcmc.run(gaussian(), ULA(0.1), steps=1, x_init=start, seed=0, progress=False)
        mcmc.run(gaussian(), ULA(0.1), steps=1, x_init=start, first_step=1, progress=False)
        go_on(gaussian(), ULA(0.1), first, steps=1)


@pytest.mark.parametrize("inner", [ULA, SGLD, lambda step: BAOAB(step, friction=1.0)])
def test_a_diverged_tempering_is_not_gone_on_with_and_says_what_to_do(inner) -> None:
    target = mcmc.Energy(lambda x: (x**4).sum(1))
    tempering = mcmc.ParallelTempering(inner(5.0), (1.0, 2.0))
    start = torch.full((3, 2), 3.0)
    with pytest.warns(RuntimeWarning, match="left the finite numbers"):
        diverged = run(target, tempering, chains=3, steps=30, x_init=start)
    expected = (
        r"^resume: got a run whose \w+ is not finite at chain 0 \(and of 2 others\), expected one that did not "
        r"diverge: begin anew with a smaller step, or with x_init= in place of resume=$"
    )
    with pytest.raises(ValueError, match=expected):
        go_on(target, tempering, diverged, steps=3)


@pytest.mark.parametrize("sampler", [NUTS(0.2), GHMC(0.8), HMC(0.2, leapfrog=3)], ids=repr)
@pytest.mark.parametrize("observables", [None, {"r": lambda x: x[:, 0]}], ids=["states", "observables"])
@pytest.mark.filterwarnings("ignore:[0-9]+ divergent proposals")
def test_a_cut_between_draws_forgets_no_divergence(sampler, observables):
    target, how = mcmc.Rosenbrock(4), {"thin": 10, "launch": False, "observables": observables}
    of = {"shape": None, "chains": 50, "seed": 2} | how
    whole, first = (run(target, sampler, steps=steps, **of) for steps in (20, 14))
    second = go_on(target, sampler, first, steps=6, **how)
    assert torch.equal(torch.cat([first.diverging, second.diverging], 1), whole.diverging)
    assert first.diverging.any() and not whole.diverging.all()
    again = go_on(target, sampler, first, steps=10, warmup=1, **how)
    fresh = go_on(target, sampler, first, steps=11, thin=1, launch=False)
    assert torch.equal(again.diverging[:, 0], fresh.diverging[:, 1:].any(1)), (
        "a warm-up's divergences are not the run's"
    )
