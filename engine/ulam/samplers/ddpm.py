"""DDPM: ancestral sampling [Ho 2020; Nichol & Dhariwal 2021]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..program import Program, ProgramBuilder, compiled
from ..schedules import Array, Schedule, posterior
from .grid import check_clip, check_grid, grid

VARIANCES = ("posterior", "beta", "learned", "learned_range")


@dataclass(frozen=True)
class DDPM:
    """Ancestral sampling: x_s ~ N(mu~(x_t, D), std^2) from t to the next time s of the grid.

    With q = alpha_t sigma_s / (alpha_s sigma_t), any schedule [Ho 2020, eq. 6-7; Kingma 2021, eq. 26-29]:

        mu~ = (sigma_s / sigma_t) q x_t + alpha_s (1 - q^2) D

    On a VP schedule with the eps prediction this is (x_t - beta / sigma_t eps) / sqrt(a) with a = abar_t /
    abar_s and beta = 1 - a [Ho 2020, eq. 11]: a respaced grid keeps abar and recomputes beta [Nichol &
    Dhariwal 2021, sec. 4].

    | variance | std^2 |
    |---|---|
    | posterior | sigma_s^2 (1 - q^2) (beta~) |
    | beta | sigma_t^2 (1 - q^2) (beta) |
    | learned | exp(v), v the second half of the network's 2C channels |
    | learned_range | exp(f log beta + (1 - f) log beta~), f = (v + 1) / 2 [Nichol & Dhariwal 2021, eq. 15] |

    The last row gives D itself, without noise [Ho 2020, algorithm 2], so beta~ = 0 never meets a logarithm.
    steps: None is every training step; spacing, timesteps: see `samplers.grid`. clip: (lo, hi) for D. Order
    1. Raises ValueError naming the argument.
    """

    steps: int | None = None
    variance: str = "posterior"
    clip: tuple[float, float] | None = None
    spacing: str | None = None
    timesteps: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.variance not in VARIANCES:
            raise ValueError(f"variance must be one of {', '.join(VARIANCES)}, got {self.variance!r}")
        steps, timesteps = check_grid(self.steps, self.spacing, self.timesteps)
        for name, value in (("steps", steps), ("timesteps", timesteps), ("clip", check_clip(self.clip))):
            object.__setattr__(self, name, value)

    @compiled
    def program(self, schedule: Schedule, predicts: str = "eps") -> Program:
        """The rows on `schedule`, from t to s (the next of the grid); the last row gives D."""
        t = grid(schedule, self.steps, self.spacing, self.timesteps)
        alpha, sigma = schedule.levels(t)
        on_x, on_D, fresh = posterior(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])
        small, large = sigma[1:] * np.sqrt(fresh), sigma[:-1] * np.sqrt(fresh)  # sqrt of beta~ and of beta
        std = {"posterior": small, "beta": large}.get(self.variance, 1.0)
        log_scale: tuple[Array | float, Array | float] | None = None
        if self.variance == "learned":
            log_scale = 0.5, 0.0
        elif self.variance == "learned_range":
            log_scale = (np.log(large) - np.log(small)) / 2, (np.log(large) + np.log(small)) / 2
        builder = ProgramBuilder(schedule, predicts, clip=self.clip)
        builder.rows(t[:-1], x={"x": on_x, "D": on_D, "z": std}, log_scale=log_scale)
        builder.rows(t[-1], x={"D": 1.0})
        return builder.program(sampler=repr(self))
