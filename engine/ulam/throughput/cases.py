"""Built-in cases to measure: a U-Net that comes along, a policy's MLP, and pictures whose network costs nothing."""

from __future__ import annotations

import itertools

import torch

from .. import schedules
from ..denoiser import Denoiser
from ..models.built_in import Model, digits

STATE, ACTIONS, HIDDEN = 14, 14, 256


class PolicyMLP(torch.nn.Module):
    """14-256-256-256-14 with the time beside x, random weights: of the size of a control policy's."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (STATE + 1, HIDDEN, HIDDEN, HIDDEN, ACTIONS)
        layers = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        self.layers = torch.nn.Sequential(*(part for layer in layers for part in (layer, torch.nn.SiLU())))[:-1]

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """eps ``[B, 14]``."""
        out: torch.Tensor = self.layers(torch.cat([x, t[:, None] / 1000], dim=1))
        return out


class Free(torch.nn.Module):
    """A network that costs nothing: what is left is the sampler.

    Its output lies beside x, as every network's does: a step that finds x in its place reads a third less.
    """

    def __init__(self) -> None:
        super().__init__()
        self.eps = torch.zeros(0)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """0 ``[B, *shape]``, written once."""
        if len(self.eps) < len(x):
            self.eps = torch.zeros_like(x)
        return self.eps[: len(x)]


def mlp() -> Model:
    """A policy's MLP."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model("mlp", Denoiser(PolicyMLP().eval(), schedules.vp_cosine(1000)), (STATE,))


def free() -> Model:
    """Pictures of 3x64x64 whose network costs nothing."""
    return Model("free", Denoiser(Free(), schedules.vp_linear(1000)), (3, 64, 64))


CASES = {"digits": digits, "mlp": mlp, "free": free}
