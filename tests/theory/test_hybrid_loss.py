"""The hybrid loss: the simple loss and the bound's term, and whose gradient goes where."""

from __future__ import annotations

import pytest
import torch

from bound_cases import TWO, Tensor, images, vp
from ulam import Denoiser, bounds, objectives
from ulam.noise import TRAINING


class Learned(torch.nn.Module):
    """eps and v of the elements, with parameters of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.spread = (torch.nn.Parameter(torch.tensor(v)) for v in (0.7, 0.4))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([self.mean * x + 0.1 * torch.sin(3 * x), self.spread * torch.cos(x)], 1)


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_hybrid_loss_is_the_simple_loss_and_the_bounds_term(variance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "BOUND", TRAINING)  # both see the same x_t
    schedule, net, x_0 = vp(10), Learned(), images(torch.float32)
    denoiser = Denoiser(net, schedule)
    bound = bounds.vlb(denoiser, x_0, variance=variance, cdf="tanh", seed=3)
    for t in range(10):
        simple = objectives.denoising(denoiser, x_0, t, seed=3, step=t)
        loss = objectives.hybrid(denoiser, x_0, t, variance=variance, weight=0.02, seed=3, step=t)
        expected = simple.detach().double() + 0.02 * 10 * bound.terms[t]
        torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-4, atol=1e-5)
    mixed = objectives.hybrid(denoiser, x_0, torch.tensor([0, 5, 9, 1]), variance=variance, weight=0.02, seed=3, step=4)
    single = [objectives.hybrid(denoiser, x_0, t, variance=variance, weight=0.02, seed=3, step=4) for t in (0, 5, 9, 1)]
    torch.testing.assert_close(mixed, torch.stack([loss[b] for b, loss in enumerate(single)]))


def test_gradients_of_the_hybrid_loss_are_apart() -> None:
    """The bound teaches the variance alone: the mean's gradient is that of the simple loss, the variance's is right."""
    net, x_0, t = Learned(), images(torch.float32), torch.tensor([0, 5, 9, 1])
    denoiser = Denoiser(net, vp(10))

    def loss() -> Tensor:
        return objectives.hybrid(denoiser, x_0, t, weight=0.5, seed=3, step=0).mean()

    simple = torch.autograd.grad(objectives.denoising(denoiser, x_0, t, seed=3, step=0).mean(), net.mean)[0]
    of_mean, of_spread = torch.autograd.grad(loss(), [net.mean, net.spread])
    torch.testing.assert_close(of_mean, simple, rtol=1e-6, atol=0)
    with torch.no_grad():
        value, step = net.spread.item(), 1e-2
        sides = [loss().double() for side in (1, -1) if net.spread.fill_(value + side * step) is not None]
        net.spread.fill_(value)
    assert float(of_spread) == pytest.approx(float(sides[0] - sides[1]) / (2 * step), rel=2e-3)


def test_wrong_arguments_of_the_hybrid_loss() -> None:
    x_0 = images(torch.float32)
    with pytest.raises(ValueError, match="variance: got 'beta', expected one of learned"):
        objectives.hybrid(Denoiser(Learned(), vp(10)), x_0, 1, variance="beta", step=0)
    with pytest.raises(ValueError, match=r"net: got shape \[.*\], expected \[.*\], the mean, then the variance"):
        objectives.hybrid(TWO.denoiser(vp(10)), x_0, 1, step=0)
    with pytest.raises(ValueError, match=r"t: got 1\.5, expected whole training steps"):
        objectives.hybrid(Denoiser(Learned(), vp(10)), x_0, 1.5, step=0)
