"""Masses of atoms, and the centre of mass that stays where it is: exact laws of harmonic molecules."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from chain_laws import within
from chain_runs import curved
from ulam import ebm, mcmc
from ulam.mcmc import BAOAB, GHMC, HMC, MALA, MALT, MAMS, MCLMC, NUTS, SGLD, ULA

MASS = torch.tensor([[16.0], [1.0], [2.5]])
STIFF, T = torch.tensor([[0.0, 3.0, 1.0], [3.0, 0.0, 0.5], [1.0, 0.5, 0.0]]), 0.7


def springs(x):
    """Atoms [B, 3, 2] that pull at each other: sum over pairs of k |x_i - x_j|^2 / 2."""
    off = x[:, :, None] - x[:, None]
    return (STIFF.to(x) * off.square().sum(3)).sum((1, 2)) / 4


def anchored(x):
    """The same, and a spring from the first atom to a place off the origin: not the same where the molecule moves."""
    return springs(x) + 2.0 * (x[:, 0] - 0.5).square().sum(1)


def exact(energy_is_anchored):
    """Mean [3, 2] and covariance [3, 3] of each direction's coordinates, given that the centre of mass is 0."""
    k = STIFF.double().numpy()
    precision = (np.diag(k.sum(1)) - k) / T
    pull = np.zeros(3)
    if energy_is_anchored:
        precision[0, 0] += 4.0 / T
        pull[0] = 4.0 * 0.5 / T
    share = (MASS / MASS.sum()).double().numpy()[:, 0]
    basis = np.linalg.svd(share[None])[2][1:].T  # of the x with share . x = 0
    covariance = basis @ np.linalg.inv(basis.T @ precision @ basis) @ basis.T
    return covariance @ pull, covariance


def run(energy, sampler, **options):
    defaults = {"chains": 1500, "shape": (3, 2), "warmup": 30, "steps": 1, "seed": 5, "progress": False}
    return mcmc.run(mcmc.Energy(energy), sampler, **{**defaults, **options})


SHALLOW = partial(NUTS, max_depth=3)


def fixed(make, *arguments, **options):
    return make(*arguments, temperature=T, mass=MASS, center_of_mass="fixed", **options)


EXACT = {
    "mala": fixed(MALA, 0.6), "hmc": fixed(HMC, 0.5, leapfrog=4), "ghmc": fixed(GHMC, 0.5, 2),
    "malt": fixed(MALT, 0.5, leapfrog=4), "nuts": fixed(NUTS, 0.5),
}  # fmt: skip


@pytest.mark.parametrize("energy", [springs, anchored])
@pytest.mark.parametrize("name", EXACT)
def test_positions_have_their_law_given_the_centre(name, energy):
    sizes = {"warmup": 250} if name == "mala" else {"warmup": 10, "chains": 300} if name == "nuts" else {}
    x = run(energy, EXACT[name], **sizes).draws[:, 0].double()
    mean, covariance = exact(energy is anchored)
    for direction in range(2):
        for i in range(3):
            assert within(x[:, i, direction], mean[i]), (i, direction)
            for j in range(3):
                products = (x[:, i, direction] - mean[i]) * (x[:, j, direction] - mean[j])
                assert within(products, covariance[i, j]), (i, j, direction)


