"""Learned schedules and the bound in continuous time, against closed forms on Gaussian data and differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import ulam
from ulam import Denoiser, objectives, schedules
from ulam.estimation.forward import add_noise

FP64 = torch.float64
S = 0.8  # the standard deviation of the data
ENDS = (-6.0, 5.0)


class Gamma(torch.nn.Module):
    """-log snr from ENDS[0] to ENDS[1], bent by a parameter."""

    def __init__(self, bend: float) -> None:
        super().__init__()
        self.bend = torch.nn.Parameter(torch.tensor(bend, dtype=FP64))

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        return ENDS[0] + (ENDS[1] - ENDS[0]) * torch.expm1(self.bend * t) / torch.expm1(self.bend)


def ideal(schedule: schedules.Schedule) -> Denoiser:
    """eps = sigma x_t / (alpha^2 S^2 + sigma^2) of data N(0, S^2)."""

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (level[:, None].detach() for level in schedule.levels(t))
        return sigma * x / (alpha**2 * S**2 + sigma**2)

    return Denoiser(net, schedule)


@pytest.mark.parametrize("bend", [-3.0, 0.5, 4.0])
def test_the_diffusion_loss_is_the_closed_form_whatever_the_shape_between_the_ends(bend: float) -> None:
    """1/2 int S^2 / (1 + snr S^2) dsnr = 1/2 log((1 + snr_0 S^2) / (1 + snr_1 S^2)) nats an element."""
    count, generator = 40_000, torch.Generator().manual_seed(0)
    x = S * torch.randn(count, 2, generator=generator, dtype=FP64)
    t = (torch.arange(count, dtype=FP64) + 0.5) / count  # midpoints: their own error is far below the noise's
    loss = objectives.continuous_bound(ideal(schedules.learned(Gamma(bend))), x, t, prior=False, step=0).detach()
    most, least = (math.exp(-end) * S**2 for end in ENDS)
    expected = math.log((1 + most) / (1 + least)) / 2 / math.log(2)
    # what t determines is no error: it is taken out by neighbours, whose t are all but equal
    error = float((loss[::2] - loss[1::2]).std() / math.sqrt(2 * count))
    assert abs(float(loss.mean()) - expected) <= 4.5 * error and error < 0.05 * expected


def test_the_prior_is_the_divergence_from_a_standard_normal() -> None:
    schedule, x = schedules.learned(Gamma(1.0)), torch.tensor([[0.3, -2.0], [1.0, 0.0]], dtype=FP64)
    both, alone = (objectives.continuous_bound(ideal(schedule), x, 0.4, prior=prior, step=3) for prior in (True, False))
    alpha, sigma = (level.double() for level in schedule.levels(torch.ones(2)))
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(alpha[:, None] * x, sigma[:, None]), normal(0.0, 1.0))
    torch.testing.assert_close(both - alone, kl.mean(1) / math.log(2))


@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "flow", "score"])
def test_gradients_in_the_schedule_and_in_t_are_those_of_differences(predicts: str) -> None:
    gamma = Gamma(0.7)
    schedule, x = schedules.learned(gamma), torch.randn(3, 2, dtype=FP64, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0.2, 0.5, 0.9], dtype=FP64, requires_grad=True)
    denoiser = Denoiser(lambda x, t: torch.sin(x) + 0.1, schedule, predicts)
    losses = {
        "add_noise": lambda t: (lambda b: b.x_t.sin().sum() + b.target.cos().sum())(
            add_noise(x, t, schedule, predicts, step=1)
        ),
        "denoising": lambda t: objectives.denoising(denoiser, x, t, weighting="min-snr", gamma=0.9, step=1).sum(),
        "bound": lambda t: objectives.continuous_bound(denoiser, x, t, step=1).sum(),
    }
    for name, loss in losses.items():
        of_bend, of_t = torch.autograd.grad(loss(t), [gamma.bend, t])
        h = 1e-6
        with torch.no_grad():
            sides = [loss(t + side * h) for side in (1, -1)]
            assert float(of_t.sum()) == pytest.approx(float(sides[0] - sides[1]) / (2 * h), rel=1e-5), name
            sides = [(gamma.bend.add_(move), loss(t))[1] for move in (h, -2 * h)]
            gamma.bend.add_(h)
        assert float(of_bend) == pytest.approx(float(sides[0] - sides[1]) / (2 * h), rel=1e-5), name


def test_a_step_of_the_optimiser_is_seen_at_once_and_a_frozen_schedule_stays() -> None:
    gamma = Gamma(0.7)
    schedule, t = schedules.learned(gamma), torch.tensor([0.3, 0.6])
    before, frozen = schedule.alpha(t).detach(), schedule.frozen()
    with torch.no_grad():
        gamma.bend += 1.0
    assert not torch.equal(schedule.alpha(t), before) and torch.equal(frozen.alpha(t), before)
    assert schedule.frozen() != frozen and schedule.frozen() == schedule.frozen()


def test_samplers_take_the_frozen_schedule() -> None:
    """Deterministic sampling of N(0, S^2): the probability flow scales, by the standard deviations at its ends."""
    schedule = schedules.learned(Gamma(0.7)).frozen()
    assert schedule.t_of_sigma(schedule.sigma(0.37) / schedule.alpha(0.37)) == pytest.approx(0.37, rel=1e-12)
    start = torch.tensor([[1.0], [-0.5]])
    x = ulam.sample(ideal(schedule), ulam.samplers.DDIM(400), (1,), 2, x_init=start, progress=False)
    alpha, sigma = schedule.levels(1.0)
    spread = math.sqrt(alpha**2 * S**2 + sigma**2)
    torch.testing.assert_close(x, start * S / spread, rtol=1e-2, atol=0)
    with pytest.raises(TypeError, match=r"^schedule: got a learned one, whose numbers change, expected its \.frozen"):
        ulam.samplers.DDIM(4).program(schedules.learned(Gamma(1.0)))


def test_wrong_learned_schedules_are_named() -> None:
    with pytest.raises(TypeError, match=r"^gamma: got 3, expected a function of t"):
        schedules.learned(3)
    with pytest.raises(ValueError, match=r"^gamma: got .*, expected a tensor \[2\] like t"):
        schedules.learned(lambda t: t[:1]).levels(torch.tensor([0.1, 0.2]))
    with pytest.raises(ValueError, match=r"^t: got 1\.5, expected numbers in \[0, 1\]"):
        schedules.learned(Gamma(1.0)).levels(torch.tensor([1.5]))
    with pytest.raises(ValueError, match=r"^gamma: got values that do not increase"):
        schedules.learned(lambda t: -t).frozen()
    with pytest.raises(ValueError, match=r"^schedule: got vp_linear.*, expected one with t in \[0, 1\]"):
        objectives.continuous_bound(ideal(schedules.vp_linear(9)), torch.ones(2, 1), 0.5, step=0)
    with pytest.raises(RuntimeError, match=r"^alphas_cumprod: got a tensor that requires grad"):
        schedules.from_alphas_cumprod(torch.tensor([0.9, 0.5], requires_grad=True))
    assert np.isfinite(schedules.learned(Gamma(1.0)).frozen().grid(5)).all()
