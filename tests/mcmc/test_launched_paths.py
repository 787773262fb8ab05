"""GHMC, MALT, MCLMC and MAMS in launches of whole chains: the bits of their steps on every instruction set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from chain_runs import run, same
from ulam import mcmc
from ulam.mcmc import GHMC, MALT, MAMS, MCLMC
from ulam.samplers.mcmc.paths import refreshed
from ulam.samplers.mcmc.weights import Weights, inverse_root, rounded_root
from ulam_kernels import _cpu, densities
from ulam_kernels import mcmc as ops

ROOTS = [0.5, 2.0, 1.0, 1.5, 0.7, 1.2, 0.9]
WIDE = mcmc.Gaussian(torch.zeros(100), torch.linspace(0.5, 2.0, 100))
TARGETS = {
    "gaussian": mcmc.Gaussian(torch.arange(7.0) / 5, torch.eye(7) + 0.3),
    "mixture": mcmc.GaussianMixture([[-1.0] * 7, [1.0] * 7], [0.5, 0.8], [0.3, 0.7]),
    "double well": mcmc.DoubleWell(7, height=0.1, separation=4.0),
    "funnel": mcmc.Funnel(7, 1.0),
    "ring": mcmc.Ring(7),
}
SAMPLERS = {
    "ghmc": lambda **more: GHMC(0.3, leapfrog=2, friction=[0.1, 0.3, 1.0, 2.0, 5.0] * 7, **more),
    "ghmc without friction": lambda **more: GHMC(0.3, friction=0.0, **more),
    "malt": lambda **more: MALT(0.3, leapfrog=4, friction=[0.1, 0.3, 1.0, 2.0, 5.0] * 7, **more),
    "malt of one friction": lambda **more: MALT(0.3, leapfrog=5, **more),
    "mclmc": lambda **more: MCLMC(0.5, length=[1.0, 2.0, 0.1, float("inf"), 3.0] * 7, **more),
    "mclmc of no length": lambda **more: MCLMC(0.5, **more),
    "mams": lambda **more: MAMS(0.5, leapfrog=3, **more),
    "mams of one length": lambda **more: MAMS(0.5, leapfrog=3, jitter=0, **more),
}


@pytest.fixture(params=_cpu.instruction_sets())
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    _cpu.use_instruction_set(request.param)
    yield request.param
    _cpu.use_instruction_set(_cpu.instruction_sets()[0])


@pytest.mark.filterwarnings("ignore:.*divergent proposals")
@pytest.mark.parametrize("name", SAMPLERS)
def test_launches_have_the_bits_of_single_steps(name: str, instruction_set: str) -> None:
    """For 35 chains, which fill no whole vectors, with temperatures and a preconditioner."""
    for target in TARGETS.values():
        sampler = SAMPLERS[name](temperature=[1.0, 0.5, 2.0, 1.3, 0.8] * 7, preconditioner=ROOTS)
        whole, steps = (run(target, sampler, chains=35, launch=launch) for launch in (True, False))
        assert whole.report["launch"] and not steps.report["launch"]
        assert same(whole, steps), target
        assert len(whole.draws.flatten(1).unique(dim=0)) == 35
        assert whole.acceptance is None or 0 < whole.acceptance.mean() < 1


@pytest.mark.parametrize("name", ["malt of one friction", "mclmc of no length", "mams"])
def test_many_elements_and_parts(name: str, instruction_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = SAMPLERS[name]()
    steps = run(WIDE, sampler, chains=3, steps=21, launch=False)
    assert same(run(WIDE, sampler, chains=3, steps=21), steps)
    monkeypatch.setattr("ulam.mcmc.batch.LAUNCH_ELEMENTS", 2000)
    assert same(run(WIDE, sampler, chains=3, steps=21), steps)


def test_a_velocity_straight_against_a_strong_score_stays_as_in_steps(instruction_set: str) -> None:
    """Where a kick leaves nothing else of it, and where it leaves a little; and at a score of 0."""
    target = mcmc.Gaussian(torch.zeros(2), torch.tensor([1e-6, 1e-6]))
    x, v = torch.tensor([[100.0, 0.0], [3.0, 0.0], [0.0, 0.0], [2e-4, 0.0]]), torch.tensor([[1.0, 0.0]] * 4)
    options = {"chains": 4, "x_init": x, "v_init": v, "steps": 3, "warmup": 0, "thin": 1}
    whole, steps = (run(target, MCLMC(0.5, float("inf")), launch=launch, **options) for launch in (True, False))
    assert same(whole, steps) and torch.isfinite(whole.x).all()


def test_exponentials_and_logarithms_are_near_and_pass_nan() -> None:
    weights, generator = Weights(torch.device("cpu")), torch.Generator().manual_seed(1)
    x = -torch.rand(5000, dtype=torch.float64, generator=generator) * torch.logspace(-16, 2.8, 5000).double()
    kept, fall = weights.decay(x)
    torch.testing.assert_close(kept, x.exp(), rtol=1e-15, atol=0)
    torch.testing.assert_close(fall, torch.expm1(x), rtol=1e-15, atol=0)
    z = torch.rand(5000, dtype=torch.float64, generator=generator) ** 9
    torch.testing.assert_close(weights.log(z, z - 1), z.log(), rtol=1e-15, atol=1e-16)
    torch.testing.assert_close(weights.log(1 + fall, fall)[x > -0.3], x[x > -0.3], rtol=2e-15, atol=0)
    ends = torch.tensor([0.0, -800.0, torch.nan], dtype=torch.float64)
    assert [weights.decay(ends)[k][:2].tolist() for k in (0, 1)] == [[1.0, 0.0], [0.0, -1.0]]
    assert all(found[2].isnan() for found in (*weights.decay(ends), weights.log(ends + 1, ends)))


def test_roots_are_rounded_once() -> None:
    sizes = torch.logspace(-280, 280, 5000, dtype=torch.float64)
    x = sizes * (0.1 + torch.rand(5000, generator=torch.Generator().manual_seed(2)))
    for part in (x, x[:1], x[:9]):
        exact = np.sqrt(part.numpy())
        np.testing.assert_array_equal(rounded_root(part), exact)
        np.testing.assert_array_equal(inverse_root(part), 1 / exact)
    keep, one = torch.rand(5000, generator=torch.Generator().manual_seed(3)), torch.ones(5000)
    fresh = refreshed(torch.zeros(5000, 1), keep, one, torch.ones(5000, 1))[:, 0].numpy()
    np.testing.assert_array_equal(fresh, np.sqrt(((1 - keep) * (1 + keep)).numpy()))


def test_a_backend_without_such_launches_says_so_and_goes_by_steps() -> None:
    target = TARGETS["funnel"]
    chains = run(target, GHMC(0.3), backend="reference")
    assert not chains.report["launch"] and same(run(target, GHMC(0.3)), chains)
    ids = {name: torch.zeros(2, dtype=torch.int64) for name in ("seed", "chain", "draw")}
    x = torch.zeros(2, 7)
    with pytest.raises(ValueError, match="sampler: got 'ghmc', expected one of ula, mala, baoab, hmc, which this"):
        ops.run(densities.funnel(7), x, "ghmc", torch.ones(2, 4), 1, v=x.clone(), backend="reference", **ids)
    with pytest.raises(ValueError, match="density: got one of 1 dimension, expected at least 2 for mams"):
        ops.run(densities.double_well(1), x[:, :1].clone(), "mams", torch.ones(2, 4), 1, **ids)