@pytest.mark.parametrize("friction", [0.0, 0.4, math.inf])
def test_baoab_has_the_law_and_kinetic_energies_of_four_degrees_of_freedom(friction):
    """Its positions are exact on Gaussians; the average over modes of 1 - h^2 omega^2 / 4 is that of the velocities."""
    h = 0.3
    sampler = fixed(BAOAB, h, friction=friction)
    chains = run(springs, sampler, x_init=None, warmup=120 if friction else 0, record=["kinetic"], chains=3000)
    m = MASS.double().numpy()[:, 0]
    k = STIFF.double().numpy()
    omega2 = np.linalg.eigvalsh((np.diag(k.sum(1)) - k) / np.sqrt(np.outer(m, m)))[1:]
    if friction:
        expected = 2 * (T / 2) * (1 - h**2 * omega2 / 4).sum()
        assert within(chains.kinetic[:, 0], expected)
        x, (_, covariance) = chains.draws[:, 0].double(), exact(False)
        assert all(within(x[:, i, 0] * x[:, j, 1 - 1], covariance[i, j]) for i in range(3) for j in range(3))
    momenta = (MASS * chains.v / MASS.sqrt()).sum(1)
    assert float(momenta.abs().max()) < 1e-4
    start = run(springs, fixed(BAOAB, 1e-6, friction=0.0), warmup=0, record=["kinetic"], chains=3000)
    assert within(start.kinetic[:, 0], 4 * T / 2)  # (3 - 1) atoms, 2 directions


@pytest.mark.parametrize("name", [*EXACT, "baoab", "ula", "sgld", "tempered"])
def test_the_centre_stays_at_the_origin_and_parts_have_the_bits_of_one_run(name):
    more = {
        "baoab": fixed(BAOAB, 0.5), "ula": fixed(ULA, 0.1), "sgld": fixed(SGLD, 0.1),
        "tempered": mcmc.ParallelTempering(MALA(0.6, mass=MASS, center_of_mass="fixed"), [1.0, 2.0]),
    }  # fmt: skip
    sampler = {**EXACT, **more}[name]
    start = torch.full((6, 3, 2), 20.0) + torch.arange(36.0).view(6, 3, 2) / 9
    options = {"chains": 6, "x_init": start, "warmup": 3, "shape": None}
    whole = run(springs, sampler, steps=40, **options)
    centre = (MASS.double() * whole.draws.double()).sum(2) / MASS.double().sum()
    assert float(centre.abs().max()) < 16 * 2**-23 * float(whole.draws.abs().max())
    parts = [run(springs, sampler, steps=13, slots=4, **options)]
    parts.append(mcmc.run(mcmc.Energy(springs), sampler, resume=parts[0], steps=27, progress=False))
    assert torch.equal(torch.cat([part.draws for part in parts], 1), whole.draws)
    alone = run(springs, sampler, steps=40, **{**options, "chains": [2], "x_init": start[2:3]})
    assert torch.equal(alone.draws[0], whole.draws[2])


@pytest.mark.parametrize("make", [BAOAB, GHMC, HMC, MALA, MALT, MAMS, MCLMC, SHALLOW, SGLD, ULA])
def test_masses_are_inverse_preconditioners(make):
    options = {"chains": 3, "steps": 5, "warmup": 0}
    by_mass = run(springs, make(0.1, mass=[[4.0], [1.0], [0.5]]), **options)
    other = run(springs, make(0.1, preconditioner=[[0.25], [1.0], [2.0]]), **options)
    assert torch.equal(by_mass.draws, other.draws)
    assert torch.equal(run(springs, make(0.1, mass=1.0), **options).draws, run(springs, make(0.1), **options).draws)


@pytest.mark.parametrize("make", [MALA, HMC, NUTS])
def test_a_warm_up_of_all_chains_finds_steps_and_leaves_masses(make):
    sampler = make(temperature=T, mass=MASS, center_of_mass="fixed")
    chains = run(springs, sampler, warmup=150, steps=20, chains=40)
    assert chains.tuning is not None and torch.equal(torch.as_tensor(chains.tuning.sampler.mass), MASS)
    centre = (MASS.double() * chains.draws.double()).sum(2) / MASS.double().sum()
    assert float(centre.abs().max()) < 16 * 2**-23 * float(chains.draws.abs().max())
    _, covariance = exact(False)
    assert within(chains.draws[:, :, 1, 0].double().square().mean(1), covariance[1, 1])


