"""DPM-Solver-fast: steps of order 3 on equal pieces of log-SNR, the last of lower order [Lu 2022a]."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ..programs.program import Program
from ..schedules import Array, Schedule
from .dpm_solver import DPMSolver
from .euler import at_ratio
from .grid import Grid, GridSampler


@dataclass(frozen=True)
class DPMFast(GridSampler):
    """DPM-Solver of order 3 in the noise form with `steps` evaluations, on a grid of its own [Lu 2022a].

    steps // 3 + 1 pieces of equal length in log-SNR, of orders 3, ..., 3, 2, 1 where steps is a multiple of 3, else 3,
    ..., 3 and steps % 3 [k-diffusion, sample_dpm_fast at eta = 0]. Pieces of order 3 are evaluated at their start and
    at 1/3 and 2/3 of the way, those of order 2 at their start and half-way. So it is `DPMSolver` with
    kind="singlestep", order=3 and variant="dpmsolver" on these levels.

    The pieces reach from the first level of the grid that spacing, timesteps or sigmas name to its end, or to its last
    level where that end is the data, which log-SNR never reaches: noise of that level is left in the sample, as in
    k-diffusion. A single step goes to the data. A first level of pure noise is left in a piece of its
    own, of order 1, to the second level of that grid. On flow schedules ComfyUI takes log t for log-SNR.

    Order 2 (3 where steps % 3 is 2); two registers beyond x. steps, spacing, timesteps, sigmas, final: see
    `GridSampler`. Raises ValueError naming the argument.
    """

    section: ClassVar[str] = "Solvers of the probability flow"
    use: ClassVar[str] = "recipes that name it."
    elsewhere: ClassVar[tuple[str, ...]] = ("dpm_fast",)

    def grid(self, schedule: Schedule) -> Grid:
        """Every level at which the network is evaluated, and the end."""
        given = super().grid(schedule)
        ratios = given.ratios[given.ratios > 0]
        pure = int(np.isinf(ratios[0]))
        rows = len(given) - pure
        if rows == 0 or len(ratios) < pure + 2:  # one step, or to the data at once
            return given
        inside = ratios[pure] * np.exp(-pieces(rows) * np.log(ratios[pure] / ratios[-1]))
        times, (alphas, sigmas) = at_ratio(schedule, inside)
        times[0], alphas[0], sigmas[0] = given.times[pure], given.alphas[pure], given.sigmas[pure]
        end = int(np.flatnonzero(given.ratios > 0)[-1])
        return Grid(
            np.append(given.times[:pure], times),
            np.concatenate([given.alphas[:pure], alphas, given.alphas[end : end + 1]]),
            np.concatenate([given.sigmas[:pure], sigmas, given.sigmas[end : end + 1]]),
        )

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        solver = DPMSolver(len(grid), 3, "singlestep", "dpmsolver", lower_order_final=True)
        program = solver.on(grid, schedule, predicts)
        return replace(program, sampler=repr(self), order=3 if len(grid) % 3 == 2 else 2)


def pieces(rows: int) -> Array:
    """[rows] places in [0, 1) of the evaluations, their share of the way in log-SNR."""
    orders = [3] * (rows // 3) + [rows % 3] * (rows % 3 > 0)
    if rows % 3 == 0:
        orders[-1:] = [2, 1]
    places = [piece + j / order for piece, order in enumerate(orders) for j in range(order)]
    return np.array(places) / len(orders)
