"""DDPM: ancestral sampling [Ho 2020; Nichol & Dhariwal 2021]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..programs.builder import ProgramBuilder
from ..programs.clip import Clip
from ..programs.program import Program
from ..schedules import Array, Schedule, posterior
from .arguments import check_choice, check_clip
from .grid import Grid, GridSampler

VARIANCES = ("posterior", "beta", "learned", "learned_range")


@dataclass(frozen=True)
class DDPM(GridSampler):
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

    A last row that ends at the data gives D itself, without noise [Ho 2020, algorithm 2], so beta~ = 0 never meets a
    logarithm.
    steps: None is every training step; spacing, timesteps, sigmas: see `GridSampler`. clip: (lo, hi) for D, or a
    `DynamicThreshold`. Order 1. Raises ValueError naming the argument.
    """

    variance: str = "posterior"
    clip: Clip = None

    convention: ClassVar[str] = "index"
    default_spacing: ClassVar[str] = "leading"
    every_step: ClassVar[bool] = True
    section: ClassVar[str] = "Ancestral and marginal-preserving steps"
    use: ClassVar[str] = "hundreds of steps, networks with learned variances, the papers' own figures."

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("variance", self.variance, VARIANCES)
        self._set(clip=check_clip(self.clip))

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        alpha, sigma = grid.alphas[:-1], grid.sigmas[:-1]
        on_x, on_D, fresh = posterior(alpha, sigma, grid.alphas[1:], grid.sigmas[1:])
        small, large = grid.sigmas[1:] * np.sqrt(fresh), sigma * np.sqrt(fresh)  # sqrt of beta~ and of beta
        noisy = slice(0, len(grid) - int(grid.sigmas[-1] == 0))  # the data themselves get no noise
        builder = ProgramBuilder(schedule, predicts, clip=self.clip)
        log_scale: tuple[Array | float, Array | float] | None = None
        if self.variance == "learned":
            log_scale = 0.5, 0.0
        elif self.variance == "learned_range":
            with np.errstate(divide="ignore"):
                log_scale = (np.log(large) - np.log(small))[noisy] / 2, (np.log(large) + np.log(small))[noisy] / 2
        std = {"posterior": small, "beta": large}.get(self.variance, np.ones(len(grid)))
        builder.rows(
            grid.times[noisy],
            levels=(alpha[noisy], sigma[noisy]),
            x={"x": on_x[noisy], "D": on_D[noisy], "z": std[noisy]},
            log_scale=log_scale,
        )
        if grid.sigmas[-1] == 0:
            builder.rows(grid.times[-1], levels=(alpha[-1], sigma[-1]), x={"D": 1.0})
        return builder.program(sampler=repr(self))
