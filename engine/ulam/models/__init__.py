"""Trained networks that come with the package."""

from pathlib import Path

import safetensors.torch

from .digits import DigitsUNet

__all__ = ["DigitsUNet", "load_digits"]


def load_digits() -> DigitsUNet:
    """The trained digits network, in fp32 and eval mode: eps = net(x [B, 1, 28, 28], t [B], y [B])."""
    weights = safetensors.torch.load_file(Path(__file__).with_name("digits.safetensors"))
    net = DigitsUNet()
    net.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=True)
    return net.eval().requires_grad_(False)
