"""Langevin and Metropolis operations: the same bits everywhere, and exact laws and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from bit_comparison import same_bits
from mcmc_cases import Cases, agree, evaluated
from ulam_kernels import _cpu, densities, fill_normal, mcmc
from ulam_kernels.densities import Density
from ulam_kernels.reference import noise as noise_v1

SIZES = [(1, 1), (3, 5), (37, 7), (20, 128), (3, 129), (2, 1024), (2, 1025), (1, 40_001), (0, 4)]


@pytest.fixture(params=_cpu.instruction_sets())
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    _cpu.use_instruction_set(request.param)
    yield request.param
    _cpu.use_instruction_set(_cpu.instruction_sets()[0])


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# Bits.


def test_launches_have_the_bits_of_the_reference(instruction_set: str) -> None:
    cases = Cases(1)
    for density in cases.densities():
        for chains in (1, 19):
            x = cases.normal(chains, density.dimension)
            assert agree(evaluated(density, x), "reference", "cpu"), density
            for sampler in mcmc.EVERYWHERE:
                run = cases.run(density, sampler, chains, scaled=chains == 1)
                assert agree(run, "reference", "cpu"), (density, sampler, chains)


@pytest.mark.parametrize(("chains", "n"), SIZES)
def test_steps_have_the_bits_of_the_reference(instruction_set: str, chains: int, n: int) -> None:
    for name, step in Cases(2).steps(chains, n):
        assert agree(step, "reference", "cpu"), name


def varied(step: torch.Tensor, jitter: torch.Tensor, now: dict[str, torch.Tensor]) -> torch.Tensor:
    """step (1 + jitter u), u a coordinate of a uniform point of the sphere; step itself where jitter is 0."""
    z = torch.empty(len(step), 3)
    fill_normal(z, seed=now["seed"], chain=now["chain"], draw=now["draw"] + 2)
    a, b, c = z.double().unbind(1)
    u = a / (a * a + b * b + c * c).sqrt()
    return torch.where(jitter == 0, step, (step.double() * (1 + jitter.double() * u)).float())


def step_by_step(density: Density, x: torch.Tensor, sampler: str, coef: torch.Tensor, steps: int, leapfrog: int,
                 ids: dict[str, torch.Tensor], v: torch.Tensor, scale: torch.Tensor | None) -> None:  # fmt: skip
    """The documented composition of the operations, in place on x and v."""
    c = [column.contiguous() for column in coef.T]
    for i in range(steps):
        now = ids | {"draw": ids["draw"] + 16 * i}
        energy, score = mcmc.evaluate(density, x)
        assert energy is not None
        if sampler in ("ula", "mala"):
            proposal = mcmc.langevin(x, score, c[0], c[1], scale=scale, **now)
            if sampler == "ula":
                x.copy_(proposal)
                continue
            new_energy, new_score = mcmc.evaluate(density, proposal)
            assert new_energy is not None
            options = {"inverse_temperature": c[2], "scale": scale}
            mcmc.mala_accept(x, proposal, score, new_score, energy, new_energy, c[0], **options, **now)
        elif sampler == "baoab":
            mcmc.kick_drift(x, v, score, c[0], c[1], keep=c[2], noise_scale=c[3], scale=scale, **now)
            mcmc.kick_drift(x, v, mcmc.evaluate(density, x)[1], c[0], None, scale=scale)
        elif sampler in ("ghmc", "malt"):
            paths(density, x, sampler, c, leapfrog, now, v, scale)
        else:
            z, zero = torch.zeros_like(x), torch.zeros_like(c[0])
            mcmc.langevin(z, z.clone(), zero, c[3], out=z, **now)  # 0 + sqrt(T) z
            momentum, proposal, h = z.clone(), x.clone(), varied(c[0], c[1], now)
            for leap in range(leapfrog):
                mcmc.kick_drift(proposal, momentum, score, h if leap else h / 2, h, scale=scale)
                new_energy, score = mcmc.evaluate(density, proposal)
            mcmc.kick_drift(proposal, momentum, score, h / 2, None, scale=scale)
            assert new_energy is not None
            kinetic = 0.5 * (mcmc.squared_norm(z) - mcmc.squared_norm(momentum))
            mcmc.accept(((energy - new_energy) + kinetic) * c[2].double(), [(x, proposal)], **now)


def paths(density: Density, x: torch.Tensor, sampler: str, c: list[torch.Tensor], leapfrog: int,
          now: dict[str, torch.Tensor], v: torch.Tensor, scale: torch.Tensor | None) -> None:  # fmt: skip
    """A transition of GHMC or MALT, in place on x and, of GHMC, v."""

    def normals(stage: int, offset: int) -> torch.Tensor:
        z = torch.empty_like(x)
        fill_normal(z, seed=now["seed"], chain=now["chain"], draw=now["draw"] + stage, offset=offset)
        return z

    def refreshed(v: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        keep, width = c[1][:, None], c[3][:, None]
        return keep * v + (width * ((1 - keep) * (1 + keep)).double().sqrt().float()) * z

    energy, score = mcmc.evaluate(density, x)
    assert energy is not None
    momentum = refreshed(v, normals(0, 0)) if sampler == "ghmc" else c[3][:, None] * normals(0, 0)
    v.copy_(-momentum)
    proposal, lost = x.clone(), torch.zeros(len(x), dtype=torch.float64)
    for leap in range(leapfrog):
        if leap and sampler == "malt":
            momentum = refreshed(momentum, normals(12, (leap - 1) * x.shape[1]))
        before = mcmc.squared_norm(momentum)
        mcmc.kick_drift(proposal, momentum, score, c[0] / 2, c[0], scale=scale)
        new_energy, score = mcmc.evaluate(density, proposal)
        mcmc.kick_drift(proposal, momentum, score, c[0] / 2, None, scale=scale)
        lost += 0.5 * (before - mcmc.squared_norm(momentum))
    assert new_energy is not None
    mcmc.accept(((energy - new_energy) + lost) * c[2].double(), [(x, proposal), (v, momentum)], **now)


@pytest.mark.parametrize("sampler", mcmc.SAMPLERS[:6])  # those of the others: tests/mcmc/test_launched_paths.py
@pytest.mark.parametrize("scaled", [False, True])
def test_a_launch_has_the_bits_of_its_steps(sampler: str, scaled: bool) -> None:
    cases = Cases(3)
    for density in cases.densities():
        chains, d = 21, density.dimension
        x, v, ids, coef = cases.normal(chains, d), cases.normal(chains, d), cases.ids(chains), cases.coef(sampler, 21)
        scale = cases.uniform(d) + 0.5 if scaled else None
        x_steps, v_steps = x.clone(), v.clone()
        step_by_step(density, x_steps, sampler, coef, 5, 3, ids, v_steps, scale)
        moved = {"v": v} if sampler in mcmc.WITH_VELOCITIES else {}
        mcmc.run(density, x, sampler, coef, 5, leapfrog=3, scale=scale, **ids, **moved)
        assert same_bits(x, x_steps) and (not moved or same_bits(v, v_steps)), density


@pytest.mark.parametrize("sampler", mcmc.SAMPLERS)
def test_chains_do_not_depend_on_their_batch_threads_or_launches(sampler: str, threads: Callable[[int], None]) -> None:
    cases = Cases(4)
    density, chains = densities.double_well(32), 301
    x, v = cases.normal(chains, 32), cases.normal(chains, 32)
    ids, coef = cases.ids(chains), cases.coef(sampler, chains)

    def run(pick: slice, *parts: int) -> torch.Tensor:
        state, velocity, done = x[pick].clone(), v[pick].clone(), 0
        for steps in parts:
            now = {name: value[pick].clone() for name, value in ids.items()}
            now["draw"] += 16 * done
            moved = {"v": velocity} if sampler in mcmc.WITH_VELOCITIES else {}
            mcmc.run(density, state, sampler, coef[pick].contiguous(), steps, **now, **moved)
            done += steps
        return state

    threads(1)
    whole = run(slice(None), 11)
    threads(2)
    assert same_bits(run(slice(None), 11), whole)
    assert same_bits(run(slice(None), 4, 0, 7), whole)
    assert same_bits(run(slice(5, 6), 11), whole[5:6])
    assert same_bits(run(slice(299, 301), 3, 8), whole[299:])


def test_a_diverging_chain_leaves_the_others_alone() -> None:
    cases = Cases(5)
    for density in cases.densities():
        for sampler in mcmc.SAMPLERS[: 8 if density.dimension > 1 else 6]:
            x, v, ids = cases.normal(9, density.dimension), cases.normal(9, density.dimension), cases.ids(9)
            coef = cases.coef(sampler, 9)
            ends = []
            for start in (0.5, math.nan, 1e30):
                state = x.clone()
                state[4] = start
                accepted = {"accepted": torch.zeros(9, dtype=torch.int64)} if sampler in mcmc.WITH_TEST else {}
                moved = {"v": v.clone()} if sampler in mcmc.WITH_VELOCITIES else {}
                mcmc.run(density, state, sampler, coef, 4, **ids, **accepted, **moved)
                if math.isnan(start):
                    assert state[4].isnan().all() and (not accepted or accepted["accepted"][4] == 0)
                ends.append(torch.cat([state[:4], state[5:]]))
            assert same_bits(ends[0], ends[1]) and same_bits(ends[0], ends[2]), (density, sampler)


def test_the_callers_rounding_mode_does_not_matter() -> None:
    step = dict(Cases(6).steps(3, 40))["langevin"]
    expected = step("cpu")
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        assert all(map(same_bits, step("cpu"), expected))
    finally:
        torch.set_flush_denormal(False)


# Formulas, against independent ones in float64.


def oracle(density: Density, x: torch.Tensor, p: dict[str, Any]) -> torch.Tensor:
    """The energies by torch."""
    if density.name == "gaussian":
        away = x - p["mean"]
        precision = p["precision"] if p["precision"].dim() == 2 else torch.diag(p["precision"])
        return 0.5 * torch.einsum("bi,ij,bj->b", away, precision, away)
    if density.name == "mixture":
        d, constant = x.shape[1], x.shape[1] / 2 * math.log(2 * math.pi)
        kernels = [
            torch.distributions.MultivariateNormal(mean, std**2 * torch.eye(d, dtype=torch.float64)).log_prob(x)
            for mean, std in zip(p["means"], p["stds"], strict=True)
        ]
        shares = (p["weights"] / p["weights"].sum()).log()
        return -torch.logsumexp(torch.stack(kernels, 1) + shares, 1) - constant
    if density.name == "double_well":
        return (p["height"] * (x**2 - p["separation"]) ** 2).sum(1)
    if density.name == "rosenbrock":
        return (5 * (x[:, 1::2] - x[:, ::2] ** 2) ** 2 + 0.05 * (1 - x[:, ::2]) ** 2).sum(1)
    if density.name == "funnel":
        zero, wide = x.new_zeros(()), x.new_tensor(3.0)
        first = torch.distributions.Normal(zero, wide).log_prob(x[:, 0]) + math.log(3 * math.sqrt(2 * math.pi))
        rest = torch.distributions.Normal(zero, (x[:, :1] / 2).exp()).log_prob(x[:, 1:]) + math.log(2 * math.pi) / 2
        return -first - rest.sum(1)
    return (x.norm(dim=1) - 3) ** 2 / (2 * 0.3**2)


def formulas(cases: Cases) -> Iterator[tuple[Density, dict[str, Any]]]:
    half = cases.normal(7, 7).double()
    for precision in (cases.uniform(7).double() + 0.5, half @ half.T + torch.eye(7)):
        mean = cases.normal(7).double()
        yield densities.gaussian(mean, precision), {"mean": mean, "precision": precision}
    weights, means = cases.uniform(3).double() + 0.1, cases.normal(3, 5).double()
    stds = torch.tensor([0.7, 1.0, 0.4], dtype=torch.float64)
    yield densities.mixture(weights, means, stds), {"weights": weights, "means": means, "stds": stds}
    yield densities.double_well(6, 0.7, 2.0), {"height": 0.7, "separation": 2.0}
    for density in (densities.rosenbrock(6), densities.funnel(7), densities.ring(2), densities.ring(9)):
        yield density, {}


def test_energies_and_scores_are_those_of_the_densities() -> None:
    cases = Cases(7)
    for density, parameters in formulas(cases):
        x = cases.normal(40, density.dimension).double().requires_grad_()
        expected = oracle(density, x, parameters)
        (gradient,) = torch.autograd.grad(expected.sum(), x)
        energy, score = mcmc.evaluate(density, x.detach(), backend="reference")
        torch.testing.assert_close(energy, expected.detach(), rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(score, -gradient, rtol=1e-11, atol=1e-11)
        exact_energy, exact_score = mcmc.evaluate(density, x.detach().float().double(), backend="reference")
        energy, score = mcmc.evaluate(density, x.detach().float(), backend="cpu")
        assert energy is not None and exact_energy is not None
        torch.testing.assert_close(energy, exact_energy, rtol=3e-6, atol=3e-6)
        torch.testing.assert_close(score.double(), exact_score, rtol=1e-4, atol=1e-5)


def test_the_score_of_a_ring_at_its_centre_is_zero() -> None:
    energy, score = mcmc.evaluate(densities.ring(3), torch.zeros(2, 3))
    assert not score.any() and energy is not None and energy[0] == pytest.approx(50, rel=1e-6)


def test_log_ratio_is_that_of_the_two_transition_densities() -> None:
    """log p(x') q(x | x') / p(x) q(x' | x) with q(y | x) = N(y; x + h P s, 2 h T P), in float64."""
    cases = Cases(8)
    chains, n = 6, 130
    x, proposal, score, new_score = (cases.normal(chains, n).double() for _ in range(4))
    energy, new_energy = cases.normal(chains).double(), cases.normal(chains).double()
    step, beta, scale = ((cases.uniform(k) + 0.2).double() for k in (chains, chains, n))
    h, t, p = step[:, None], 1 / beta[:, None], scale**2

    def log_density(y: torch.Tensor, a: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return torch.distributions.Normal(a + h * p * s, (2 * h * t * p).sqrt()).log_prob(y).sum(1)

    expected = (energy - new_energy) * beta
    expected += log_density(x, proposal, new_score) - log_density(proposal, x, score)
    given = (x, proposal, score, new_score, energy, new_energy)
    for dtype, backend in ((torch.float64, "reference"), (torch.float32, "cpu")):  # all numbers are float32 ones
        tensors = [a.to(dtype, copy=True) if a.dim() == 2 else a.clone() for a in given]
        options = {"inverse_temperature": beta.to(dtype), "scale": scale.to(dtype)}
        _, ratio = mcmc.mala_accept(*tensors, step.to(dtype), **options, **cases.ids(chains), backend=backend)
        torch.testing.assert_close(ratio, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_metropolis_test_is_u_below_exp(backend: str) -> None:
    chains = 20_000
    ids = Cases(9).ids(chains)
    words = noise_v1.words(*(ids[name].numpy().view(np.uint64) for name in ("seed", "chain", "draw")), 2,
                           np.zeros(1, np.uint64))[:, 0, 0]  # fmt: skip
    u = noise_v1.u01(words).astype(np.float64)
    for ratio in (-0.01, -0.7, -3.0):
        accepted = mcmc.accept(torch.full((chains,), ratio, dtype=torch.float64), [], **ids, backend=backend).numpy()
        unclear = np.abs(u / math.exp(ratio) - 1) < 1e-6
        assert ((accepted == (u < math.exp(ratio))) | unclear).all() and unclear.sum() < 10
        deviation = math.sqrt(math.exp(ratio) * (1 - math.exp(ratio)) / chains)
        assert abs(accepted.mean() - math.exp(ratio)) < 4 * deviation
    for ratio, all_or_none in ((0.0, True), (math.inf, True), (-math.inf, False), (math.nan, False)):
        log_ratio = torch.full((chains,), ratio, dtype=torch.float64)
        assert (mcmc.accept(log_ratio, [], **ids, backend=backend) == all_or_none).all()


# What is kept.


def test_moments_and_thinned_states_are_those_of_single_steps() -> None:
    cases = Cases(11)
    x, ids, coef, density = cases.normal(20, 5), cases.ids(20), cases.coef("mala", 20), densities.funnel(5)
    draws, moments = torch.full((20, 3, 5), math.nan), torch.zeros(20, 2, 5, dtype=torch.float64)
    energies = torch.full((20, 3), math.nan, dtype=torch.float64)
    alone = x.clone()
    mcmc.run(density, x, "mala", coef, 11, thin=3, draws=draws, energies=energies, moments=moments, **ids)
    states = []
    for i in range(11):
        mcmc.run(density, alone, "mala", coef, 1, **(ids | {"draw": ids["draw"] + 16 * i}))
        states.append(alone.clone())
    kept = torch.stack(states[2::3], 1)
    assert same_bits(draws, kept) and same_bits(x, states[-1])
    wide = kept.double()
    assert torch.equal(moments, torch.stack([wide[:, 0] + wide[:, 1] + wide[:, 2],
                                             wide[:, 0] ** 2 + wide[:, 1] ** 2 + wide[:, 2] ** 2], 1))  # fmt: skip
    expected = [mcmc.evaluate(density, state)[0] for state in states[2::3]]
    assert same_bits(energies, torch.stack([e for e in expected if e is not None], 1))


# What is refused.


def arguments() -> dict[str, Any]:
    ids = {name: torch.zeros(4, dtype=torch.int64) for name in ("seed", "chain", "draw")}
    return {"density": densities.double_well(3), "x": torch.zeros(4, 3), "sampler": "ula",
            "coef": torch.zeros(4, 4), "steps": 3, **ids}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.zeros(4, 2)}, "x: got shape"),
        ({"x": torch.zeros(4, 3, dtype=torch.int64)}, "x: got torch.int64"),
        ({"coef": torch.zeros(4, 3)}, "coef: got shape"),
        ({"sampler": "gibbs"}, "sampler: got 'gibbs'"),
        ({"steps": -1}, "steps: got -1"),
        ({"thin": 0}, "thin: got 0"),
        ({"sampler": "baoab"}, "v: got None, expected velocities"),
        ({"accepted": torch.zeros(4, dtype=torch.int64)}, "ula has no Metropolis test"),
        ({"lo": 1.0, "hi": 0.0}, "lo, hi: got 1.0, 0.0"),
        ({"sampler": "mala", "lo": 0.0}, "bounds are for ula alone"),
        ({"draws": torch.zeros(4, 2, 3)}, "draws: got shape"),
        ({"seed": torch.zeros(4)}, "seed: got dtype"),
        ({"scale": torch.ones(4)}, "scale: got shape"),
    ],
)
def test_bad_arguments_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        mcmc.run(**(arguments() | changed))


