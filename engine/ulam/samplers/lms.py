"""LMS: linear multistep (Adams-Bashforth) on the probability flow, and its relatives iPNDM and DEIS's table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.polynomial import Polynomial

from ..programs.builder import ProgramBuilder
from ..programs.program import Program
from ..schedules import Array, Schedule
from .arguments import check_choice, check_flag, check_whole
from .euler import Coordinates, Terms
from .grid import Grid, GridSampler

POLYNOMIALS = ("sigma", "index", "vp-time")


@dataclass(frozen=True)
class LMS(GridSampler):
    """Multistep: the past derivatives' interpolation polynomial, integrated exactly over the step.

    In the coordinates (w, u) of `Coordinates` (w = x / alpha, u = sigma / alpha; on flow schedules w = x, u = t),
    from u_i to u_{i+1} [k-diffusion, sample_lms; Adams-Bashforth with unequal steps]:

        w_{i+1} = w_i + sum_j a_j d_{i-j},    a_j = integral of prod_{l != j} (v - v_{i-l}) / (v_{i-j} - v_{i-l}) du

    over j, l = 0 .. p - 1, with p = order, and p = i + 1 in the first rows. v is what `polynomial` names:

    | polynomial | v | known as |
    |---|---|---|
    | sigma | u | lms; ipndm_v; deis in its rhoab form |
    | index | the row's number, u being linear over the step: (3, -1) / 2, (23, -16, 5) / 12, ... | ipndm [Liu 2022] |
    | vp-time | t of the VP SDE that has sigma / alpha 0.002 at t = 0.001 and 80 at 1 | deis [Zhang & Chen 2023, tAB] |

    euler_at_final: a row that ends at the data has order 1 and gives D, as in ComfyUI; the default for all polynomials
    but "sigma", which extrapolates there too, as k-diffusion and diffusers do (ComfyUI's lms does not). With "vp-time"
    it is always so.

    Beside ComfyUI: its ipndm_v has slips in the weights of orders 3 and 4, which at order 4 do not add up to the step;
    ours are Adams-Bashforth's. Its deis adds up 10,000 points for the integral, with errors of 1e-4; ours is exact.

    Order min(order, 2): the first row is an Euler step, whose error of second order stays. One evaluation a step;
    order - 1 registers beyond x, the past derivatives. order: 1 to 4; steps, spacing, timesteps, sigmas, final: see
    `GridSampler`. Raises ValueError naming the argument.
    """

    order: int = 4
    polynomial: str = "sigma"
    euler_at_final: bool | None = None

    section: ClassVar[str] = "Solvers of the probability flow"
    use: ClassVar[str] = "recipes that name it."
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"polynomial": "index"},
        {"order": 3, "polynomial": "vp-time"},
    )
    elsewhere: ClassVar[tuple[str, ...]] = ("lms", "ipndm", "ipndm_v", "deis", "LMSDiscreteScheduler")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("polynomial", self.polynomial, POLYNOMIALS)
        if self.euler_at_final is not None:
            check_flag("euler_at_final", self.euler_at_final)
        self._set(order=check_whole("order", self.order, 1, 4))

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        line = Coordinates.of(grid, schedule, predicts)
        u, scale = line.u((grid.alphas, grid.sigmas)), line.scale((grid.alphas, grid.sigmas))
        registers = min(self.order, len(grid))
        euler = self.polynomial != "sigma" if self.euler_at_final is None else self.euler_at_final
        euler = euler or self.polynomial == "vp-time"
        builder = ProgramBuilder(schedule, predicts, registers=registers)
        for i, time in enumerate(grid.times):
            level, after = (grid.alphas[i], grid.sigmas[i]), scale[i + 1]
            order = 1 if euler and u[i + 1] == 0 else self.order
            weights = self._weights(u[max(0, i + 1 - order) : i + 2])
            step = line.terms(level, D=after, d=after * (u[i] + weights[0]))
            past = {f"r{j}": after * weight for j, weight in enumerate(weights[1:], 1)}
            kept: dict[str, Any] = {}
            if i + 1 < len(grid):
                newer: list[Terms] = [line.terms(level, d=1.0), {"r1": 1.0}, {"r2": 1.0}]
                kept = {f"r{j}": terms for j, terms in enumerate(newer[: min(i + 1, registers - 1)], 1)}
            builder.rows(time, levels=level, x={**step, **past}, **kept)
        return builder.program(sampler=repr(self), order=min(self.order, 2))

    def _weights(self, u: Array) -> Array:
        """[p] weights of the derivatives at u[-2], u[-3], ..., u[0], for the step from u[-2] to u[-1]; u is [p + 1]."""
        if self.polynomial == "index" or len(u) == 2:
            return np.asarray((u[-1] - u[-2]) * adams_bashforth(np.arange(float(len(u)))))
        return adams_bashforth(u) if self.polynomial == "sigma" else adams_bashforth_in_time(u)


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


def adams_bashforth_in_time(u: Array) -> Array:
    """As `adams_bashforth`, for a polynomial in `vp_time` of u; by Gauss's rule in log u, exact to rounding."""
    points, rule = np.polynomial.legendre.leggauss(128)
    half = np.log(u[-1] / u[-2]) / 2
    inside = u[-2] * np.exp(half * (1 + points))
    times, nodes = vp_time(inside), vp_time(u[-2::-1])
    weights = []
    for j, node in enumerate(nodes):
        others = np.delete(nodes, j)
        weights.append(half * (rule * inside) @ np.prod((times[:, None] - others) / (node - others), axis=1))
    return np.array(weights)


def vp_time(u: Array) -> Array:
    """t, shaped like u, where log(1 + u^2) = a t + b t^2 / 2 as on the VP SDE [Song 2021b].

    a and b are such that u = 80 at t = 1 and u = 0.002 at t = 0.001, the ends of ComfyUI's deis.
    """
    least, most = np.log1p(0.002**2), np.log1p(80.0**2)
    b = 2 * (most - least / 1e-3) / (1 - 1e-3)
    a = most - b / 2
    return np.asarray((np.sqrt(a**2 + 2 * b * np.log1p(u**2)) - a) / b)
