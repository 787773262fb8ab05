"""Small energy networks: a Gaussian of the data's moments, tilted by a multilayer perceptron."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIGITS_SHAPE, DIGITS_WIDTH = (1, 8, 8), 512
DIGITS_SIGMA = 0.3  # of the noise on the digits, in units of their range [-1, 1]


class TiltedGaussian(nn.Module):
    """E(x) = sum_i (x_i - mean_i)^2 / (2 variance_i) + f(x) of x ``[B, *shape]``, one number a row ``[B]``.

    f is a perceptron with two hidden layers of SiLU units. mean, variance ``[n]``: moments of the data (with the noise
    that training adds to them), so that f = 0 is a fair start and E confines far from the data.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, mean: Tensor, variance: Tensor, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float())
        self.register_buffer("variance", variance.float())
        self.layers = nn.ModuleList([nn.Linear(len(mean), width), nn.Linear(width, width), nn.Linear(width, 1)])
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        h = F.silu(self.layers[1](F.silu(self.layers[0](flat))))
        tilt: Tensor = self.layers[2](h)[:, 0]
        return tilt + 0.5 * ((flat - self.mean).square() / self.variance).sum(1)

    def start(self, z: Tensor) -> Tensor:
        """The Gaussian's states from standard normal noise, like z."""
        return (self.mean + self.variance.sqrt() * z.flatten(1)).view_as(z)


def load_digits_energy() -> TiltedGaussian:
    """The energy of 8x8 digits in [-1, 1] with noise of DIGITS_SIGMA: E(x ``[B, 1, 8, 8]``) ``[B]``, in eval mode.

    x - DIGITS_SIGMA^2 grad E(x) is the clean digit that is expected for a state x [Tweedie].
    """
    weights = safetensors.torch.load_file(Path(__file__).with_name("digits_ebm.safetensors"))
    zeros = torch.zeros_like(weights["mean"])
    net = TiltedGaussian(zeros, zeros + 1, DIGITS_WIDTH)
    net.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=True)
    return net.eval().requires_grad_(False)
