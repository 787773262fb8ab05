"""Densities from scores by line integrals, against densities with a formula."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

import ulam
from ulam import mcmc, schedules
from ulam.ebm import density_from_score
from ulam.estimation import line_integrals

MIXTURE = mcmc.GaussianMixture([[-1.5, 0.2], [1.0, 1.0], [0.6, -1.2]], 0.35, [0.5, 0.3, 0.2])
LAWS = {
    "mixture": MIXTURE,
    "islands": mcmc.GaussianMixture([[-4.0, 0.0], [4.0, 0.0]], 0.5, [0.1, 0.9]),
    "narrow": mcmc.GaussianMixture([[-4.0, 0.0], [4.0, 0.0]], 0.05, [0.1, 0.9]),
    "ring": mcmc.Ring(2),
    "funnel": mcmc.Funnel(3),
    "double well": mcmc.DoubleWell(2),
    "many": mcmc.Gaussian(torch.zeros(50), torch.linspace(0.1, 3.0, 50)),
}


def exact(law, x, origin):
    return law.log_prob(x.double()) - law.log_prob(origin.double().expand(x.shape))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", LAWS)
def test_the_density_is_exact_within_the_error_it_claims(name, dtype):
    law = LAWS[name]
    x, origin = law.sample(40, seed=1).to(dtype), law.sample(1, seed=2)[0].to(dtype)
    found = density_from_score(law.score, x, origin, via=torch.full_like(origin, 0.3))
    off = (found.value - exact(law, x, origin)).abs()
    assert (off <= found.error).all() and (found.loop.abs() <= found.loop_error).all()
    if dtype == torch.float64:
        assert off.max() < 1e-9 and found.error.max() < 3e-8
    elif name != "narrow":  # whose score is 1,600 between its islands
        assert off.max() < 1e-5 and found.error.max() < 1e-2


def test_an_origin_a_row_and_points_at_the_origin():
    x = MIXTURE.sample(6, seed=3)
    origin = x.roll(1, 0)
    origin[2] = x[2]
    found = density_from_score(MIXTURE.score, x, origin)
    torch.testing.assert_close(found.value, MIXTURE.log_prob(x) - MIXTURE.log_prob(origin), rtol=0, atol=1e-8)
    assert found.value[2] == 0 and found.error[2] == pytest.approx(1e-8)
    assert found.loop is None and found.loop_error is None


def test_the_score_of_a_denoiser_gives_the_noised_density():
    """Images [1, 2]: the shape is the network's, and the score needs no energy."""
    denoiser, sigma = MIXTURE.denoiser(schedules.vp_linear(1000)), 0.6
    x = MIXTURE.sample(20, seed=4)[:, None]

    def score(y):
        return ((ulam.tweedie.mean(denoiser, y[:, 0], sigma) - y[:, 0]) / sigma**2)[:, None]

    found = density_from_score(score, x, torch.zeros(1, 2, dtype=torch.float64))
    torch.testing.assert_close(found.value, exact(MIXTURE.noised(sigma), x[:, 0], torch.zeros(2)), rtol=1e-8, atol=1e-8)


def test_an_energy_is_found_again_from_its_score():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.SiLU(), torch.nn.Linear(32, 1), torch.nn.Flatten(0))
    energy, x, origin = ulam.Energy(net), torch.randn(10, 3), torch.zeros(3)
    found = density_from_score(energy.score, x, origin)
    wanted = (energy(origin[None]) - energy(x)).detach().double()
    assert ((found.value - wanted).abs() <= found.error + 1e-6).all() and found.error.max() < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        rough = density_from_score(energy.score, x, origin)
    assert ((rough.value - wanted).abs() <= rough.error + 1e-2).all() and rough.error.max() > 100 * found.error.max()


def test_the_loop_is_the_flux_of_the_curl_by_stokes():
    """s = -x + c (x_1, -x_0) has the curl -2 c: the triangle's area times it, exactly."""
    c, x = 0.25, torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def score(x):
        return -x + c * torch.stack([x[:, 1], -x[:, 0]], 1)

    origin, via = torch.tensor([0.3, -0.2], dtype=torch.float64), torch.tensor([1.0, 0.5], dtype=torch.float64)
    found = density_from_score(score, x, origin, via=via)
    a, b = x - origin, via - origin
    area = (a[:, 0] * b[1] - a[:, 1] * b[0]) / 2  # of origin, x, via, counter-clockwise
    torch.testing.assert_close(found.loop, -2 * c * area, rtol=1e-12, atol=1e-12)


