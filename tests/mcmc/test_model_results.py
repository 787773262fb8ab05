"""What runs of models give: parameters by name, in ArviZ and in verdicts; what they refuse, in one line."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from torch.distributions import Beta, Distribution, LKJCholesky, Normal, constraints

from chain_runs import run
from ulam import mcmc
from ulam.mcmc import HMC, MALA, NUTS, CorrelationCholesky, Interval, Model, Ordered, Parameter, Positive, Real, Simplex

arviz = pytest.importorskip("arviz")


def normals(mu, tau, theta):
    return Normal(0.0, 1.0).log_prob(mu) + Normal(1.0, 1.0).log_prob(tau) + Normal(mu, 1 + tau).log_prob(theta).sum()


PARAMETERS = {"mu": Real(), "tau": Positive(), "theta": Real((3,))}
MODEL = Model(normals, PARAMETERS)


def of(**options):
    return run(MODEL, NUTS(0.5), **options)


def test_draws_come_back_by_name_as_the_model_saw_them():
    chains = of()
    assert {name: tuple(x.shape) for name, x in chains.parameters.items()} == {
        "mu": (6, 4), "tau": (6, 4), "theta": (6, 4, 3)
    }  # fmt: skip
    assert torch.equal(chains.parameters["mu"], chains.draws[..., 0])
    assert torch.equal(chains.parameters["tau"], chains.draws[..., 1].exp())
    assert torch.equal(chains.parameters["theta"], chains.draws[..., 2:])
    wide = run(Model(normals, PARAMETERS, dtype=torch.float64), NUTS(0.5)).parameters["tau"]
    assert wide.dtype == torch.float64 and MODEL.shape == (5,)
    saved = pickle.loads(pickle.dumps(chains))
    assert all(torch.equal(saved.parameters[name], x) for name, x in chains.parameters.items())


def test_energies_are_those_of_the_parameters_with_their_jacobian():
    chains = of(dtype=torch.float64)
    flat = {name: x.flatten(0, 1) for name, x in chains.parameters.items()}
    log_p = torch.stack([normals(*values) for values in zip(*flat.values(), strict=True)])
    torch.testing.assert_close(chains.energies.flatten(), -(log_p + flat["tau"].log()))


def test_first_states_are_given_by_name():
    random = torch.Generator().manual_seed(0)
    first = {"mu": torch.randn(6, generator=random), "tau": torch.rand(6, generator=random) + 0.1}
    first["theta"] = torch.randn(6, 3, generator=random)
    flat = MODEL.unconstrain(first)
    back = MODEL.constrain(flat)
    for name, x in first.items():
        torch.testing.assert_close(back[name], x.double())
    assert torch.equal(of(x_init=first).draws, of(x_init=flat.float()).draws)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tau": torch.tensor([1.0, 1.0, 1.0, -1.0, 1.0, 1.0])}, r"x_init\['tau'\]: got values outside of GreaterThan"),
        ({"tau": torch.zeros(6)}, r"x_init\['tau'\]: got values outside of GreaterThan"),
        ({"mu": torch.full((6,), torch.nan)}, r"x_init\['mu'\]: got values outside of Real\(\)"),
        (
            {"mu": torch.ones(6, dtype=torch.int64)},
            r"x_init\['mu'\]: got a tensor of torch.int64 \[6\], expected a float",
        ),
        ({"mu": 1.0}, r"x_init\['mu'\]: got 1.0, expected a float tensor"),
        ({"theta": torch.ones(6, 2)}, r"x_init\['theta'\]: got shape \[6, 2\], expected \[6, 3\]"),
        ({"mu": torch.ones(5)}, r"x_init\['tau'\]: got shape \[6\], expected \[5\]"),
        ({"sigma": torch.ones(6)}, "x_init: got 'sigma', expected only mu, tau, theta"),
    ],
)
def test_first_states_that_do_not_fit_are_refused(change, message):
    first = {"mu": torch.zeros(6), "tau": torch.ones(6), "theta": torch.zeros(6, 3)}
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        of(x_init=first | change)
    assert "\n" not in str(caught.value)


def test_first_states_lack_no_name_and_are_of_as_many_chains():
    first = {"mu": torch.zeros(6), "tau": torch.ones(6)}
    with pytest.raises(ValueError, match="x_init: got no 'theta', expected all of mu, tau, theta"):
        of(x_init=first)
    with pytest.raises(ValueError, match=r"x_init: got shape \[6, 5\], expected \[7, 5\]"):
        of(x_init=first | {"theta": torch.zeros(6, 3)}, chains=7)
    with pytest.raises(TypeError, match="x_init: got dict, expected a float tensor"):
        run(mcmc.Gaussian([0.0]), MALA(0.1), x_init=first)


def test_arviz_has_a_variable_for_every_parameter_with_its_axes():
    chains = of(steps=40)
    data = chains.to_arviz(dims={"theta": ["school"]}, coords={"school": ["a", "b", "c"]})
    assert list(data.posterior.data_vars) == ["mu", "tau", "theta"]
    assert data.posterior["theta"].dims == ("chain", "draw", "school")
    np.testing.assert_array_equal(data.posterior["theta"].sel(school="b"), chains.parameters["theta"][..., 1])
    np.testing.assert_array_equal(data.sample_stats["lp"], -chains.energies)
    assert chains.to_arviz().posterior["mu"].dims == ("chain", "draw")
    assert chains.ess().shape == (5,)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"names": "y"}, "names: got 'y', expected None: the parameters of a model have their own"),
        ({"dims": ["a"]}, "dims: got .*, expected names of axes by parameter"),
        ({"dims": {"eta": ["a"]}}, "dims: got 'eta', expected names of parameters: mu, tau, theta"),
        ({"dims": {"mu": ["a"]}}, "dims: got .*, expected 0 names"),
        ({"coords": {"school": [1, 2, 3]}}, "coords: got 'school', expected names of dims: none given"),
        ({"dims": {"theta": ["s"]}, "coords": {"s": [1]}}, "coords: got .* for s, expected 3 labels"),
    ],
)
def test_names_that_do_not_fit_are_refused(given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        of().to_arviz(**given)


def correlated(L, b):
    return LKJCholesky(2, 1.0).log_prob(L) + Beta(2.0, 2.0).log_prob(b).sum()


def test_summary_and_verdict_speak_of_parameters_and_not_of_what_stands_still():
    """L[0, 0] = 1 and L[0, 1] = 0 never move, which fails nobody; the numbers are those of ArviZ on the parameters."""
    model = Model(correlated, {"L": CorrelationCholesky(2), "b": Interval(0, 1, (2,))}, dtype=torch.float64)
    chains = run(model, HMC(0.8, leapfrog=3), chains=16, warmup=30, steps=600, thin=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        verdict = chains.verdict()
    assert verdict.passed and list(verdict.table.index) == ["L[1, 0]", "L[1, 1]", "b[0]", "b[1]", "energy"]
    np.testing.assert_allclose(verdict.table.loc["b[1]", "mean"], float(chains.parameters["b"][..., 1].mean()))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        summary = chains.summary()
    assert not [one for one in told if issubclass(one.category, RuntimeWarning) and "summary" in str(one.message)]
    assert list(summary.index) == ["L[0, 0]", "L[0, 1]", "L[1, 0]", "L[1, 1]", "b[0]", "b[1]"]
    np.testing.assert_allclose(summary.loc["b[0]", "r_hat"], verdict.table.loc["b[0]", "r_hat"])


def test_a_verdict_that_fails_names_the_parameter():
    model = Model(lambda a, far: -(a**2) / 2 - far**2 / 2e6, {"a": Real(), "far": Real()})
    chains = run(model, HMC(0.5, 5), chains=16, steps=100, thin=1)
    with pytest.warns(RuntimeWarning, match="R-hat .*far"):
        assert chains.verdict().rhat.where == "far"
    with pytest.warns(RuntimeWarning, match="summary: R-hat .*far"):
        chains.summary()


def test_divergences_are_told_by_name():
    """Chains sit at the wall of a hard box, past which the energy is not a number."""
    model = Model(lambda wall: torch.where(wall < 1, -(wall**2), torch.nan), {"wall": Real()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verdict = run(model, MALA(0.5), chains=4, steps=50, thin=1, x_init=torch.zeros(4, 1)).verdict()
    assert any("first near wall = " in note for note in verdict.notes)


def test_without_draws_or_names_parameters_are_refused():
    with pytest.raises(ValueError, match="draws: got moments alone"):
        _ = of(store=False, thin=1).parameters
    with pytest.raises(ValueError, match=r"parameters: got a run of Gaussian\(.*, expected one of a ulam.mcmc.Model"):
        _ = run(mcmc.Gaussian([0.0]), MALA(0.1)).parameters


def test_keywords_and_other_names_can_name_parameters():
    def by_dict(**values):
        return -(values["lambda"] ** 2) - values["class"].square().sum()

    chains = run(Model(by_dict, {"lambda": Real(), "class": Real((2,))}), MALA(0.3))
    assert list(chains.parameters) == ["lambda", "class"]
    with pytest.raises(TypeError, match=r"log_prob: got normals\(mu, tau, theta\), .*; expected log_prob\(lambda="):
        Model(normals, {"lambda": Real()})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "parameters: got none, expected a dict"),
        ([Real()], "parameters: got .*, expected a dict"),
        ({"mu": Real(), "tau": Positive()}, "missing a required argument: 'theta'; expected"),
        (PARAMETERS | {"more": Real()}, "got an unexpected keyword argument 'more'; expected"),
        (PARAMETERS | {"mu": 3}, r"parameters\['mu'\]: got 3, expected"),
        (PARAMETERS | {"chain": Real()}, "parameters: got the name 'chain', expected another"),
        (PARAMETERS | {"energy": Real()}, "parameters: got the name 'energy', expected another"),
        (PARAMETERS | {1: Real()}, "parameters: got the name 1, expected another"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(parameters, message):
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        Model(normals, parameters)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Simplex(1), "n: got 1, expected 2 to"),
        (lambda: Ordered(0), "n: got 0, expected 2 to"),
        (lambda: CorrelationCholesky(2.5), "n: got 2.5, expected a whole number from 2 to 32768"),
        (lambda: Interval(1, 1), "lo: got 1 with hi = 1, expected finite numbers, lo < hi"),
        (lambda: Interval(0, float("inf")), "lo: got 0 with hi = inf, expected finite numbers"),
        (lambda: Interval("a", 1), "lo: got 'a', expected a number"),
        (lambda: Real(3.0), "shape: got 3.0, expected the sizes"),
        (lambda: Positive((0,)), r"shape: got \(0,\), expected sizes of at least 1"),
        (lambda: Parameter((), constraints.simplex), r"shape: got \(\), expected one that points of Simplex"),
        (
            lambda: Parameter((2, 3), constraints.corr_cholesky),
            r"shape: got \(2, 3\), expected one that points of Corr",
        ),
        (lambda: Parameter((2,), constraints.boolean), r"constraint: got Boolean\(\), expected one with a bijection"),
        (lambda: Parameter((2,), "positive"), "constraint: got 'positive', expected one of torch.distributions"),
        (lambda: Parameter((2,), constraints.dependent), "constraint: got .*, expected one with a bijection"),
    ],
)
def test_sets_that_there_are_not_are_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("log_prob", "options", "message"),
    [
        (lambda mu: mu, {}, r"log_prob: got log densities of shape \[3\], expected \[\], one number: a sum"),
        (
            lambda mu: mu.sum(),
            {"batched": True},
            r"log_prob: got log densities of shape \[\], expected \[6\], one number",
        ),
        (lambda mu: 3.0, {}, r"log_prob: got float, expected log densities \[\]"),
        (lambda mu: mu.sum().long(), {}, "log_prob: got log densities of torch.int64, expected floats"),
        (lambda mu: -mu.sum() if mu.sum() > 0 else mu.sum(), {}, "log_prob: got control flow that depends on a param"),
        (lambda mu: -mu.sum() * torch.nan, {}, "target: got no finite energy at the start of chain 0"),
        (lambda mu: -mu.detach().square().sum(), {}, "log_prob: got a log density without a gradient"),
        (lambda mu: -mu.square().sum(), {"dtype": torch.int64}, "dtype: got torch.int64, expected torch.float32"),
        (lambda mu: -mu.square().sum(), {"dtype": "float64"}, "dtype: got 'float64', expected torch.float32"),
        (lambda mu: -mu.square().sum(), {"batched": 1}, "batched: got 1, expected"),
        (None, {}, "log_prob: got None, expected a function of the parameters by name"),
    ],
)
def test_log_densities_that_are_none_are_refused(log_prob, options, message):
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        run(Model(log_prob, {"mu": Positive((3,))}, **options), MALA(0.1))
    assert "\n" not in str(caught.value)


@pytest.fixture(params=[True, False], ids=["checks on", "checks off"])
def checks(request):
    """The checks of torch.distributions, which torch.compile turns off for the process: as they were afterwards."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(request.param)
    yield
    assert Distribution._validate_args is request.param
    Distribution.set_default_validate_args(before)


