"""DPM2: the midpoint method on the probability flow, deterministic and ancestral [Karras 2022; k-diffusion]."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ..programs.builder import ProgramBuilder
from ..programs.program import Program
from ..schedules import Array, Schedule, VariancePreserving
from .arguments import check_flag, check_number
from .euler import Coordinates, Terms, ancestral, at_ratio
from .grid import Grid, GridSampler


@dataclass(frozen=True)
class DPM2(GridSampler):
    """The midpoint method with the middle in log sigma, from t to the next time s of the grid.

    In the coordinates (w, u) of `Coordinates` (w = x / alpha, u = sigma / alpha; on flow schedules w = x, u = t):

        w' = w + (m - u_t) d(w, u_t),    w_s = w + (u_s - u_t) d(w', m),    m = sqrt(u_t u_s)

    [k-diffusion, sample_dpm_2; DPM-Solver-2 has the same middle, Lu 2022a, algorithm 1]. eta > 0 steps down to a lower
    level than u_s and adds noise back, as `EulerAncestral` does, scaled by s_noise (sample_dpm_2_ancestral, where eta =
    1; with rectified=True as ComfyUI has it on flow schedules, see `EulerAncestral`). A step whose deterministic part
    ends at sigma = 0 is Euler's. As in diffusers, sigmas="karras" tells VP networks whole times but for the middles. A
    network with time="index" is evaluated at m on the nearest training step below t instead, with the weights that have
    order 2 there, m - u_t being r (u_s - u_t):

        w_s = w + (u_s - u_t) ((1 - 1 / (2 r)) d(w, u_t) + d(w', m) / (2 r))

    Order 2 (with eta > 0 weakly); two evaluations a step, one in a last step to sigma = 0: 2 n - 1; one
    register beyond x, the step's start. steps, spacing, timesteps, sigmas, final: see `GridSampler`. Raises
    ValueError naming the argument.
    """

    eta: float = 0.0
    s_noise: float = 1.0
    rectified: bool = False

    section: ClassVar[str] = "Solvers of the probability flow"
    use: ClassVar[str] = (
        'recipes that name it. Off flow schedules DPMSolver(kind="singlestep") is the same method, its steps '
        "being counted in evaluations."
    )
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"eta": 1.0},)
    elsewhere: ClassVar[tuple[str, ...]] = (
        "dpm_2",
        "dpm_2_ancestral",
        "KDPM2DiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("rectified", self.rectified)
        self._set(eta=check_number("eta", self.eta, 0), s_noise=check_number("s_noise", self.s_noise, 0))

    def _at(self, schedule: Schedule, values: Array) -> Grid:
        grid = super()._at(schedule, values)
        rounds = self.sigmas == "karras" and isinstance(schedule, VariancePreserving)
        return replace(grid, times=grid.times.round()) if rounds else grid

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        return self._rows(grid, schedule, predicts, whole=False)

    def on_indices(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        return self._rows(grid, schedule, predicts, whole=True)

    def _rows(self, grid: Grid, schedule: Schedule, predicts: str, whole: bool) -> Program:
        """whole: whether the middles are at whole training indices, as `grid` is."""
        line = Coordinates.of(grid, schedule, predicts)
        down, up = ancestral(grid, self.eta, self.rectified)
        noise = self.s_noise * grid.sigmas[1:] * up
        builder = ProgramBuilder(schedule, predicts, registers=2)
        for i, time in enumerate(grid.times):
            level, alpha_s = (grid.alphas[i], grid.sigmas[i]), grid.alphas[i + 1]
            lower = (1.0, grid.ratios[i + 1] * down[i])
            u, u_lower, scale = line.u(level), line.u(lower), alpha_s * line.scale(lower)
            if lower[1] == 0 or (whole and time == 0):  # below index 0 no network is evaluated
                builder.rows(time, levels=level, x={**line.terms(level, D=scale, d=scale * u_lower), "z": noise[i]})
                continue
            middle = np.sqrt(u * u_lower)
            middle_time, middle_level = at_ratio(schedule, middle / (1 - line.k * middle))
            start: Terms = {"x": 1.0}
            on_start, on_middle = scale / line.scale(level), u_lower - u
            if whole:
                middle_time = np.minimum(middle_time.round(), time - 1)
                middle_level = schedule.levels(middle_time)
                middle = line.u(middle_level)
                on_start, on_middle = 1.0, (u_lower - u) ** 2 / (2 * (middle - u))  # (u_s - u_t) / (2 r)
                start = line.terms(level, D=scale, d=scale * (u_lower - on_middle))
            there = line.scale(middle_level)
            builder.rows(time, levels=level, x=line.terms(level, D=there, d=there * middle), r1=start)
            rest = line.terms(middle_level, d=scale * on_middle)
            builder.rows(middle_time, levels=middle_level, x={**rest, "r1": on_start, "z": noise[i]})
        return builder.program(sampler=repr(self), order=2)
