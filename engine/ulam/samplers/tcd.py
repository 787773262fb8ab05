"""TCD: trajectory consistency distillation with strategic stochastic sampling [Zheng 2024]."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ..programs.builder import ProgramBuilder
from ..programs.program import Program
from ..schedules import Array, Schedule, VariancePreserving, correlation
from .arguments import check_number, check_whole
from .grid import Grid, GridSampler, at_sigma_min, to_the_data
from .lcm import distilled_times


@dataclass(frozen=True)
class TCD(GridSampler):
    """x_u = alpha_u D + sigma_u eps, then noise up to s: from t to the next time s by way of u = (1 - eta) s.

    Strategic stochastic sampling [Zheng 2024; eta is their gamma]. With q = alpha_s sigma_u / (alpha_u sigma_s)

        x_s = alpha_s D + sigma_s (q eps + sqrt(1 - q^2) z)

    eta = 0 is DDIM, eta = 1 is multistep consistency sampling. u is rounded down to a training index where there are
    any. The last row adds no noise: it goes straight to the end.

    Levels: those of `LCM` (`original_steps` of the distillation). final: "sigma_min", the default, ends at training
    index 0 as diffusers does; a grid that is there already ends at the data. steps, spacing, timesteps, sigmas: see
    `GridSampler`. Order 1 at eta = 0, else 0: with the ideal trajectory function every number of steps is exact, with
    a plain denoiser more steps do not converge. NFE/step 1, no register beyond x. For TCD checkpoints, 2 to 20 steps:
    more steps add detail where LCM blurs; eta 0.2 to 0.5. Raises ValueError naming the argument.
    """

    eta: float = 0.3
    original_steps: int = 50
    final: str | float = field(default="sigma_min", kw_only=True)

    convention: ClassVar[str] = "index"
    default_spacing: ClassVar[str] = "leading"
    section: ClassVar[str] = "Few steps, from distilled networks"
    use: ClassVar[str] = "TCD checkpoints, 2 to 20 steps."
    elsewhere: ClassVar[tuple[str, ...]] = ("TCDScheduler",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(
            eta=check_number("eta", self.eta, 0, 1),
            original_steps=check_whole("original_steps", self.original_steps, 1),
        )

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        alpha_s, sigma_s = grid.alphas[1:], grid.sigmas[1:]
        q = np.ones(len(grid))
        if self.eta > 0:
            u = (1 - self.eta) * grid.times[1:]
            alpha_u, sigma_u = schedule.levels(np.floor(u) if isinstance(schedule, VariancePreserving) else u)
            q[:-1] = correlation(alpha_s[:-1], sigma_s[:-1], alpha_u, sigma_u)
        builder = ProgramBuilder(schedule, predicts)
        builder.rows(
            grid.times,
            levels=(grid.alphas[:-1], grid.sigmas[:-1]),
            x={"D": alpha_s, "eps": sigma_s * q, "z": sigma_s * np.sqrt((1 - q) * (1 + q))},
        )
        return builder.program(sampler=repr(self), order=int(self.eta == 0))

    def _times(self, schedule: Schedule) -> Array:
        if self.spacing is None and isinstance(schedule, VariancePreserving):
            return distilled_times(schedule, self.original_steps, self.steps)
        return super()._times(schedule)

    def _ended(self, schedule: Schedule, times: Array, alphas: Array, sigmas: Array) -> Grid:
        if self.final == "sigma_min" and at_sigma_min(schedule, alphas, sigmas):
            return to_the_data(times, alphas, sigmas)
        return super()._ended(schedule, times, alphas, sigmas)
