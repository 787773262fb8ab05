"""Ancestral sampling: z_L, ..., z_1, x, each one fused operation mean + exp(log std) noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

import ulam_kernels
from ulam_kernels import Table
from ulam_kernels.validation import check_tensor

from ..arguments import seed_int64
from ..evaluation import check_halves
from ..noise import LATENT
from .decoder import Decoder
from .gaussians import MOMENTS
from .levels import Level


@dataclass(frozen=True)
class Ancestral:
    """Draws of the model's x for given chains, ``noise`` and ``temperature`` as :meth:`HierarchicalVAE.sample`."""

    levels: Sequence[Level]
    decoder: Decoder
    seed: int
    noise: bool
    temperature: float
    backend: str | None
    row: Table  # of :func:`gaussian_row`

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        z = torch.empty(0)
        for row, level in enumerate(self.levels):
            shape = (len(ids), *level.shape)
            if level.prior is None:
                moments = torch.zeros(len(ids), 2 * level.shape[0], *level.shape[1:], device=ids.device)
            else:
                moments = check_halves(level.prior(z), shape, MOMENTS, f"levels[{row}].prior")
            z = self._draw(moments, ids, row, self.temperature)
        x = self.decoder.network(z)
        check_tensor(x, "decoder")
        if x.dim() < 2 or len(x) != len(ids):
            raise ValueError(f"decoder: got shape {list(x.shape)}, expected [{len(ids)}, ...], one x a latent")
        if self.decoder.scale is not None:
            if not self.noise:
                return x
            x = torch.cat([x, self.decoder.log_std(z, x)], dim=1)
        if x.shape[1] % 2:
            raise ValueError(f"decoder: got shape {list(x.shape)}, expected 2 C channels, {MOMENTS}")
        return self._draw(x, ids, len(self.levels), 1.0) if self.noise else x.chunk(2, dim=1)[0]

    def _draw(self, moments: torch.Tensor, ids: torch.Tensor, row: int, temperature: float) -> torch.Tensor:
        """mean + exp(log std) temperature z: one row of the fused step, its learned-variance form."""
        channels = moments.shape[1] // 2
        state = torch.empty(1, len(ids), channels, *moments.shape[2:], dtype=torch.float32, device=ids.device)
        if temperature == 0:
            return moments[:, :channels].float()
        if temperature != 1:
            lift = moments.new_full((1,), temperature).log()
            moments = torch.cat([moments[:, :channels], moments[:, channels:] + lift], dim=1)
        ulam_kernels.step(
            state,
            self.row,
            torch.zeros_like(ids),
            model=moments,
            seed=torch.full_like(ids, seed_int64(self.seed)),
            chain=ids,
            draw=torch.full_like(ids, LATENT.draw(row)),
            backend=self.backend,
        )
        return state[0]


def gaussian_row(device: torch.device) -> Table:
    """The row x = m + exp(v) z, m and v being the halves of a network's output."""
    zero, one = np.zeros(1), np.ones(1)
    A = np.zeros((1, 1, 4))
    A[0, 0, 2] = A[0, 0, 3] = 1.0
    writes, learned = np.ones((1, 1), dtype=bool), np.ones(1, dtype=bool)
    return Table.pack(zero, zero, zero - np.inf, zero + np.inf, one, zero, one, A, writes, learned, device=device)
