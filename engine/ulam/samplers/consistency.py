"""Multistep sampling from a consistency model [Song 2023]."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ..programs.builder import ProgramBuilder
from ..programs.clip import Clip
from ..programs.program import Program
from ..schedules import EDM, Array, Continuous, Schedule
from .arguments import check_clip, check_number, check_whole
from .grid import Grid, GridSampler
from .noise_levels import sigma_min


@dataclass(frozen=True)
class Consistency(GridSampler):
    """x_s = alpha_s (f(x_t, t) + sqrt(r_s^2 - r_min^2) z), r = sigma / alpha [Song 2023, alg. 1].

    r_min is the schedule's smallest level, where f is the identity. A last row that ends at or below it gives f itself.
    For predicts="raw" on an EDM schedule, with d = sigma_data [Song 2023, app. C],

        f = d^2 / ((sigma - sigma_min)^2 + d^2) x + (sigma - sigma_min) d / sqrt(sigma^2 + d^2) F(c_in x, 250 log sigma)

    so the network is told 250 log sigma, as published checkpoints were. Other predictions: f = D, and the network is
    told the schedule's own t.

    Levels: every (training_levels // steps)-th of the schedule's own grid of `training_levels` (on schedules with
    training steps: as `spacing` says), as diffusers' CMStochasticIterativeScheduler has them. s_noise scales z. clip:
    (lo, hi) for f, or a `DynamicThreshold`. steps, spacing, timesteps, sigmas, final: see `GridSampler`. Order 0: with
    the ideal consistency function every number of steps is exact. NFE/step 1, no register beyond x. For consistency
    models, distilled or trained, 1 to 4 steps. Raises ValueError naming the argument.
    """

    training_levels: int = 40
    s_noise: float = 1.0
    clip: Clip = None

    convention: ClassVar[str] = "index"
    default_spacing: ClassVar[str] = "trailing"
    section: ClassVar[str] = "Few steps, from distilled networks"
    use: ClassVar[str] = "consistency models, distilled or trained, 1 to 4 steps."
    elsewhere: ClassVar[tuple[str, ...]] = ("CMStochasticIterativeScheduler",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(
            training_levels=check_whole("training_levels", self.training_levels, 1),
            s_noise=check_number("s_noise", self.s_noise, 0),
            clip=check_clip(self.clip),
        )

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        least, sigma, alpha_s = sigma_min(schedule), grid.sigmas[:-1], grid.alphas[1:]
        std = self.s_noise * alpha_s * np.sqrt(np.maximum(grid.ratios[1:] ** 2 - least**2, 0.0))
        init_scale = schedule.init_scale(float(grid.times[0]))
        builder = ProgramBuilder(schedule, predicts, clip=self.clip)
        if predicts != "raw":
            builder.rows(grid.times, levels=(grid.alphas[:-1], sigma), x={"D": alpha_s, "z": std})
            return builder.program(sampler=repr(self), order=0, init_scale=init_scale)

        assert isinstance(schedule, EDM), "the builder checked the prediction"
        data = schedule.sigma_data
        c_skip = data**2 / ((sigma - least) ** 2 + data**2)
        c_out = (sigma - least) * data / np.hypot(sigma, data)
        step = {"x": c_skip, "m": c_out} if self.clip is None else {"D": np.ones(len(grid))}
        builder.rows(250 * np.log(sigma), levels=(grid.alphas[:-1], sigma), x={**step, "z": std})
        program = builder.program(sampler=repr(self), order=0, init_scale=init_scale)
        return program if self.clip is None else replace(program, kx=c_skip, km=c_out)

    def _times(self, schedule: Schedule) -> Array:
        if self.spacing is not None or not isinstance(schedule, Continuous):
            return super()._times(schedule)
        assert self.steps is not None
        if self.steps > self.training_levels:
            raise ValueError(f"steps: got {self.steps}, expected at most training_levels={self.training_levels}")
        return schedule.grid(self.training_levels)[:: self.training_levels // self.steps][: self.steps]
