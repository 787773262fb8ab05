"""Weights of |D - x_0|^2 as functions of the signal-to-noise ratio, for ``denoising(..., weighting=)``.

Each takes snr = (alpha / sigma)^2 ``[B]`` and gives weights ``[B]``; ``functools.partial`` sets what has a default. In
terms of the error of eps, |D - x_0|^2 snr, the weights are those without the factor snr.

>>> loss = ulam.objectives.denoising(denoiser, x, t, weighting=weightings.p2, step=step)
"""

from __future__ import annotations

import torch


def p2(snr: torch.Tensor, gamma: float = 1.0, k: float = 1.0) -> torch.Tensor:
    """snr / (k + snr)^gamma: less on low noise, where fine details are decided [Choi 2022]."""
    return snr / (k + snr) ** gamma


def sigmoid(snr: torch.Tensor, bias: float = 0.0) -> torch.Tensor:
    """snr sigmoid(bias - log snr): the error of eps, less on low noise [Kingma & Gao 2023]."""
    return snr * torch.sigmoid(bias - snr.log())


def edm(snr: torch.Tensor, sigma_data: float = 0.5) -> torch.Tensor:
    """snr + 1 / sigma_data^2: lambda(sigma) of EDM, whatever the network predicts [Karras 2022, table 1]."""
    return snr + sigma_data**-2
