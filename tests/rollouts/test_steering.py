"""Steering: laws that are tilted as they should be, and the constant that normalises them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import ulam
from ulam import rollouts
from ulam.rollouts import Steering, resample
from ulam.samplers import DDIM, DDPM, DPMSolverPP, EulerAncestral

VP = ulam.schedules.vp_linear(1000)
MEANS = torch.tensor([[-1.0, 0.5], [1.0, -0.5]]).double()
SPREADS, WEIGHTS = torch.tensor([0.3, 0.5]).double(), torch.tensor([0.4, 0.6]).double()
SDE = DPMSolverPP(steps=50, sde=True)
ALONG, TEMPERATURE = torch.tensor([0.8, -0.3]).double(), 0.7


def mixture(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """E[x_0 | x_t] of a mixture of two Gaussians in the plane."""
    alpha, sigma = (torch.from_numpy(np.asarray(level))[:, None] for level in VP.levels(t.double().numpy()))
    variance = alpha**2 * SPREADS**2 + sigma**2
    away = x.double()[:, None] - alpha[:, :, None] * MEANS
    share = torch.softmax(WEIGHTS.log() - variance.log() - 0.5 * (away**2).sum(2) / variance, 1)
    return (share[:, :, None] * (MEANS + (alpha * SPREADS**2 / variance)[:, :, None] * away)).sum(1).float()


def reward(x: torch.Tensor) -> torch.Tensor:
    return x.double() @ ALONG


def tilted() -> tuple[torch.Tensor, torch.Tensor, float]:
    """Mean, covariance and log Z of the mixture times exp(reward / T)."""
    along = ALONG / TEMPERATURE
    means = MEANS + SPREADS[:, None] ** 2 * along
    log_weights = WEIGHTS.log() + MEANS @ along + 0.5 * SPREADS**2 * (along @ along)
    weights = torch.softmax(log_weights, 0)
    mean = weights @ means
    away = means - mean
    covariance = torch.einsum("k,ki,kj->ij", weights, away, away) + (weights * SPREADS**2).sum() * torch.eye(2)
    return mean, covariance, float(torch.logsumexp(log_weights, 0))


def steered(sampler: Any = SDE, particles: int = 250, groups: int = 40, **options: Any) -> Any:
    denoiser = ulam.Denoiser(options.pop("net", mixture), VP, predicts="x0")
    steering = Steering(options.pop("reward", reward), **{"every": 10, "temperature": TEMPERATURE, **options})
    return rollouts.steer(denoiser, sampler, (2,), particles, steering, seed=1, groups=groups)


@pytest.mark.parametrize("ess", [1.0, 0.6, 0.0])
def test_the_law_is_the_tilted_one(ess: float) -> None:
    """Means over 40 groups, each of its own noise: within 4 standard errors."""
    found, (mean, covariance, log_z) = steered(ess=ess), tilted()
    measured = {
        "Z": (found.log_normaliser - log_z).exp()[:, None] - 1,
        "mean": found.mean(lambda x: x) - mean,
        "covariance": found.mean(lambda x: (x - mean)[:, :, None] * (x - mean)[:, None]).flatten(1)
        - covariance.flatten(),
    }
    for name, values in measured.items():
        error = values.std(0) / math.sqrt(len(values))
        assert (values.mean(0).abs() < 4 * error + 0.002).all(), name  # and a step's error, 50 steps of order 2
    stages = 1 if ess == 0 else len(found.ess)
    assert found.ess.shape == (5, 40) and stages and (found.ess <= 250 * (1 + 1e-9)).all() and (found.ess >= 1).all()
    distinct = [len(set(row)) for row in found.ancestors.tolist()]
    assert distinct == [250] * 40 if ess == 0 else min(distinct) < 250


@pytest.mark.parametrize(
    "sampler", [DDPM(steps=30), EulerAncestral(steps=20), DPMSolverPP(steps=20, sde=True)], ids=repr
)
def test_without_resampling_it_is_sampling(sampler: Any) -> None:
    found = steered(sampler, particles=30, groups=3, ess=0.0, every=7)
    denoiser = ulam.Denoiser(mixture, VP, predicts="x0")
    assert torch.equal(found.x.flatten(0, 1), ulam.sample(denoiser, sampler, (2,), 90, 1, progress=False))
    expected = torch.logsumexp(reward(found.x) / TEMPERATURE, 1) - math.log(30)
    np.testing.assert_allclose(found.log_normaliser.numpy(), expected.numpy(), rtol=1e-12)
    weights = torch.softmax(reward(found.x) / TEMPERATURE, 1)
    np.testing.assert_allclose(found.ess[-1].numpy(), (1 / weights.square().sum(1)).numpy(), rtol=1e-9)


def test_groups_do_not_depend_on_one_another() -> None:
    whole = steered(particles=20, groups=6)
    part = steered(particles=20, groups=2)
    assert torch.equal(whole.x[:2], part.x) and torch.equal(whole.ancestors[:2], part.ancestors)
    assert torch.equal(whole.log_normaliser[:2], part.log_normaliser)


def test_a_reward_of_nan_stops_one_group_with_one_line() -> None:
    def failing(x: torch.Tensor) -> torch.Tensor:
        found = reward(x)
        found[25] = torch.nan  # of group 1
        return found

    with pytest.warns(RuntimeWarning) as told:
        found = steered(particles=20, groups=4, reward=failing)
    messages = [str(one.message) for one in told]
    assert messages == [
        "reward: got nan for particle 5 of group 1, expected finite numbers: the group stops, and is NaN"
    ]
    assert found.x[1].isnan().all() and found.log_normaliser[1].isnan() and found.ess[:, 1].isnan().all()
    others = [0, 2, 3]
    assert torch.equal(found.x[others], steered(particles=20, groups=4).x[others])


def test_resampling_is_systematic() -> None:
    """Every particle is drawn floor or ceil of n W times, its expectation is n W, and equal weights keep all."""
    log_weights = torch.log(torch.tensor([[0.5, 0.2, 0.05, 0.25, 1e-9], [1.0, 1.0, 1.0, 1.0, 1.0]]))
    expected = 5 * torch.softmax(log_weights.double(), 1)
    total = torch.zeros(2, 5)
    for row in range(4000):
        at = resample(log_weights, seed=3, row=row)
        counts = torch.stack([torch.bincount(group, minlength=5) for group in at])
        assert ((counts - expected).abs() < 1).all() and at[1].tolist() == [0, 1, 2, 3, 4]
        total += counts
    np.testing.assert_allclose(total / 4000, expected, atol=0.04)
    assert torch.equal(resample(log_weights[1:], seed=3, row=7, groups=[1]), resample(log_weights, seed=3, row=7)[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"every": 0}, "every: got 0, expected at least 1"),
        ({"temperature": 0.0}, "temperature: got 0.0, expected a number above 0"),
        ({"temperature": math.nan}, "temperature: got nan"),
        ({"ess": 1.5}, r"ess: got 1.5, expected a number in \[0, 1\]"),
        ({"reward": 3}, "reward: got 3, expected a callable"),
        ({"reward": lambda x: x}, r"reward: got .*, expected a tensor \[40\] of real numbers, one a particle"),
        ({"reward": lambda x: x.flatten(1).sum(1) * 1j}, r"reward: got .*complex.*, expected a tensor \[40\] of real"),
        ({"particles": 0}, "particles, groups: got 0 and 2"),
        ({"groups": 1.5}, "groups: got 1.5, expected an integer"),
    ],
)
def test_hostile_arguments_are_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}") as error:
        steered(**{"particles": 20, "groups": 2, **change})
    assert "\n" not in str(error.value)


def test_hostile_weights_are_refused() -> None:
    for weights, message in (
        (torch.tensor([[math.nan, 0.0]]), "log_weights: got NaN"),
        (torch.full((1, 3), -math.inf), "log_weights: got NaN, infinity, or a group of minus infinity alone"),
        ([[1.0, 2.0]], "log_weights: got list, expected a tensor"),
        (torch.tensor([[1.0, math.inf]]), "log_weights: got NaN, infinity, or a group"),
        (torch.zeros(3), r"log_weights: got shape \[3\], expected \[groups, n\]"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^{message}"):
            resample(weights, seed=0)  # type: ignore[arg-type]
    for ids, message in (
        (3, "groups: got 3, expected a sequence"),
        ([0.5], r"groups\[0\]: got 0.5, expected an integer"),
    ):
        with pytest.raises(TypeError, match=f"^{message}"):
            resample(torch.zeros(1, 3), seed=0, groups=ids)  # type: ignore[arg-type]


def test_a_sampler_without_noise_is_refused_where_copies_would_stay_copies() -> None:
    with pytest.raises(
        ValueError, match=r"^sampler: got DDIM\(steps=20\), which adds no noise .*, or Steering\(ess=0\)$"
    ):
        steered(DDIM(steps=20), particles=20, groups=1)
    assert steered(DDIM(steps=20), particles=20, groups=1, ess=0.0).x.isfinite().all()


def test_particles_of_a_group_are_told_the_same() -> None:
    denoiser = ulam.Denoiser(lambda x, t, y: x + y[:, None], VP)
    for name, wrong in (("cond", "cond"), ("uncond", "uncond")):
        told = {"cond": {"y": torch.zeros(6)}, "uncond": {"y": torch.zeros(6)}, "guidance": 2.0}
        told[wrong] = {"y": torch.arange(6.0)}
        with pytest.raises(ValueError, match=rf"^{name}\['y'\]: got several values within a group"):
            rollouts.steer(denoiser, DDPM(5), (2,), 3, Steering(reward, every=2), groups=2, **told)  # type: ignore[arg-type]


@pytest.mark.parametrize("ess", [1.0, 0.3, 0.0])
def test_chains_that_fail_and_forbidden_samples_have_no_weight(ess: float) -> None:
    def failing(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out = mixture(x, t)
        out[(x[:, 0] > 1.0) & (t < 700)] = torch.nan
        return out

    found = steered(net=failing, particles=50, groups=3, ess=ess)
    weights = found.log_weights.exp()
    assert weights.isfinite().all() and found.log_normaliser.isfinite().all()
    assert (found.x[weights > 0].isfinite()).all()
    assert found.mean(lambda x: x).isfinite().all()

    def barred(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x[:, 1] > -0.3, reward(x), -torch.inf)

    held = steered(particles=50, groups=3, ess=ess, reward=barred)
    weights = held.log_weights.exp()
    assert (weights[held.x[:, :, 1] <= -0.3] == 0).all() and held.log_normaliser.isfinite().all()


def test_a_reward_may_be_a_network() -> None:
    network = torch.nn.Linear(2, 1)
    found = steered(DDPM(steps=10), particles=8, groups=2, reward=lambda x: network(x.requires_grad_())[:, 0], every=3)
    assert found.rewards.isfinite().all() and not found.x.is_inference()
