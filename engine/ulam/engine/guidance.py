"""Guidance beyond the fused step's own: the rescaled form."""

from __future__ import annotations

import torch

from ..arguments import per_chain


def rescaled(m: torch.Tensor, uncond: torch.Tensor, weight: torch.Tensor, phi: torch.Tensor) -> torch.Tensor:
    """Classifier-free guidance with the conditional output's standard deviation, per chain [Lin 2024, section 3.4].

    With g = uncond + w (m - uncond): phi g std(m) / std(g) + (1 - phi) g. m, uncond: ``[B, ...]`` float32 or float64;
    weight, phi: ``[B]`` float32. Chains with w = 1 keep m exactly; chains whose g is constant keep g.
    """
    w, mix = per_chain(weight, m), per_chain(phi, m)
    guided = uncond + w * (m - uncond)
    spread = guided.reshape(len(m), -1).std(1, correction=0)
    ratio = torch.where(spread > 0, m.reshape(len(m), -1).std(1, correction=0) / spread, 1.0)
    return torch.where(w == 1, m, guided * (1 + mix * (per_chain(ratio, m) - 1)))
