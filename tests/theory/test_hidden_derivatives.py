"""Networks that hide their dependence on x for some conditioning alone: refused there, at a bounded cost elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ulam
from ulam import Denoiser, schedules, sure, tweedie

VE = schedules.ve(0.01, 50.0)


class HiddenForSome(nn.Module):
    """tanh(W x) that does not let its derivative through where its conditioning is above 2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)) / 4
        self.calls = 0

    def forward(self, x, t, y=None, extra=None):
        self.calls += 1
        y = extra["y"] if y is None else y
        hidden = y.flatten(1).amax(1, keepdim=True) if y.dim() > 1 else y.expand(len(x))[:, None]
        return torch.tanh(torch.where(hidden > 2, x.detach(), x) @ self.weight)


CONDITIONING = {
    "labels": lambda label: {"y": torch.full((4,), label)},
    "one label": lambda label: {"y": torch.tensor([0, 1, 2, label])},
    "embeddings": lambda label: {"y": torch.linspace(0, label, 4)[:, None, None].expand(4, 3, 2)},
    "shared": lambda label: {"y": torch.tensor(label)},
    "nested": lambda label: {"extra": {"y": torch.full((4,), label)}},
}


@pytest.mark.parametrize("mode", ["auto", "reverse"])
@pytest.mark.parametrize("kind", CONDITIONING)
def test_a_network_that_hides_its_derivative_for_some_conditioning_is_refused_there(kind, mode) -> None:
    cond = CONDITIONING[kind]
    y = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    mixed = torch.tensor([0.5, 0.5, 5.0, 0.5])
    for use in (
        lambda denoiser, given: sure.estimate(denoiser, y, 0.5, given),
        lambda denoiser, given: sure.estimate(denoiser, y, mixed, given),
        lambda denoiser, given: tweedie.covariance_product(denoiser, y, 0.5, y, given),
        lambda denoiser, given: tweedie.third_cumulant(denoiser, y, 0.5, y, given),
        lambda denoiser, given: ulam.bounds.likelihood(denoiser, y, given, steps=3, sigma_max=5.0),
    ):
        denoiser = Denoiser(HiddenForSome(), VE, predicts="x0", derivatives=mode)
        for harmless in (0, 1):
            use(denoiser, cond(harmless))
        for _ in range(12):  # more often than what is new is looked into in any case
            with pytest.raises(TypeError, match=r"^net: got HiddenForSome, whose .* off finite differences"):
                use(denoiser, cond(5))


def test_labels_are_looked_into_once_and_a_loop_over_new_conditioning_now_and_then(monkeypatch) -> None:
    looks, held = [], ulam.estimation.derivatives.held
    monkeypatch.setattr(ulam.estimation.derivatives, "held", lambda *given: looks.append(given[2]) or held(*given))
    y, generator = torch.randn(4, 6), torch.Generator().manual_seed(0)
    for count, most, draw in (
        (60, 1, lambda: torch.randperm(4, generator=generator) % 3),  # in another order
        (60, 5, lambda: torch.randint(0, 3, (4,), generator=generator)),
        (200, 10 + 200 // 16, lambda: torch.rand(4, 5, generator=generator)),
        (200, 10 + 200 // 16, lambda: torch.rand((), generator=generator)),
    ):
        denoiser = Denoiser(HiddenForSome(), VE, predicts="x0")
        looks.clear()
        for _ in range(count):
            sure.estimate(denoiser, y, 0.5, {"y": draw()})
        assert 1 <= len(looks) <= most
        if most > 10:
            assert len(looks) > 15