def test_bad_densities_and_steps_are_named() -> None:
    x = torch.zeros(4, 3)
    for make, message in (
        (lambda: densities.gaussian(x[0], -torch.eye(3)), "positive definite"),
        (lambda: densities.gaussian(x[0], torch.ones(2)), "precision: got shape"),
        (lambda: densities.mixture(torch.ones(2), x, 1.0), "means: got shape"),
        (lambda: densities.double_well(129), "dimension: got 129, expected 1 to 128"),
        (lambda: densities.rosenbrock(3), "dimension: got 3, expected an even number"),
        (lambda: densities.ring(2, std=0.0), "expected positive"),
        (lambda: mcmc.langevin(x, x, x[:, 0].contiguous(), x[:, 0].contiguous()), "seed, chain, draw: got None"),
        (lambda: mcmc.kick_drift(x, x, x, torch.ones(4), None, keep=torch.ones(4)), "keep, noise_scale"),
        (lambda: mcmc.kick_drift(x, x, x, torch.ones(4), None, seed=torch.ones(4)), "seed: got dtype"),
        (lambda: mcmc.kick_drift(x, x, x, torch.ones(4), None, draw=[1]), r"draw: got \[1\], expected a tensor"),
        (lambda: mcmc.accept(torch.zeros(4), [], **{k: torch.zeros(4, dtype=torch.int64) for k in
                                                   ("seed", "chain", "draw")}), "log_ratio: got dtype"),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError), match=message):
            make()
