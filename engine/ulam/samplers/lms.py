"""LMS: linear multistep (Adams-Bashforth) on the probability flow [k-diffusion]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.polynomial import Polynomial

from ..programs.builder import ProgramBuilder
from ..programs.program import Program
from ..schedules import Array, Schedule
from .arguments import check_whole
from .euler import Coordinates, Terms
from .grid import Grid, GridSampler


@dataclass(frozen=True)
class LMS(GridSampler):
    """Multistep: the past derivatives' interpolation polynomial, integrated exactly over the step.

    In the coordinates (w, u) of `Coordinates` (w = x / alpha, u = sigma / alpha; on flow schedules w = x, u = t),
    from u_i to u_{i+1} [k-diffusion, sample_lms; Adams-Bashforth with unequal steps]:

        w_{i+1} = w_i + sum_j a_j d_{i-j},    a_j = integral of prod_{l != j} (u - u_{i-l}) / (u_{i-j} - u_{i-l}) du

    over j, l = 0 .. p - 1, with p = order, and p = i + 1 in the first rows.

    Order min(order, 2): the first row is an Euler step, whose error of second order stays. One evaluation a step;
    order - 1 registers beyond x, the past derivatives. order: 1 to 4; steps, spacing, timesteps, sigmas, final: see
    `GridSampler`. Raises ValueError naming the argument.
    """

    order: int = 4

    section: ClassVar[str] = "Solvers of the probability flow"
    use: ClassVar[str] = "recipes that name it."

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(order=check_whole("order", self.order, 1, 4))

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        line = Coordinates.of(grid, schedule, predicts)
        u, scale = line.u((grid.alphas, grid.sigmas)), line.scale((grid.alphas, grid.sigmas))
        registers = min(self.order, len(grid))
        builder = ProgramBuilder(schedule, predicts, registers=registers)
        for i, time in enumerate(grid.times):
            level, after = (grid.alphas[i], grid.sigmas[i]), scale[i + 1]
            weights = adams_bashforth(u[max(0, i + 1 - self.order) : i + 2])
            step = line.terms(level, D=after, d=after * (u[i] + weights[0]))
            past = {f"r{j}": after * weight for j, weight in enumerate(weights[1:], 1)}
            kept: dict[str, Any] = {}
            if i + 1 < len(grid):
                newer: list[Terms] = [line.terms(level, d=1.0), {"r1": 1.0}, {"r2": 1.0}]
                kept = {f"r{j}": terms for j, terms in enumerate(newer[: min(i + 1, registers - 1)], 1)}
            builder.rows(time, levels=level, x={**step, **past}, **kept)
        return builder.program(sampler=repr(self), order=min(self.order, 2))


def adams_bashforth(u: Array) -> Array:
    """[p] weights of the derivatives at u[-2], u[-3], ..., u[0], for the step from u[-2] to u[-1]; u is [p + 1]."""
    step = u[-1] - u[-2]
    nodes = (u[-2::-1] - u[-2]) / step  # 0, -1, -2, ... where steps are equal
    weights = []
    for j, node in enumerate(nodes):
        others = np.delete(nodes, j)
        lagrange = Polynomial.fromroots(others) if len(others) else Polynomial([1.0])
        weights.append(step * lagrange.integ()(1.0) / np.prod(node - others))
    return np.array(weights)
