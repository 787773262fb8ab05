"""The ODE likelihood against exact densities of Gaussians and mixtures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from bound_cases import FP64, GAUSSIAN, TWO, Mixture, Tensor, vp
from ulam import Denoiser, bounds, schedules
from ulam.noise import normal

POINTS = torch.tensor([[[0.4, -0.9]], [[1.1, 0.2]], [[-0.5, 0.65]]], dtype=FP64)


@pytest.mark.parametrize("mixture", [GAUSSIAN, TWO], ids=["gaussian", "mixture"])
def test_likelihood_is_the_exact_density(mixture: Mixture) -> None:
    """From noise far below the data's smallest scale to far above their largest."""
    denoiser = mixture.denoiser(schedules.ve(2e-4, 1e5), "x0")
    for options in ({"steps": 500}, {"solver": "adaptive", "rtol": 1e-8, "atol": 1e-8}):
        found = bounds.likelihood(denoiser, POINTS, trace="exact", **options)
        torch.testing.assert_close(found.log_prob, mixture.log_density(POINTS), rtol=0, atol=1e-5)
        torch.testing.assert_close(found.per_chain, -found.log_prob / (2 * math.log(2)), rtol=1e-12, atol=0)
        assert (found.per_chain_stderr == 0).all() and found.value == pytest.approx(float(found.per_chain.mean()))


@pytest.mark.parametrize(
    ("schedule", "predicts"),
    [(vp(1000), "eps"), (schedules.vp_cosine(), "v"), (schedules.flow(), "flow"), (schedules.sub_vp(), "x0")],
    ids=["vp", "cosine", "flow", "subvp"],
)
def test_likelihood_between_two_levels_of_any_schedule(schedule: schedules.Schedule, predicts: str) -> None:
    """With the exact density as the prior: that of y = x + sigma_min z."""
    low, high = 0.02, 8.0
    alpha, sigma = schedule.levels(schedule.t_of_sigma(np.array([high])))
    prior = lambda x: TWO.log_density(x, float(alpha[0]), float(sigma[0]))  # noqa: E731
    found = bounds.likelihood(
        TWO.denoiser(schedule, predicts), POINTS, trace="exact", steps=400, sigma_min=low, sigma_max=high, prior=prior
    )
    torch.testing.assert_close(found.log_prob, TWO.log_density(POINTS, 1.0, low), rtol=0, atol=1e-5)
    single = bounds.likelihood(
        TWO.denoiser(schedule, predicts), POINTS.float(), steps=200, sigma_min=low, sigma_max=high, prior=prior
    )  # independent elements: signs give the trace exactly
    torch.testing.assert_close(single.log_prob, found.log_prob, rtol=0, atol=2e-3)


def test_default_prior_and_range_are_those_of_the_sampler() -> None:
    """VP: x_T ~ N(0, I), so for data of mean 0 the error is about alpha_T^2 = 4e-5 a dimension."""
    schedule, centred = vp(1000), Mixture([1.0], [0.0], [0.7])
    found = bounds.likelihood(centred.denoiser(schedule), POINTS, trace="exact", steps=300)
    low = float(schedule.ratios[0])
    torch.testing.assert_close(found.log_prob, centred.log_density(POINTS, 1.0, low), rtol=0, atol=1e-4)
    assert found.nfe == 1200


@pytest.mark.parametrize(("solver", "order"), [("rk4", 4), ("heun", 2)])
def test_solvers_have_their_order(solver: str, order: int) -> None:
    schedule = schedules.ve(0.05, 20.0)
    prior = lambda x: TWO.log_density(x, 1.0, 20.0)  # noqa: E731
    errors = []
    for steps in (64, 128, 256):
        options: dict[str, Any] = {"solver": solver, "steps": steps, "trace": "exact", "prior": prior}
        found = bounds.likelihood(TWO.denoiser(schedule, "x0"), POINTS, **options)
        errors.append(float((found.log_prob - TWO.log_density(POINTS, 1.0, 0.05)).abs().max()))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (orders > order - 0.3).all(), orders


def correlated(schedule: schedules.Schedule) -> tuple[Denoiser, Tensor]:
    """Gaussian data in five dimensions with a full covariance, and their ideal denoiser."""
    root = torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=FP64)
    covariance = root @ root.mT / 5 + 0.05 * torch.eye(5, dtype=FP64)

    values, vectors = torch.linalg.eigh(covariance)

    def net(x: Tensor, t: Tensor) -> Tensor:
        return (x @ vectors * (values / (values + t[:, None] ** 2))) @ vectors.mT

    return Denoiser(net, schedule, "x0"), covariance


