"""Whole chains in one launch have the laws of their samplers, by 10^5 chains of a Gaussian."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mcmc_cases import Cases
from ulam_kernels import densities, mcmc

CHAINS, PRECISION = 100_000, torch.tensor([1.0, 4.0, 0.25])


def sampled(sampler: str, coef: list[float], steps: int, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(x, v) after `steps`, from a standard normal start."""
    cases = Cases(10)
    x, v, ids = cases.normal(CHAINS, 3), cases.normal(CHAINS, 3), torch.arange(CHAINS)
    moved = {"v": v} if sampler == "baoab" else {}
    table = torch.tensor(coef).expand(CHAINS, 4).contiguous()
    density = densities.gaussian(torch.tensor([0.5, -1.0, 0.0]), PRECISION)
    mcmc.run(density, x, sampler, table, steps, seed=ids * 0, chain=ids, draw=ids * 0, **moved, **options)
    return x.double(), v.double()


def assert_variance(values: torch.Tensor, expected: torch.Tensor) -> None:
    """Within 4 standard errors; those of a Gaussian's variance are sqrt(2 / n) of it."""
    assert ((values.var(0) / expected - 1).abs() < 4 * math.sqrt(2 / CHAINS)).all(), (values.var(0), expected)


def test_ula_has_the_variance_of_its_discretisation() -> None:
    """x' = (1 - h a) x + sqrt(2 h T) z is stationary at T / (a (1 - h a / 2))."""
    step, temperature = 0.2, 0.5
    x, _ = sampled("ula", [step, math.sqrt(2 * step * temperature), 0, 0], 400)
    assert_variance(x, temperature / (PRECISION * (1 - step * PRECISION / 2)))
    error = 4 * (x.var(0) / CHAINS).sqrt()
    assert ((x.mean(0) - torch.tensor([0.5, -1.0, 0.0])).abs() < error).all()


def test_baoab_has_exact_positions_and_the_known_velocities() -> None:
    """Leimkuhler and Matthews 2013: Var x = T / a exactly, Var v = T (1 - h^2 a / 4)."""
    h, friction = 0.4, 1.0
    keep = math.exp(-friction * h)
    x, v = sampled("baoab", [h / 2, h / 2, keep, math.sqrt(1 - keep**2)], 300)
    assert_variance(x, 1 / PRECISION)
    assert_variance(v, 1 - h**2 * PRECISION / 4)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("sampler", "coef", "steps"), [("mala", 0.25, 300), ("hmc", 0.7, 60)])
def test_mala_and_hmc_have_the_variance_of_the_density(sampler: str, coef: float, steps: int, scaled: bool) -> None:
    temperature = 0.5
    table = {"mala": [coef, math.sqrt(2 * coef * temperature), 2.0, 0], "hmc": [coef, 0, 2.0, math.sqrt(temperature)]}
    accepted, options = torch.zeros(CHAINS, dtype=torch.int64), {"leapfrog": 3} if sampler == "hmc" else {}
    scale = torch.tensor([1.0, 0.5, 2.0]) if scaled else None
    x, _ = sampled(sampler, table[sampler], steps, accepted=accepted, scale=scale, **options)
    assert_variance(x, temperature / PRECISION)
    assert 0.3 < accepted.double().mean() / steps < 0.999