def test_jumps_and_kinks_are_integrated():
    """The Laplace density, whose score jumps, and Huber's, whose score has kinks."""
    x = torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    origin = torch.tensor([0.3, 1.7], dtype=torch.float64)
    laplace = density_from_score(lambda x: -x.sign(), x, origin)
    wanted = origin.abs().sum() - x.abs().sum(1)
    assert ((laplace.value - wanted).abs() <= laplace.error + 1e-12).all() and laplace.error.max() < 1e-7
    huber = density_from_score(lambda x: -x.clamp(-1, 1), x, origin)
    loss = torch.nn.functional.huber_loss
    wanted = loss(origin, 0 * origin, reduction="sum") - loss(x, 0 * x, reduction="none").sum(1)
    assert ((huber.value - wanted).abs() <= huber.error + 1e-12).all() and huber.error.max() < 1e-7


def test_a_coarser_tolerance_takes_fewer_evaluations_and_keeps_its_word():
    x, origin = MIXTURE.sample(40, seed=5), torch.zeros(2, dtype=torch.float64)
    fine, coarse = (density_from_score(MIXTURE.score, x, origin, tolerance=t) for t in (1e-10, 1e-2))
    assert coarse.evaluations < fine.evaluations / 2
    for found in (fine, coarse):
        assert ((found.value - exact(MIXTURE, x, origin)).abs() <= found.error + 1e-12).all()


def test_a_random_score_is_told_in_one_line_with_the_error_that_is_left(monkeypatch):
    monkeypatch.setattr(line_integrals, "MOST_INTERVALS", 50)
    generator = torch.Generator().manual_seed(0)
    x = torch.ones(2, 2)
    with pytest.warns(RuntimeWarning, match="score: got one whose integral is off by .* after 50 intervals") as told:
        found = density_from_score(lambda x: -x + 0.1 * torch.randn(x.shape, generator=generator), x, torch.zeros(2))
    assert "\n" not in str(told[0].message) and told[0].filename == __file__
    assert ((found.value + 1).abs() <= 3 * found.error).all() and found.error.min() > 1e-3


def test_a_score_that_is_not_finite_gives_no_number():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = density_from_score(lambda x: x * math.nan, torch.ones(2, 2), torch.zeros(2))
    assert found.value.isnan().all() and found.error.isnan().all()


def test_the_rules_are_those_of_clenshaw_and_curtis():
    """Exact to degree n, with the weights of the explicit sum in their paper (n = 8, at the ends and in the middle)."""
    for n in (8, 16):
        points, weights = (np.array(values) for values in line_integrals._rule(n))
        for degree in range(n + 1):
            assert (weights * points**degree).sum() == pytest.approx((degree % 2 == 0) * 2 / (degree + 1), abs=1e-14)
        assert weights[0] == pytest.approx(1 / (n * n - 1), abs=1e-15)
    assert line_integrals._rule(8)[0] == pytest.approx(line_integrals._rule(16)[0][::2], abs=1e-15)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"score": 3}, TypeError, "score: got 3, expected a function of x"),
        ({"score": lambda x: x[:, :1]}, ValueError, r"score: got shape \[4, 1\], expected \[4, 2\] like its input"),
        ({"score": lambda x: None}, TypeError, "score: got NoneType, expected a tensor"),
        ({"score": lambda x: x.long()}, TypeError, "score: got torch.int64, expected floats like its input"),
        ({"x": torch.ones(4)}, ValueError, "x: got a tensor of torch.float32"),
        ({"x": torch.ones(4, 2, requires_grad=True)}, RuntimeError, "x: got a tensor that requires grad, but"),
        ({"origin": 0.0}, TypeError, r"origin: got 0.0, expected a float tensor \[2\], or one a row \[4, 2\]"),
        ({"origin": torch.zeros(3)}, ValueError, r"origin: got a tensor .* expected a float tensor \[2\]"),
        ({"via": torch.zeros(1, 2)}, ValueError, r"via: got a tensor .* expected a float tensor \[2\]"),
        ({"tolerance": 0.0}, ValueError, "tolerance: got 0.0, expected a number above 0"),
        ({"tolerance": "x"}, TypeError, "tolerance: got 'x', expected a finite number"),
    ],
)
def test_bad_arguments_get_one_clear_line(change, error, message):
    given = {"score": lambda x: -x, "x": torch.ones(4, 2), "origin": torch.zeros(2)} | change
    with pytest.raises(error, match=message) as caught:
        density_from_score(**given)
    assert "\n" not in str(caught.value)
