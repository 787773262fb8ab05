"""Heun's method on the probability flow, with the stochastic churn of EDM [Karras 2022]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..programs.program import Program
from ..schedules import Array, Schedule
from .euler import ChurnSampler, Coordinates
from .grid import ROUNDING, Grid, not_an_index
from .noise_levels import network_times


@dataclass(frozen=True)
class Heun(ChurnSampler):
    """The trapezoidal rule with an Euler step as its predictor, from t to the next time s of the grid.

    In the coordinates (w, u) of `Coordinates` (w = x / alpha, u = sigma / alpha; on flow schedules w = x, u = t):

        w' = w + (u_s - u_t) d(w, u_t),    w_s = w + (u_s - u_t) (d(w, u_t) + d(w', u_s)) / 2

    [Karras 2022, algorithm 1; with churn algorithm 2, each step starting from a raised u_t]. A step that ends at
    sigma = 0 is Euler's.

    Order 2 (with churn weakly); two evaluations a step, one in a last step to sigma = 0: 2 n - 1; one register beyond
    x, w + (u_s - u_t) d / 2. churn, s_tmin, s_tmax, s_noise, clip: see `ChurnSampler`; steps, spacing, timesteps,
    sigmas, final: see `GridSampler`. Raises ValueError naming the argument.
    """

    section: ClassVar[str] = "Solvers of the probability flow"
    use: ClassVar[str] = "EDM networks at 15 to 40 steps; a reference solution with many."
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"churn": 10.0},)
    elsewhere: ClassVar[tuple[str, ...]] = ("heun", "HeunDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")

    def on_indices(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        check_told_end(grid, schedule, predicts)
        return super().on_indices(grid, schedule, predicts)

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        line = Coordinates.of(grid, schedule, predicts, self.clip)
        hat = self.raised(grid, schedule)
        times = told_times(grid, schedule)
        builder = self.builder(schedule, predicts, hat, registers=2)
        for i in range(len(grid)):
            level, after = (hat.alphas[i], hat.sigmas[i]), (grid.alphas[i + 1], grid.sigmas[i + 1])
            scale, u, u_after = line.scale(after), line.u(level), line.u(after)
            euler = line.terms(level, D=scale, d=scale * u_after)
            if after[1] == 0:
                builder.rows(hat.times[i], levels=level, x=euler)
                continue
            halfway = line.terms(level, D=scale, d=scale * (u + u_after) / 2)
            builder.rows(hat.times[i], levels=level, x=euler, r1=halfway)
            gain = hat.gain[i + 1]
            rest = line.terms(after, d=gain * scale * (u_after - u) / 2)
            builder.rows(times[i + 1], levels=after, x={**rest, "r1": gain, "z": hat.std[i + 1]})
        return builder.program(repr(self), order=2, init_scale=schedule.init_scale(float(grid.times[0])))


def told_times(grid: Grid, schedule: Schedule) -> Array:
    """The times of the grid's levels [n + 1], for samplers that evaluate the last of them too; 0 at the data."""
    end = network_times(schedule, grid.alphas[-1:], grid.sigmas[-1:]) if grid.sigmas[-1] else 0.0
    return np.append(grid.times, end)


def check_told_end(grid: Grid, schedule: Schedule, predicts: str) -> None:
    """Raises ValueError where the last level is above 0 and not that of a training step."""
    end = float(told_times(grid, schedule)[-1])
    if grid.sigmas[-1] > 0 and abs(end - round(end)) > ROUNDING:
        raise ValueError(not_an_index(predicts, "final", end, "'zero', 'sigma_min' or the level of a training step"))
