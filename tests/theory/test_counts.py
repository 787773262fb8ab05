"""Robbins' formula for counts, against integrals over the parameter, and from a sample."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate, stats

from ulam import tweedie

NODES = torch.linspace(-12, 12, 601, dtype=torch.float64)  # the trapezoidal rule, which converges geometrically
ODDS = torch.softmax(-NODES.square() / 2, 0)
RATES = torch.exp(0.5 + 0.4 * NODES)  # log-normal


def log_poisson(x: torch.Tensor) -> torch.Tensor:
    x = x[..., None].double()
    return torch.logsumexp(ODDS.log() + x * RATES.log() - RATES - torch.lgamma(x + 1), -1)


def quadrature(f, likelihood, density, ends) -> float:
    rules = {"epsabs": 0, "epsrel": 1e-12, "limit": 500}
    total = integrate.quad(lambda r: likelihood(r) * density(r), *ends, **rules)[0]
    return integrate.quad(lambda r: f(r) * likelihood(r) * density(r), *ends, **rules)[0] / total


def lognormal(r: float) -> float:
    return math.exp(-(((math.log(r) - 0.5) / 0.4) ** 2) / 2) / r


def test_poisson_means_are_those_of_quadrature() -> None:
    x = torch.arange(12)
    exact = [
        quadrature(lambda r: r, lambda r, k=k: math.exp(k * math.log(r) - r), lognormal, (1e-3, 25.0))
        for k in range(12)
    ]
    found = tweedie.robbins(log_poisson, x)
    torch.testing.assert_close(found, torch.tensor(exact, dtype=torch.float64), rtol=1e-8, atol=0)


@pytest.mark.parametrize("trials", [1, 5, 12])
def test_binomial_odds_are_those_of_quadrature(trials) -> None:
    """p ~ Beta(2, 3.5), whose marginal is beta-binomial."""
    law = stats.betabinom(trials, 2.0, 3.5)
    x = torch.arange(trials, dtype=torch.float64)
    exact = [
        quadrature(
            lambda p: p / (1 - p),
            lambda p, k=k: p**k * (1 - p) ** (trials - k),
            lambda p: p * (1 - p) ** 2.5,
            (0.0, 1.0),
        )
        for k in range(trials)
    ]
    found = tweedie.robbins(lambda x: torch.from_numpy(law.logpmf(x.numpy())), x, trials=trials)
    torch.testing.assert_close(found, torch.tensor(exact, dtype=torch.float64), rtol=1e-8, atol=0)


def test_a_joint_law_raises_one_element_at_a_time() -> None:
    """Two counts of one rate ~ Gamma(a, b): the posterior of the rate is Gamma(a + x_1 + x_2, b + 2)."""
    a, b = 2.5, 1.5

    def log_marginal(x):
        total = x.sum(1)
        return torch.lgamma(a + total) - (a + total) * math.log(b + 2) - torch.lgamma(x + 1).sum(1)

    x = torch.tensor([[0, 3], [5, 2]])
    expected = ((a + x.double().sum(1, keepdim=True)) / (b + 2)).expand(2, 2)
    torch.testing.assert_close(tweedie.robbins(log_marginal, x), expected, rtol=1e-12, atol=0)


def test_counts_of_a_sample_give_robbins_own_estimate() -> None:
    counts = torch.tensor([7840, 1317, 239, 42, 14, 4, 4, 1])  # insurance claims [Efron & Hastie 2016, table 6.1]
    x = torch.arange(8)
    expected = torch.tensor([0.168, 0.363, 0.527, 1.333, 1.429, 6.0, 1.75, 0.0], dtype=torch.float64)
    torch.testing.assert_close(tweedie.robbins(counts, x), expected, rtol=0, atol=5e-4)
    smooth = tweedie.robbins(counts, torch.tensor([[2], [7], [20]]), smoothing=0.5)
    torch.testing.assert_close(smooth, torch.tensor([[3 * 42.5 / 239.5], [8 * 0.5 / 1.5], [21.0]], dtype=torch.float64))


def test_the_estimate_from_a_sample_finds_the_posterior_mean() -> None:
    """The ratio of two counts has the relative variance 1 / N[x] + 1 / N[x + 1]."""
    generator = torch.Generator().manual_seed(0)
    rates = torch.exp(0.5 + 0.4 * torch.randn(200_000, generator=generator, dtype=torch.float64))
    counts = torch.bincount(torch.poisson(rates, generator=generator).long())
    x = torch.arange(6)
    found, exact = tweedie.robbins(counts, x), tweedie.robbins(log_poisson, x)
    error = exact * (1 / counts[:6] + 1 / counts[1:7]).sqrt()
    assert ((found - exact).abs() <= 4.5 * error).all()


def test_a_network_gives_log_m_in_the_dtype_of_x() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Dropout(0.5), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    x = torch.tensor([[0.0], [3.0]])
    found = tweedie.robbins(net, x)
    assert net.training and not found.requires_grad and found.dtype == torch.float64
    net.eval()
    torch.testing.assert_close(found, ((x + 1) * (net(x + 1) - net(x)).exp()).double().detach())


def mass(x):
    return torch.where(x < 3, -x, -math.inf)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"x": torch.tensor([1.5])}, "x: got 1.5, expected whole numbers from 0"),
        ({"x": torch.tensor([2, -1])}, "x: got -1, expected whole numbers from 0"),
        ({"x": torch.tensor([math.nan])}, "x: got nan, expected whole numbers"),
        ({"x": torch.tensor([1, 4]), "trials": 4}, "x: got 4 of 4 trials, expected at most 3"),
        ({"x": torch.tensor([1, 3])}, r"marginal: got log m\(x\) = -inf at x = \[3.0\], expected m\(x\) > 0"),
        (
            {"marginal": torch.tensor([5, 0, 2]), "x": torch.tensor([1])},
            "marginal: got no count at x = 1, expected one",
        ),
        ({"marginal": torch.tensor([5, 2]), "x": torch.tensor([9])}, "marginal: got no count at x = 9, expected one"),
        ({"marginal": torch.tensor([5.0, -2.0])}, "marginal: got -2, expected whole numbers from 0"),
        ({"marginal": torch.ones(2, 2)}, r"marginal: got counts of shape \[2, 2\], expected \[values\]"),
        ({"marginal": lambda x: x.sum()}, r"marginal: got shape \[\], expected log m of shape \[1\] like x"),
        ({"smoothing": 1.0}, "smoothing: got 1 with a function, expected 0, or counts"),
        ({"trials": 0}, "trials: got 0, expected 1 to"),
        (
            {"marginal": torch.tensor([5, 2, 3, 1]), "trials": 2},
            "marginal: got counts of values above 2, expected none",
        ),
        ({"x": torch.tensor([256.0], dtype=torch.bfloat16)}, "x: got 256 in torch.bfloat16, expected x . 1 to be"),
        ({"x": torch.tensor([2.0**24])}, "x: got 1.67772e.07 in torch.float32, expected x . 1 to be"),
        ({"x": torch.tensor([2**53])}, "x: got 9.0072e.15 in torch.float64, expected x . 1 to be"),
        ({"marginal": lambda x: torch.full_like(x, math.inf)}, "marginal: got inf, expected log m"),
    ],
)
def test_bad_input_is_named(given, named: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{named}"):
        tweedie.robbins(**({"marginal": mass, "x": torch.tensor([1])} | given))


def test_where_nothing_lies_above_the_mean_is_0() -> None:
    assert float(tweedie.robbins(mass, torch.tensor([2]))) == 0.0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16])
def test_counts_of_every_dtype_are_whole_numbers(dtype) -> None:
    x = torch.tensor([0, 1, 127], dtype=dtype)
    exact = tweedie.robbins(log_poisson, x.long())
    torch.testing.assert_close(tweedie.robbins(lambda x: log_poisson(x.double()), x), exact, rtol=1e-12, atol=0)
    seen = torch.tensor([3, 2, 1], dtype=dtype)
    torch.testing.assert_close(tweedie.robbins(seen, x[:2]), torch.tensor([2 / 3, 1.0], dtype=torch.float64))
