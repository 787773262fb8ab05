"""Masses of low rank: the change of coordinates, the fit, and runs in them, on correlated Gaussians."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chain_runs import curved, same
from ulam import mcmc
from ulam.mcmc import GHMC, HMC, MALA, MALT, MAMS, NUTS, LowRank, Warmup, kept
from ulam.mcmc.warmup.low_rank import fitted, geometric_mean
from ulam.samplers.mcmc.low_rank import Coordinates

D = 50


def numbers(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def spiked(d=D, seed=1):
    """1 but along one direction, of all elements: 10^4 there."""
    u = numbers(d, seed=seed)
    u /= u.norm()
    return torch.eye(d).double() + (1e4 - 1) * torch.outer(u, u)


def some(shape=(2, 3), rank=2):
    size = int(np.prod(shape))
    vectors = torch.linalg.qr(numbers(size, rank, seed=2)).Q.T.reshape(rank, *shape)
    scale = numbers(*shape, seed=3).exp()
    return LowRank(scale, vectors, torch.tensor([9.0, 0.2, 4.0][:rank]), numbers(*shape, seed=4))


def dense(mass):
    """The matrix A of a mass."""
    flat, scale = mass.vectors.flatten(1), torch.diag(mass.scale.flatten())
    stretch = torch.diag(mass.values.sqrt() - 1)
    return scale @ (torch.eye(len(scale)).double() + flat.T @ stretch @ flat)


def run(target, sampler, **options):
    defaults = {"chains": 16, "steps": 6, "warmup": 0, "seed": 7, "progress": False}
    return mcmc.run(target, sampler, **{**defaults, **options})


def correlated():
    A = numbers(3, 3, seed=5)
    return mcmc.Gaussian(torch.tensor([1.0, -2.0, 30.0]), A @ A.T + 0.1 * torch.eye(3))


# ---------------------------------------------------------------------------------------------------- coordinates


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_coordinates_are_those_of_the_matrix(rank):
    mass, y = some(rank=rank), numbers(5, 2, 3, seed=6)
    at, A, flat = mass.on(y.device), dense(mass), y.flatten(1)
    np.testing.assert_allclose(at.velocity(y).flatten(1), flat @ A.T, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(at.place(y), at.velocity(y) + mass.center)
    np.testing.assert_allclose(at.pull(y).flatten(1), flat @ A, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(at.back(at.place(y)), y, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(at.push(at.pull(y)), y, rtol=1e-11, atol=1e-11)


def test_coordinates_of_a_chain_do_not_depend_on_its_batch():
    mass, y = some((40,), 3), numbers(3000, 40, seed=6).float()
    at = mass.on(y.device)
    whole = at.place(y)
    assert torch.equal(torch.cat([at.place(part) for part in y.split(7)]), whole)


def test_masses_that_are_equal():
    assert some() == some() and some() != some(rank=1) and repr(some()) == "LowRank(shape=[2, 3], rank=2)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": torch.tensor([1.0, -2.0])}, "scale: got -2, expected numbers above 0"),
        ({"scale": 1.0}, "scale: got 1.0, expected a tensor [*shape]"),
        ({"values": torch.tensor([0.0])}, "values: got 0, expected numbers above 0"),
        ({"values": torch.tensor([float("nan")])}, "values: got numbers that are not finite"),
        ({"values": torch.ones(2)}, "vectors: got shape [1, 2], expected [2, 2] by scale and values"),
        ({"vectors": torch.ones(1, 2)}, "vectors: got some that are not orthonormal"),
        ({"center": torch.zeros(3)}, "center: got shape [3], expected [2]"),
        ({"scale": "wide"}, "scale: got"),
        ({"vectors": torch.tensor([0.6, 0.8]), "values": 2.0}, "values: got shape [], expected [k], one a vector"),
    ],
    ids=str,
)
def test_masses_that_are_wrong(change, message):
    given = {"scale": torch.ones(2), "vectors": torch.tensor([[0.6, 0.8]]), "values": torch.tensor([2.0])}
    with pytest.raises((TypeError, ValueError)) as caught:
        LowRank(**{**given, **change})
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_draws_are_placed_in_pieces(monkeypatch):
    """So that a run needs no more memory at its end than while it goes on."""
    sizes, target = [], mcmc.Energy(lambda x: x.flatten(1).square().sum(1))
    place = Coordinates.place
    monkeypatch.setattr(Coordinates, "place", lambda self, y: sizes.append(len(y)) or place(self, y))
    whole = run(target, NUTS(0.02, preconditioner=some()), shape=(2, 3))
    monkeypatch.setattr(kept, "PLACED", 6 * 5)
    assert max(sizes) == 16 * 6 and torch.equal(whole.draws[:, -1], whole.x)
    sizes.clear()
    again = run(target, NUTS(0.02, preconditioner=some()), shape=(2, 3))
    assert max(sizes) == 16 and same(again, whole)


def test_where_a_low_rank_is_refused():
    from ulam.ebm import PersistentChains

    for sampler, shape in (
        (mcmc.ULA(0.1, preconditioner=some(), clip=(-1.0, 1.0)), (2, 3)),
        (mcmc.BAOAB(0.1, preconditioner=some(), center_of_mass="fixed"), (2, 3)),
        (NUTS(0.1, preconditioner=some()), (6,)),
        (NUTS(0.1, preconditioner=LowRank(torch.ones(2), torch.zeros(0, 2), torch.ones(0), 1e300)), (2,)),
    ):
        with pytest.raises(ValueError, match=r"(preconditioner|center): got "):
            run(mcmc.Energy(lambda x: x.flatten(1).square().sum(1)), sampler, shape=shape)
    for masses, beside in (({"mass": 2.0}, "mass="), ({"center_of_mass": "fixed"}, 'center_of_mass="fixed"')):
        with pytest.raises(ValueError, match=f'adapt: got mass="low-rank" beside {beside} of NUTS, which stays, expec'):
            run(mcmc.Energy(lambda x: x.flatten(1).square().sum(1)), NUTS(**masses), shape=(2, 3), **WARM)
    with pytest.raises(ValueError, match="preconditioner: got a LowRank, expected P"):
        PersistentChains(4, (2, 3), mcmc.ULA(0.1, preconditioner=some()))


# ---------------------------------------------------------------------------------------------------- the fit


def test_geometric_means():
    A, B = (part @ part.T + torch.eye(4) for part in numbers(2, 4, 4))
    P = geometric_mean(A, B)
    np.testing.assert_allclose(P @ B @ P, A, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["long", "short", "diagonal"])
@pytest.mark.parametrize("d", [20, 100])
def test_one_direction_is_found(kind, d):
    """From 4 states a dimension: what is left has a condition below 4, and one direction is kept, or none."""
    u, scales = numbers(d, seed=3), torch.diag(numbers(d, seed=4).exp())
    u /= u.norm()
    covariance = scales if kind == "diagonal" else scales + 1e3 * torch.outer(u, u)
    covariance = torch.linalg.inv(covariance) if kind == "short" else covariance
    x = numbers(4 * d, d, seed=5) @ torch.linalg.cholesky(covariance).T + 7
    found = fitted(x, -(x - 7) @ torch.linalg.inv(covariance), (d,))
    whitened = torch.linalg.inv(dense(found)) @ covariance @ torch.linalg.inv(dense(found)).T
    left = torch.linalg.eigvalsh(whitened)
    assert len(found.values) == (kind != "diagonal") and float(left[-1] / left[0]) < 4
    assert fitted(x[:9], x[:9], (d,)) is None


@pytest.mark.parametrize("d", [5, 100])
@pytest.mark.parametrize("steeper", [1e6, 1e9, 1e15])
def test_a_chain_that_is_stuck_at_a_steep_score_breaks_no_fit(steeper, d):
    """Covariances of a condition beyond float64, whose means had eigenvalues below 0."""
    x = numbers(64, d, seed=5)
    score = -x * torch.where(torch.arange(64) == 63, steeper, 1.0)[:, None]
    found = fitted(x, score, (d,))
    along = numbers(8, d, seed=6)
    assert bool(torch.isfinite(found.on(x.device).velocity(along)).all()) and float(found.scale.max()) < 3


# ---------------------------------------------------------------------------------------------------- runs

SAMPLERS = [NUTS(), HMC(), MALA(), MALT(leapfrog=4), GHMC(), MAMS()]
WARM = {"warmup": 60, "adapt": Warmup(mass="low-rank")}


@pytest.mark.parametrize("sampler", [pytest.param(NUTS(), marks=pytest.mark.long), *SAMPLERS[1:]], ids=repr)
def test_a_chain_in_other_coordinates_is_that_of_the_density_there(sampler):
    """The same to rounding as unit mass on the energy of y, in float64."""
    target, mass = correlated(), some((3,))
    at = mass.on(torch.device("cpu"))
    y = at.back(target.sample(16, seed=2))
    given = {"step": 0.002 if isinstance(sampler, MALA) else 0.05} | (
        {"leapfrog": 3} if hasattr(sampler, "leapfrog") else {}
    )
    make, options = type(sampler), {"dtype": torch.float64, "seed": 7}
    there = run(mcmc.Energy(lambda y: -target.log_prob(at.place(y))), make(**given), x_init=y, **options)
    here = run(target, make(**given, preconditioner=mass), x_init=at.place(y), **options)
    np.testing.assert_allclose(here.draws.flatten(0, 1), at.place(there.draws.flatten(0, 1)), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(here.acceptance, there.acceptance, rtol=1e-8)
    assert float(here.acceptance.mean()) > 0.3


@pytest.mark.long
@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_the_same_bits_again_in_parts_and_alone(sampler):
    for target, options in ((correlated(), {}), (mcmc.Energy(curved), {"shape": (2,)})):
        options = {**WARM, **options}
        whole, again, first = (run(target, sampler, steps=steps, **options) for steps in (9, 9, 4))
        assert same(whole, again) and isinstance(whole.tuning.preconditioner, LowRank)
        second = run(target, sampler, resume=first, steps=5, chains=None, seed=None)
        assert torch.equal(torch.cat([first.draws, second.draws], 1), whole.draws)
        assert torch.equal(second.x, whole.x) and torch.equal(second.x, second.draws[:, -1])
        found = first.tuning.sampler
        many = run(target, found, shape=options.get("shape"))
        assert same(run(target, found, chains=[5], shape=options.get("shape")), many, slice(5, 6))
        assert same(run(target, found, slots=3, shape=options.get("shape")), many)
        sums = run(target, found, store=False, shape=options.get("shape"))
        np.testing.assert_allclose(sums.sums, many.sums, rtol=1e-12)


def test_records_are_of_the_states():
    mass, exact = some((3,)), correlated()
    target = mcmc.Energy(lambda x: -exact.log_prob(x))
    options = {
        "x_init": exact.sample(16, seed=1).float(),
        "observables": {"r": lambda x: x},
        "store": True,
        "record": ["velocities", "kinetic"],
    }
    chains = run(target, GHMC(0.05, preconditioner=mass), **options)
    assert torch.equal(chains.observables["r"], chains.draws) and torch.equal(chains.draws[:, -1], chains.x)
    v = chains.v.double()
    np.testing.assert_allclose(chains.velocities[:, -1], mass.on(v.device).velocity(v), rtol=1e-5)
    np.testing.assert_allclose(chains.kinetic[:, -1], v.square().sum(1) / 2, rtol=1e-5)
    np.testing.assert_allclose(chains.energies, -target.log_prob(chains.draws.flatten(0, 1)).view(16, 6), rtol=1e-4)
    tempered = run(target, mcmc.ParallelTempering(HMC(0.05, 3, preconditioner=mass), [1.0, 2.0]), x_init=chains.x)
    assert torch.equal(tempered.draws[:, -1], tempered.x)


def test_a_warm_up_goes_on_from_a_low_rank():
    first = run(correlated(), NUTS(), **WARM)
    again = run(correlated(), first.tuning.sampler, x_init=first.x, adapt="pooled", warmup=60)
    assert isinstance(again.tuning.preconditioner, LowRank)
    assert again.tuning.preconditioner != first.tuning.preconditioner


def leaps(chains):
    """Gradients of a transition, on average."""
    return chains.tuning.sampler.leaps if chains.leapfrogs is None else float(chains.leapfrogs.double().mean())


@pytest.mark.parametrize("sampler", [NUTS(), HMC(), MAMS()], ids=repr)
def test_a_long_direction_costs_little(sampler):
    """Means and mean squares, of elements and along the direction, within 4 errors over chains; gradients of a draw."""
    covariance = spiked()
    u = torch.linalg.eigh(covariance).eigenvectors[:, -1]
    target = mcmc.Gaussian(torch.zeros(D), covariance)
    chains, steps = 32, 60
    made = run(target, sampler, chains=chains, steps=steps, warmup=200, adapt=Warmup(mass="low-rank"))
    draws = torch.cat([made.draws.double(), (made.draws.double() @ u)[..., None]], 2)
    exact = torch.cat([covariance.diagonal(), torch.tensor([1e4])])
    for values, right in ((draws, torch.zeros(D + 1)), (draws.square(), exact)):
        of_chains = values.mean(1)
        error = of_chains.std(0) / chains**0.5
        assert float(((of_chains.mean(0) - right) / error).abs().max()) < 4.5  # of 51, by 32 chains
    assert leaps(made) < 16 and len(made.tuning.preconditioner.values) == 1


def test_a_diagonal_mass_takes_several_times_the_gradients():
    target = mcmc.Gaussian(torch.zeros(D), spiked())
    cost = [
        leaps(run(target, NUTS(), chains=8, steps=20, warmup=150, adapt=Warmup(mass=mass)))
        for mass in ("low-rank", "diagonal")
    ]
    assert cost[1] > 5 * cost[0]