def test_energies_of_momenta_that_move_the_centre_are_not_told():
    pytest.importorskip("arviz", reason="the data are ArviZ's")
    options = {"chains": 2, "steps": 20}
    statistics = run(springs, HMC(0.3, mass=MASS), **options).to_arviz().sample_stats
    assert "energy" in statistics and "lp" in statistics
    chains = run(springs, EXACT["hmc"], **options)
    assert "energy" not in chains.to_arviz().sample_stats and "lp" in chains.to_arviz().sample_stats
    with pytest.warns(RuntimeWarning):
        verdict = chains.verdict()
    assert verdict.bfmi is None and "centre of mass" in verdict.bfmi_note


def test_velocities_are_lengths_over_times():
    """Free particles: x moves by time times the recorded velocity, whose m v^2 / 2 is the kinetic energy."""
    sampler = BAOAB(0.25, friction=0.0, mass=MASS)
    chains = run(lambda x: 0 * x.sum((1, 2)), sampler, chains=3, warmup=0, steps=4, record=["velocities", "kinetic"])
    moved = chains.draws[:, 1:] - chains.draws[:, :-1]
    torch.testing.assert_close(moved, 0.25 * chains.velocities[:, 1:], rtol=1e-4, atol=1e-6)
    kinetic = (MASS * chains.velocities.double().square()).sum((2, 3)) / 2
    torch.testing.assert_close(chains.kinetic, kinetic, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BAOAB(0.1, mass=1.0, preconditioner=1.0), "mass: got one beside preconditioner, expected one"),
        (lambda: MALA(0.1, mass=-1.0), "mass: got -1, expected finite numbers above 0"),
        (lambda: MALA(0.1, mass=[[math.nan]]), "mass: got nan, expected finite numbers above 0"),
        (lambda: MALA(0.1, mass=1e-320), "mass: got .*, expected finite numbers above 0"),
        (lambda: MALA(0.1, mass="heavy"), "mass: got 'heavy', expected a number, or several"),
        (lambda: HMC(0.1, center_of_mass="fix"), "center_of_mass: got 'fix', expected one of free, fixed"),
        (lambda: HMC(0.1, center_of_mass=True), "center_of_mass: got True, expected one of free, fixed"),
        (lambda: MCLMC(0.1, center_of_mass="fixed"), "center_of_mass: got 'fixed', expected 'free': velocities"),
        (lambda: MAMS(0.1, center_of_mass="fixed"), "center_of_mass: got 'fixed', expected 'free': velocities of MAMS"),
        (lambda: ULA(0.1, clip=(-1, 1), center_of_mass="fixed"), "center_of_mass: got 'fixed' beside clip"),
        (lambda: run(springs, MALA(0.1, mass=[1.0, 2.0])), r"mass: got shape \[2\], expected \[3, 2\] like a"),
        (lambda: run(springs, MALA(0.1, mass=[[1.0], [2.0]])), r"mass: got shape \[2, 1\], expected \[3, 2\] like"),
        (
            lambda: run(curved, MALA(0.1, center_of_mass="fixed"), shape=(2,)),
            r"shape: got \[2\], expected \[atoms, dimensions\] of at least two atoms",
        ),
        (
            lambda: run(springs, MALA(0.1, center_of_mass="fixed"), shape=(1, 2)),
            r"shape: got \[1, 2\], expected \[atoms, dimensions\] of at least two atoms",
        ),
        (
            lambda: run(springs, MALA(0.1, center_of_mass="fixed", mass=[[1.0, 2.0]])),
            r"mass: got atoms whose mass differs between directions, expected \[atoms, 1\]",
        ),
        (
            lambda: ebm.PersistentChains(4, (3, 2), MALA(0.1, center_of_mass="fixed")),
            "sampler: got one with center_of_mass='fixed', expected 'free'",
        ),
        (
            lambda: run(springs, MALA(0.2, mass=2.0), resume=run(springs, MALA(0.2, mass=1.0), chains=2), chains=None,
                        shape=None, seed=None, warmup=0),
            "sampler: got MALA with other settings",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(call, message):
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
