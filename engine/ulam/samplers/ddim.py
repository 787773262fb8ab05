"""DDIM: one marginal-preserving step along the noise estimate [Song 2021a]."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..program import Program, ProgramBuilder, compiled
from ..schedules import Schedule, correlation
from .grid import check_clip, check_grid, grid


@dataclass(frozen=True)
class DDIM:
    """x_s = alpha_s D + sqrt(sigma_s^2 - std^2) eps + std z, from t to the next time s of the grid.

    std = eta sigma_s sqrt(1 - q^2) with q = alpha_t sigma_s / (alpha_s sigma_t), any schedule [Song 2021a,
    eq. 12 and 16]: eta = 0 is deterministic (the exponential Euler step of the probability-flow ODE, order
    1), eta = 1 has DDPM's posterior variance. An eta above 1 is limited to std = sigma_s, which keeps the
    marginals. The last row gives D.

    clip: (lo, hi) for D. The step then follows the network's own eps (as diffusers does), or, with
    `rederive_eps=True`, eps = (x_t - alpha_t D) / sigma_t of the clipped D (as guided-diffusion does).
    steps, spacing, timesteps: see `samplers.grid`. Raises ValueError naming the argument.
    """

    steps: int | None = None
    eta: float = 0.0
    clip: tuple[float, float] | None = None
    spacing: str | None = None
    timesteps: tuple[float, ...] | None = None
    rederive_eps: bool = False

    def __post_init__(self) -> None:
        if self.steps is None and self.timesteps is None:
            raise ValueError("steps must be given (or timesteps), got neither")
        if isinstance(self.eta, bool) or not isinstance(self.eta, (int, float, np.number)):
            raise ValueError(f"eta must be a number, got {self.eta!r}")
        if not (math.isfinite(self.eta) and self.eta >= 0):
            raise ValueError(f"eta must be finite and at least 0, got {self.eta!r}")
        if not isinstance(self.rederive_eps, bool):
            raise ValueError(f"rederive_eps must be True or False, got {self.rederive_eps!r}")
        steps, timesteps = check_grid(self.steps, self.spacing, self.timesteps)
        for name, value in (
            ("steps", steps),
            ("timesteps", timesteps),
            ("clip", check_clip(self.clip)),
            ("eta", float(self.eta)),
        ):
            object.__setattr__(self, name, value)

    @compiled
    def program(self, schedule: Schedule, predicts: str = "eps") -> Program:
        """The rows on `schedule`, from t to s (the next of the grid, after the last the data)."""
        t = grid(schedule, self.steps, self.spacing, self.timesteps)
        alpha_t, sigma_t = schedule.levels(t)
        alpha_s, sigma_s = np.append(alpha_t[1:], 1.0), np.append(sigma_t[1:], 0.0)
        q = correlation(alpha_t, sigma_t, alpha_s, sigma_s)
        std = sigma_s * np.minimum(self.eta * np.sqrt((1 - q) * (1 + q)), 1.0)
        # sqrt(sigma_s^2 - std^2), without cancellation for eta = 1
        along = sigma_s * np.sqrt(np.maximum(1 - self.eta**2 + (self.eta * q) ** 2, 0.0))

        if self.clip is not None and self.rederive_eps:
            step = {"x": along / sigma_t, "D": alpha_s - along * alpha_t / sigma_t, "z": std}
        else:
            step = {"D": alpha_s, "eps": along, "z": std}
        builder = ProgramBuilder(schedule, predicts, clip=self.clip)
        builder.rows(t, x=step)
        return builder.program(sampler=repr(self))
