"""A small network with labels, samplers whose rows add noise, and the densities of rows in float64 by the formula."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import ulam
from ulam.rollouts import Trajectory
from ulam.samplers import DDIM, DDPM, SEEDS, DPMSolverPP, Euler, EulerAncestral

SHAPE, SIZE = (2, 7), 14
VP = ulam.schedules.vp_linear(1000)
SAMPLERS: dict[str, Any] = {
    "DDPM": DDPM(steps=9),
    "DDPM clipped": DDPM(steps=9, clip=(-1, 1)),
    "DDIM": DDIM(steps=8, eta=0.8),
    "Euler ancestral": EulerAncestral(steps=8),
    "DPM-Solver++ SDE": DPMSolverPP(steps=8, sde=True),
    "SEEDS": SEEDS(steps=5),
    "Euler with churn": Euler(steps=6, churn=8),
}


class Net(torch.nn.Module):
    """What is best for standard normal data, sigma_t x, and a small MLP of x, the time and a label."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.register_buffer("sigmas", torch.from_numpy(VP.sigma(np.arange(1000.0))))
        self.layers = torch.nn.Sequential(torch.nn.Linear(SIZE + 2, 32), torch.nn.SiLU(), torch.nn.Linear(32, SIZE))

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        label = torch.zeros_like(t) if y is None else y
        told = torch.stack([t, label], 1).to(x.dtype) / 1000
        own = 0.2 * self.layers(torch.cat([x.flatten(1), told], 1)).reshape(x.shape)
        return own + self.sigmas[t.long()].to(x.dtype)[:, None, None] * x


def denoiser(seed: int = 0, dtype: torch.dtype = torch.float32) -> ulam.Denoiser:
    return ulam.Denoiser(Net(seed).to(dtype), VP)


def densities(trajectory: Trajectory, outputs: torch.Tensor) -> npt.NDArray[np.float64]:
    """log N(x'; mean, a_z^2) of the recorded states, ``[n, K]`` in float64, by the formula of rows; NaN without noise.

    outputs: of the network after guidance, ``[n, K, *shape]``.
    """
    program, rows = trajectory.program, trajectory.rows
    assert trajectory.states is not None
    states = trajectory.states.double().flatten(2).numpy()
    m = outputs.double().flatten(2).numpy()
    found = np.full((len(trajectory), len(rows)), np.nan)
    for k, row in enumerate(rows):
        a = program.A[row, 0].astype(np.float32).astype(np.float64)
        if not a[-1]:
            continue
        r = [states[:, k]]
        if trajectory.history is not None:
            r += list(trajectory.history[:, k].double().flatten(2).numpy().transpose(1, 0, 2))
        output = m[:, k] if program.evaluates[row] else np.zeros_like(r[0])
        D = np.clip(program.kx[row] * r[0] + program.km[row] * output, program.lo[row], program.hi[row])
        mean = sum(c * term for c, term in zip(a[:-1], [*r, D, output], strict=True) if c)
        z = (states[:, k + 1] - mean) / a[-1]
        found[:, k] = (-0.5 * z**2 - math.log(abs(a[-1])) - math.log(2 * math.pi) / 2).sum(1)
    return found
