"""Gradient estimation: Euler's method on a derivative extrapolated beyond the last two [Permenter & Yuan 2024]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..programs.builder import ProgramBuilder
from ..programs.program import Program
from ..schedules import Schedule
from .arguments import check_flag, check_number
from .euler import Coordinates
from .grid import Grid, GridSampler


@dataclass(frozen=True)
class GradientEstimation(GridSampler):
    """Euler's step along gamma d_i + (1 - gamma) d_{i-1}, the first one along d_0.

    In the coordinates (w, u) of `Coordinates` (w = x / alpha, u = sigma / alpha; on flow schedules w = x, u = t):

        w_{i+1} = w_i + (u_{i+1} - u_i) (gamma d_i + (1 - gamma) d_{i-1})

    [Permenter & Yuan 2024, who take gamma = 2]. gamma = 1 is Euler's method, gamma = 1.5 Adams-Bashforth's of order 2
    with equal steps. A last row that ends at the data gives D.

    cfg_pp: with d of the unguided output, u for w on the guided D [ComfyUI, sample_gradient_estimation_cfg_pp, after
    Chung 2024]:

        w_{i+1} = D + u_{i+1} d_i + (u_{i+1} - u_i) (gamma - 1) (d_i - d_{i-1})

    Order 1 (2 for gamma = 1.5; under cfg_pp without guidance: it moves the state once a step); one evaluation a step;
    one register beyond x, the last derivative, and another under cfg_pp. steps, spacing, timesteps, sigmas, final: see
    `GridSampler`. Raises ValueError naming the argument.
    """

    gamma: float = 2.0
    cfg_pp: bool = False

    section: ClassVar[str] = "Solvers of the probability flow"
    use: ClassVar[str] = "few steps, where its overshoot is wanted; recipes that name it."
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"cfg_pp": True},)
    elsewhere: ClassVar[tuple[str, ...]] = ("gradient_estimation", "gradient_estimation_cfg_pp")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("cfg_pp", self.cfg_pp)
        self._set(gamma=check_number("gamma", self.gamma))

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        line = Coordinates.of(grid, schedule, predicts)
        u, scale = line.u((grid.alphas, grid.sigmas)), line.scale((grid.alphas, grid.sigmas))
        registers = min(2, len(grid))
        builder = ProgramBuilder(schedule, predicts, registers=registers, unguided=self.cfg_pp)
        for i, time in enumerate(grid.times):
            level, after = (grid.alphas[i], grid.sigmas[i]), scale[i + 1]
            extra = (self.gamma - 1) * (u[i + 1] - u[i]) if i and u[i + 1] > 0 else 0.0
            along = after * (u[i + 1] + extra)
            if self.cfg_pp:
                x = {**line.terms(level, D=after, d=0.0), **line.unguided(d=along)}
                d = line.unguided(d=1.0)
            else:
                x, d = line.terms(level, D=after, d=along), line.terms(level, d=1.0)
            kept: dict[str, Any] = {"r1": d} if i + 1 < len(grid) else {}
            builder.rows(time, levels=level, x={**x, **({"r1": -after * extra} if extra else {})}, **kept)
        return builder.program(sampler=repr(self), order=2 if self.gamma == 1.5 else 1)
