"""What runs record: observables in place of states, velocities and kinetic energies; in any batch and resumed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from chain_laws import gaussian, within
from chain_runs import SAMPLERS, curved
from ulam import mcmc
from ulam.mcmc import BAOAB, GHMC, HMC, MALA, MCLMC, NUTS, ULA

MOVING = [
    BAOAB(0.4, friction=2.0, preconditioner=[0.5, 3.0]),
    GHMC(0.4, leapfrog=2, friction=2.0),
    mcmc.ParallelTempering(BAOAB(0.4, 1.0), [1.0, 3.0], swap_every=2),
]
TARGETS = {"density": gaussian(), "energy": mcmc.Energy(curved)}


def run(target, sampler, **options):
    defaults = {"chains": 5, "shape": (2,), "steps": 12, "warmup": 2, "thin": 3, "seed": 7, "progress": False}
    return mcmc.run(target, sampler, **{**defaults, **options})


def radius(x):
    return x.square().sum(1).sqrt()


def both(x):
    return torch.stack([x, x * x], 1)  # [chains, 2, 2]


FUNCTIONS = {"r": radius, "both": both, "right": lambda x: x[:, 0] > 0}


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize("kind", TARGETS)
def test_observables_are_those_of_the_draws(kind, sampler):
    """Of the same run with its states, whole, in batches, by single steps and resumed; energies are the same."""
    whole = run(TARGETS[kind], sampler, adapt=None)
    expected = {name: torch.stack([f(x) for x in whole.draws.unbind(1)], 1) for name, f in FUNCTIONS.items()}
    chains = run(TARGETS[kind], sampler, observables=FUNCTIONS)
    assert chains.draws is None and list(chains.observables) == list(FUNCTIONS)
    runs = [chains, run(TARGETS[kind], sampler, observables=FUNCTIONS, slots=2, launch=False)]
    for one in runs:
        for name, values in expected.items():
            assert torch.equal(one.observables[name], values.double() if name == "right" else values)
        assert torch.equal(one.energies, whole.energies) and torch.equal(one.x, whole.x)
        assert torch.equal(one.divergences, whole.divergences)
    torch.testing.assert_close(chains.mean(), whole.mean())
    first = run(TARGETS[kind], sampler, observables=FUNCTIONS, steps=4)
    second = mcmc.run(TARGETS[kind], sampler, resume=first, steps=8, thin=3, observables=FUNCTIONS, progress=False)
    for name, values in chains.observables.items():
        assert torch.equal(torch.cat([first.observables[name], second.observables[name]], 1), values)


def test_states_stay_beside_observables_where_asked_for():
    chains = run(gaussian(), MALA(0.4), observables={"r": radius}, store=True)
    assert torch.equal(chains.observables["r"], torch.stack([radius(x) for x in chains.draws.unbind(1)], 1))
    assert run(gaussian(), MALA(0.4), store=False).energies is None
    assert run(gaussian(), MALA(0.4)).observables is None


def test_observables_keep_no_states():
    """4 MB of states would be 400 MB of draws."""
    target = mcmc.Score(lambda x: -x)
    kept = run(target, ULA(0.1), chains=2, shape=(1 << 18,), steps=40, thin=1, observables={"m": lambda x: x.mean(1)})
    tensors = [value for value in vars(kept).values() if isinstance(value, torch.Tensor)]
    assert max(tensor.numel() for tensor in tensors) <= 4 << 18 and kept.observables["m"].shape == (2, 40)


def test_networks_are_in_eval_mode_without_a_graph_and_x_is_a_copy():
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Dropout(0.5)).train()

    def spoiling(x):
        x.zero_()
        return x[:, 0]

    functions = {"zero": spoiling, "out": lambda x: net(x)}
    chains = run(TARGETS["energy"], MALA(0.4), observables=functions, store=True)
    with torch.no_grad():
        expected = torch.stack([net[0](x) for x in chains.draws.unbind(1)], 1)
    assert torch.equal(chains.observables["out"], expected) and not chains.observables["out"].requires_grad
    assert net.training and not chains.observables["zero"].any()
    assert torch.equal(chains.draws, run(TARGETS["energy"], MALA(0.4)).draws)


def test_short_floats_and_whole_numbers_are_widened():
    functions = {"half": lambda x: x[:, 0].half(), "count": lambda x: (x > 0).sum(1), "wide": lambda x: x.double()}
    dtypes = {name: of.dtype for name, of in run(gaussian(), ULA(0.1), observables=functions).observables.items()}
    assert dtypes == {"half": torch.float32, "count": torch.float64, "wide": torch.float64}


def test_arviz_summary_and_verdict_take_observables():
    pytest.importorskip("arviz", reason="statistics are ArviZ's")
    options = {"chains": 4, "steps": 400, "thin": 1, "warmup": 50}
    chains = run(gaussian(), MALA(0.6), observables={"r": radius, "both": both}, **options)
    data, whole = chains.to_arviz(), run(gaussian(), MALA(0.6), **options)
    assert list(data.posterior) == ["r", "both"] and data.posterior["both"].shape == (4, 400, 2, 2)
    np.testing.assert_array_equal(data.posterior["r"].values, whole.draws.square().sum(2).sqrt())
    with pytest.warns(RuntimeWarning):
        table, verdict = chains.summary(), chains.verdict()
    labels = ["r", "both[0, 0]", "both[0, 1]", "both[1, 0]", "both[1, 1]"]
    assert list(table.index) == labels and list(verdict.table.index) == [*labels, "energy"]
    with pytest.warns(RuntimeWarning):
        states = whole.verdict()
    row = verdict.table.loc["both[0, 1]"], states.table.loc["x[1]"]
    assert row[0]["r_hat"] == pytest.approx(row[1]["r_hat"]) and row[0]["ess_bulk"] == pytest.approx(row[1]["ess_bulk"])
    kept = run(gaussian(), MALA(0.6), observables={"r": radius}, store=True, **options).to_arviz(names=["u", "w"])
    assert list(kept.posterior) == ["u", "w", "r"]
    with pytest.raises(ValueError, match="names: got 'w', expected None: there are observables alone"):
        chains.to_arviz(names="w")
    with pytest.raises(ValueError, match="draws: got observables alone, expected"):
        chains.ess()


def test_observables_that_leave_the_finite_numbers_are_told():
    target = mcmc.Gaussian([0.0, 0.0])
    with pytest.warns(RuntimeWarning, match=r"observables: bad is not finite at some draws of \d+ of 50 chains"):
        run(target, ULA(0.5), chains=50, x_init=torch.ones(50, 2), observables={"bad": lambda x: x[:, 0].log()})


@pytest.mark.parametrize(
    ("observables", "error", "message"),
    [
        ([radius], TypeError, r"observables: got .*, expected functions of x \[chains, \*shape\] by their names"),
        ({}, ValueError, "observables: got none, expected functions"),
        ({"r": 3}, TypeError, "observables: got 'r': 3, expected functions"),
        ({4: radius}, TypeError, "observables: got 4: .*, expected functions"),
        ({"x": radius}, ValueError, "observables: got the name 'x', expected another"),
        ({"r": lambda x: 1.0}, TypeError, r"observables: got 1.0 of r, expected a tensor \[5, \*sizes\]"),
        ({"r": lambda x: x.sum()}, ValueError, r"observables: got shape \[\] of r, expected"),
        ({"r": lambda x: x.T}, ValueError, r"observables: got shape \[2, 5\] of r, expected"),
        ({"r": lambda x: x[:, :0]}, ValueError, r"observables: got shape \[5, 0\] of r, expected"),
        ({"r": lambda x: x * 1j}, TypeError, "observables: got a tensor of torch.complex64 .* of r, expected"),
        ({"r": lambda x: x / 0}, ValueError, "observables: got r that is not finite at the start of chain 0"),
    ],
)
@pytest.mark.parametrize("sampler", [MALA(0.4), NUTS(0.5)], ids=["mala", "nuts"])
def test_other_observables_are_one_line(sampler, observables, error, message):
    with pytest.raises(error, match=message) as caught:
        run(TARGETS["energy"], sampler, observables=observables)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sampler", [MALA(0.4), NUTS(0.5)], ids=["mala", "nuts"])
def test_observables_whose_sizes_change_are_one_line(sampler):
    sizes = iter(range(1, 99))
    with pytest.raises(ValueError, match=r"observables: got torch.float32 \[2\] a chain of r, expected .* \[1\] as at"):
        run(TARGETS["energy"], sampler, observables={"r": lambda x: x.new_zeros(len(x), next(sizes))})


# ------------------------------------------------------------------------------------------------ velocities


@pytest.mark.parametrize("sampler", MOVING, ids=["baoab", "ghmc", "tempered"])
@pytest.mark.parametrize("kind", TARGETS)
def test_velocities_are_those_of_runs_that_end_there(kind, sampler):
    """Run after run of three steps ends with the velocities of each draw; batches and parts have the same bits."""
    target, names = TARGETS[kind], ("velocities", "kinetic")
    whole = run(target, sampler, record=names)
    assert torch.equal(whole.draws, run(target, sampler).draws)
    p = [0.5, 3.0] if sampler is MOVING[0] else [1.0, 1.0]
    inner = sampler.sampler if isinstance(sampler, mcmc.ParallelTempering) else sampler
    for draw in range(4):
        ends = run(target, sampler, steps=3 * (draw + 1))
        torch.testing.assert_close(whole.velocities[:, draw], ends.v * torch.tensor(p).sqrt())
        torch.testing.assert_close(whole.kinetic[:, draw], ends.v.double().square().sum(1) / 2)
    assert whole.kinetic.dtype == torch.float64 and inner.has_velocity
    first = run(target, sampler, record=names, steps=4, slots=2, launch=False)
    second = mcmc.run(target, sampler, resume=first, steps=8, thin=3, record=names, progress=False)
    for name in names:
        parts = [getattr(one, name) for one in (first, second)]
        assert torch.equal(torch.cat(parts, 1), getattr(whole, name))


def test_kinetic_energies_have_their_law():
    """BAOAB on a Gaussian of frequency omega: T (1 - h^2 omega^2 / 4) / 2 for each degree of freedom."""
    chains = run(
        mcmc.Gaussian([0.0, 0.0, 0.0]), BAOAB(0.8, temperature=2.0), chains=20_000, shape=(3,), warmup=40, steps=4,
        thin=4, record=["kinetic"], store=False,
    )  # fmt: skip
    assert chains.velocities is None and within(chains.kinetic[:, 0], 3 * 2.0 * (1 - 0.64 / 4) / 2)


def test_velocities_of_length_one():
    chains = run(gaussian(), MCLMC(0.4, preconditioner=[4.0, 1.0]), record=["velocities"])
    lengths = (chains.velocities / torch.tensor([2.0, 1.0])).norm(dim=2)
    torch.testing.assert_close(lengths, torch.ones(5, 4))


def test_arviz_has_the_kinetic_energy():
    pytest.importorskip("arviz", reason="the data are ArviZ's")
    chains = run(gaussian(), BAOAB(0.4), chains=3, record=["kinetic"])
    np.testing.assert_array_equal(chains.to_arviz().sample_stats["kinetic"].values, chains.kinetic)


@pytest.mark.parametrize(
    ("sampler", "record", "message"),
    [
        (HMC(0.4), ["velocities"], "record: got 'velocities', expected nothing: HMC keeps no velocity"),
        (MCLMC(0.4), ["kinetic"], "record: got 'kinetic', expected no more than velocities: MCLMC's have length 1"),
        (BAOAB(0.4), "kinetic", "record: got 'kinetic', expected a list of names among velocities, kinetic"),
        (BAOAB(0.4), ["momenta"], "record: got 'momenta', expected one of velocities, kinetic"),
        (BAOAB(0.4), [math.pi], "record: got 3.14.*, expected one of"),
        (BAOAB(0.4), 7, "record: got 7, expected a list of names"),
    ],
)
def test_other_records_are_one_line(sampler, record, message):
    with pytest.raises((TypeError, ValueError), match=message):
        run(gaussian(), sampler, record=record)


@pytest.mark.parametrize("name", ["x_dim_0", "r_dim_12", "_dim_0", "chain", "", "x", "energy", "a[0]", "mu"])
def test_names_that_others_have_are_refused(name):
    model = mcmc.Model(lambda mu: -0.5 * mu**2, {"mu": mcmc.Real()})
    with pytest.raises(ValueError, match=r"^observables: got the name .*, expected another"):
        mcmc.run(model, NUTS(0.5), steps=9, observables={name: lambda x: x[:, 0]}, progress=False)
    if name not in ("x", "mu", "a[0]"):
        with pytest.raises(ValueError, match=r"^parameters: got the name .*, expected another"):
            mcmc.Model(lambda **values: 0.0, {"p": mcmc.Real((3,)), name: mcmc.Real()})


@pytest.mark.parametrize("launch", [True, False])
def test_a_run_says_whether_it_launched_chains(launch):
    options = {"adapt": None, "launch": launch, "observables": {"r": radius}, "store": True}
    assert run(gaussian(), NUTS(0.3), **options).report["launch"] is False
    assert run(gaussian(), NUTS(0.3), **options | {"observables": None}).report["launch"] is launch


@pytest.mark.filterwarnings("ignore:.*left the finite numbers")
def test_a_run_with_a_lost_chain_goes_on_with_observables():
    target, x = mcmc.DoubleWell(2), torch.tensor([[0.1, 0.1], [60.0, 60.0]])
    lost = mcmc.run(target, BAOAB(0.1), chains=2, steps=10, x_init=x, seed=0, progress=False)
    assert not torch.isfinite(lost.x[1]).any()
    more = mcmc.run(target, BAOAB(0.1), resume=lost, steps=5, observables={"r": radius}, progress=False)
    assert torch.isfinite(more.observables["r"][0]).all() and more.observables["r"][1].isnan().all()


@pytest.mark.parametrize("given", [{"shape": ()}, {"x_init": torch.zeros(3)}], ids=["shape", "x_init"])
def test_states_without_an_axis_are_refused(given):
    with pytest.raises(ValueError, match=r"(shape|x_init): got .*, expected states with an axis at least"):
        mcmc.run(mcmc.Energy(lambda x: 0.5 * x * x), ULA(0.3), steps=10, chains=3, seed=0, progress=False, **given)