@pytest.mark.usefixtures("checks")
def test_data_out_of_range_is_named_by_torch_where_a_run_starts():
    with pytest.raises(ValueError, match="within the support"):
        run(Model(lambda a: Beta(a, 1.0).log_prob(torch.tensor(1.5)), {"a": Positive()}), MALA(0.1))


@pytest.mark.usefixtures("checks")
def test_a_proposal_out_of_range_is_refused_and_ends_no_run():
    """A scale that underflows to 0, which torch.distributions would raise an error for."""
    model = Model(lambda s: Normal(0.0, s).log_prob(torch.tensor(1.0)) - s, {"s": Positive()})
    x = torch.zeros(3, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chains = run(model, MALA(3e4), x_init=x, chains=3)
    assert int(chains.divergences.sum()) > 0 and bool(torch.isfinite(chains.draws).all())


def test_states_of_another_size_are_refused():
    for call in (MODEL, MODEL.score, MODEL.log_prob):
        with pytest.raises(ValueError, match=r"x: got shape \[2, 4\], expected \[B, 5\]"):
            call(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"x: got shape \[2, 4\], expected \[\.\.\., 5\]"):
        MODEL.constrain(torch.zeros(2, 4))
    with pytest.raises(
        ValueError, match=r"shape: got \(4,\), expected \(5,\), that of the states of Model\(normals, mu"
    ):
        run(MODEL, MALA(0.1), shape=(4,))