def test_hutchinson_is_inside_its_error_and_exact_without() -> None:
    denoiser, covariance = correlated(schedules.ve(1e-4, 3000.0))
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(2), dtype=FP64)
    expected = torch.distributions.MultivariateNormal(torch.zeros(5, dtype=FP64), covariance).log_prob(x)
    exact = bounds.likelihood(denoiser, x, trace="exact", steps=500)
    torch.testing.assert_close(exact.log_prob, expected, rtol=0, atol=1e-5)
    for kind, most in (("rademacher", 0.5), ("gaussian", 3.0)):
        options: dict[str, Any] = {"steps": 30, "sigma_min": 0.05, "sigma_max": 20.0}
        found = bounds.likelihood(denoiser, x, samples=40, kind=kind, **options)
        same = bounds.likelihood(denoiser, x, trace="exact", **options)
        nats = found.per_chain_stderr * 5 * math.log(2)
        assert ((found.log_prob - same.log_prob).abs() < 4 * nats).all() and (nats < most).all() and (nats > 0.01).all()
    with torch.inference_mode():
        one = bounds.likelihood(denoiser, x, steps=20)
    assert one.per_chain_stderr.isnan().all() and one.log_prob.isfinite().all()
    constant = bounds.likelihood(
        Denoiser(lambda x, t: torch.zeros_like(x), schedules.ve(0.1, 10.0), "x0"), x, steps=100
    )
    scale = torch.distributions.Normal(torch.zeros((), dtype=FP64), 0.1)  # the flow of D = 0 scales N(0, 100 I) to this
    torch.testing.assert_close(constant.log_prob, scale.log_prob(x).sum(1), rtol=1e-6, atol=1e-5)


def test_likelihood_of_a_chain_does_not_depend_on_its_batch() -> None:
    denoiser, _ = correlated(schedules.ve(1e-2, 50.0))
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(2), dtype=FP64)
    whole = bounds.likelihood(denoiser, x, samples=2, steps=10, levels=256)
    part = bounds.likelihood(denoiser, x[:2], samples=2, steps=10, levels=256)
    torch.testing.assert_close(part.log_prob, whole.log_prob[:2], rtol=1e-12, atol=0)


def test_dequantised_likelihood_bounds_the_bits_of_a_level() -> None:
    """log_prob is the density at x + (u - 1/2) / 127.5; the mean of the bits is at least -log2 of the level's mass."""
    levels = 16
    cell = 2 / (levels - 1)
    x = (2 * torch.randint(3, 13, (200, 8), generator=torch.Generator().manual_seed(5)) / (levels - 1) - 1).double()
    found = bounds.likelihood(
        GAUSSIAN.denoiser(schedules.ve(1e-3, 300.0), "x0"), x, steps=150, levels=levels, seed=7,
        prior=lambda end: GAUSSIAN.log_density(end, 1.0, 300.0),
    )  # fmt: skip
    uniform = torch.special.ndtr(normal((8,), seed=7, chains=200, tag=5).double())
    moved = x + cell * (uniform - 0.5)
    torch.testing.assert_close(found.log_prob, GAUSSIAN.log_density(moved), rtol=0, atol=2e-4)
    expected = -(GAUSSIAN.log_density(moved) / 8 + math.log(cell)) / math.log(2)
    torch.testing.assert_close(found.per_chain, expected, rtol=0, atol=1e-4)
    mass = torch.special.ndtr((x + cell / 2 - 0.3) / 0.7) - torch.special.ndtr((x - cell / 2 - 0.3) / 0.7)
    assert found.value >= float(-mass.log2().mean()) - 4 * found.stderr


def test_wrong_arguments_of_the_likelihood() -> None:
    denoiser = TWO.denoiser(schedules.ve(0.01, 50.0), "x0")
    for options, message in (
        ({"solver": "euler"}, "solver: got 'euler', expected one of rk4"),
        ({"trace": "none"}, "trace: got 'none', expected one of"),
        ({"samples": 0}, "samples: got 0, expected 1 to"), ({"steps": 0}, "steps: got 0, expected 1 to"),
        ({"levels": 1}, "levels: got 1, expected 2 to"), ({"kind": "cauchy"}, "kind: got .cauchy., expected one of"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "sigma_min, sigma_max: got 2, 1, expected 0 < sigma_min < sigma_max"),
        ({"prior": lambda x: x, "steps": 1}, r"prior: got log densities of shape .*, expected \[3\], one a chain"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            bounds.likelihood(denoiser, POINTS, **options)
    with pytest.raises(ValueError, match=r"x: got a tensor of torch.int64 .*, expected a float tensor"):
        bounds.likelihood(denoiser, torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="range of sigma/alpha"):
        bounds.likelihood(TWO.denoiser(vp(10)), POINTS, sigma_max=1e4)
