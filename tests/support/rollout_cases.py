"""A small network with labels, samplers whose rows add noise, and the densities of rows in float64 by the formula."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import ulam
from ulam.rollouts import Trajectory
from ulam.samplers import DDIM, DDPM, ERSDE, SEEDS, DPMSolverPP, Euler, EulerAncestral, SASolver

SHAPE, SIZE = (2, 7), 14
VP = ulam.schedules.vp_linear(1000)
SAMPLERS: dict[str, Any] = {
    "DDPM": DDPM(steps=9),
    "DDPM clipped": DDPM(steps=9, clip=(-1, 1)),
    "DDIM": DDIM(steps=8, eta=0.8),
    "Euler ancestral": EulerAncestral(steps=8),
    "DPM-Solver++ SDE": DPMSolverPP(steps=8, sde=True),
    "DPM-Solver++ SDE, order 3": DPMSolverPP(steps=8, sde=True, order=3),
    "SEEDS": SEEDS(steps=5),
    "ER-SDE": ERSDE(steps=7),
    "SA-Solver": SASolver(steps=7),
    "Euler ancestral, CFG++": EulerAncestral(steps=8, cfg_pp=True),
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


def densities(
    trajectory: Trajectory, outputs: torch.Tensor, unguided: torch.Tensor | None = None, exact: bool = False
) -> npt.NDArray[np.float64]:
    """log N(x'; mean, a_z^2) of the recorded states, ``[n, K]`` in float64, by the formula of rows; NaN without noise.

    The registers are those that the outputs leave on these states. outputs: of the network after guidance, ``[n, K,
    *shape]``; unguided: of the unguided branch. exact: coefficients in float64.
    """
    return walked(trajectory, outputs, unguided, exact)[0]


def rounding(trajectory: Trajectory) -> npt.NDArray[np.float64]:
    """What 24 bits of the states can change of their densities, ``[n, K]``, where |z| is at most 4."""
    assert trajectory.states is not None
    a = trajectory.program.A[trajectory.rows.start : trajectory.rows.stop, 0, -1]
    size = trajectory.states[:, 1:].double().abs().flatten(2).sum(2).numpy()
    return 4 * 2.0**-24 * size / np.where(a == 0, 1, abs(a))


def walked(
    trajectory: Trajectory, outputs: torch.Tensor, unguided: torch.Tensor | None = None, exact: bool = False
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The densities, and the means ``[n, K, size]``."""
    program, rows = trajectory.program, trajectory.rows
    assert trajectory.states is not None
    states = trajectory.states.double().flatten(2).numpy()
    m = outputs.double().flatten(2).numpy()
    u = m if unguided is None else unguided.double().flatten(2).numpy()
    found, means = np.full((len(trajectory), len(rows)), np.nan), np.zeros_like(m)
    kept = [np.zeros_like(states[:, 0]) for _ in range(1, program.registers)]
    for k, row in enumerate(rows):
        A = program.A[row] if exact else program.A[row].astype(np.float32).astype(np.float64)
        r = [states[:, k], *kept]
        if number := int(program.unguided[row]):
            r[number] = u[:, k]
        output = m[:, k] if program.evaluates[row] else np.zeros_like(r[0])
        D = np.clip(program.kx[row] * r[0] + program.km[row] * output, program.lo[row], program.hi[row])

        def mean(i: int, A: npt.NDArray[np.float64] = A, terms: Any = (*r, D, output)) -> Any:
            return sum((c * term for c, term in zip(A[i, :-1], terms, strict=True) if c), np.zeros_like(terms[0]))

        a, means[:, k] = A[0, -1], mean(0)
        z = (states[:, k + 1] - means[:, k]) / a if a else np.full_like(r[0], np.nan)
        if a:
            found[:, k] = (-0.5 * z**2 - math.log(abs(a)) - math.log(2 * math.pi) / 2).sum(1)
        kept = [
            mean(i) + (A[i, -1] * z if A[i, -1] else 0) if program.writes[row, i] else r[i]
            for i in range(1, program.registers)
        ]
    return found, means
