"""ER-SDE: solvers of reverse SDEs of any strength, with a numerical integral [Cui 2023]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..programs.builder import ProgramBuilder
from ..programs.program import Program
from ..schedules import Array, Schedule
from .arguments import check_number, check_whole
from .exponential import Terms, append
from .grid import Grid, GridSampler

LEGENDRE = 20  # points of Gauss and Legendre's rule on a part of a step
FALL = 3.0  # the most that log phi falls by on such a part
MOST = 10**4  # parts


@dataclass(frozen=True)
class ERSDE(GridSampler):
    """ER-SDE-Solver-1, 2 and 3: with u = sigma / alpha, from u_s to u_t, and a noise scale phi(u),

        x_t = alpha_t (D + (phi_t / phi_s) (x_s / alpha_s - D) + a_1 d_1 + a_2 d_2 + s_noise
              sqrt(u_t^2 - u_s^2 (phi_t / phi_s)^2) z)
        a_k = int_{u_s}^{u_t} (1 - phi_t / phi(u)) (u - u_s)^{k-1} du

    [Cui 2023, in the data form], d_1 and d_2 being D's differences over the last levels, with u_-1 and u_-2 the
    levels before u_s: d_1 = (D_s - D_-1) / (u_s - u_-1), d_2 = 2 (d_1 - d_1 of the row before) / (u_s - u_-2).

    eta: phi(u) = u^(1 + eta), the reverse SDE with eta times its strength (0 is the flow); None is the authors' own
    u (exp(u^0.3) + 10), the default, ComfyUI's too.
    stages: 1, 2 or 3, how many of the three terms; the first rows have 1 and 2.
    points: int du / phi(u) and int (u - u_s) du / phi(u) over [u_t, u_s] are sums of so many terms, at the lower ends
    of equal parts, as in ComfyUI (200; the authors take 100). None integrates to rounding, by Gauss's rule in log u.

    Order (weak): min(stages, 2) with points=None: d_1 is a plain difference, which leaves ER-SDE-Solver-3 with order 2.
    The sums leave an error of first order, about 1 / points of that of stages=1. One evaluation a step; stages - 1
    registers beyond x. A last row that ends at the data gives D. s_noise other than 1 changes the marginals.
    steps, spacing, timesteps, sigmas, final: see `GridSampler`. Raises ValueError naming the argument.
    """

    stages: int = 3
    eta: float | None = None
    s_noise: float = 1.0
    points: int | None = 200

    section: ClassVar[str] = "Stochastic"
    use: ClassVar[str] = "20 to 30 steps with noise, without guidance above all."
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"stages": 2}, {"points": None})
    elsewhere: ClassVar[tuple[str, ...]] = ("er_sde",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(
            stages=check_whole("stages", self.stages, 1, 3),
            eta=None if self.eta is None else check_number("eta", self.eta, 0, 100),
            s_noise=check_number("s_noise", self.s_noise, 0),
            points=None if self.points is None else check_whole("points", self.points, 1, 10**5),
        )

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        n, u = len(grid), grid.ratios
        kept_of = self._relative(u[1:], u[:-1])  # phi_t u_s / (phi_s u_t)
        along, std = grid.sigmas[1:] * kept_of, grid.sigmas[1:] * np.sqrt((1 - kept_of) * (1 + kept_of))
        v = np.zeros((n, 2))
        for i in range(1, n):
            stages = min(self.stages, i + 1)
            if u[i + 1] == 0 or stages == 1:
                continue
            a_1, a_2 = self._integrals(float(u[i]), float(u[i + 1]))
            gap = u[i] - u[i - 1]
            v[i] = -a_1 / gap, 0.0
            if stages == 3 and np.isfinite(u[i - 2]):
                rest = 2 * a_2 / (u[i] - u[i - 2])
                v[i] += np.array([-1 / gap - 1 / (u[i - 1] - u[i - 2]), 1 / (u[i - 1] - u[i - 2])]) * rest
        v *= grid.alphas[1:, None]
        past = min(self.stages, n) - 1
        on_x = along / grid.sigmas[:-1]
        on_D = grid.alphas[1:] - on_x * grid.alphas[:-1] - v.sum(axis=1)
        x: Terms = {"x": on_x, "D": on_D, "z": self.s_noise * std}
        newer: list[Terms] = [{"D": np.ones(n)}, {"r1": 1.0}]
        kept = {f"r{j + 1}": newer[j] for j in range(past)}
        builder = ProgramBuilder(schedule, predicts, registers=1 + past)
        append(builder, grid, x | {f"r{j + 1}": v[:, j] for j in range(past)}, kept)
        order = 1 if self.points is not None else min(self.stages, 2)
        return builder.program(sampler=repr(self), order=order)

    def _relative(self, u: Any, above: Any) -> Array:
        """phi(u) / phi(above) above / u, in [0, 1] for u <= above."""
        if self.eta is not None:
            return np.asarray(np.divide(u, above) ** self.eta)
        a, b = np.power(u, 0.3), np.power(above, 0.3)
        return np.asarray(np.exp(a - b) * (1 + 10 * np.exp(-a)) / (1 + 10 * np.exp(-b)))

    def _integrals(self, u_s: float, u_t: float) -> tuple[float, float]:
        """(a_1, a_2)."""
        if self.points is not None:
            width = (u_s - u_t) / self.points
            u, weights = u_t + width * np.arange(self.points), np.full(self.points, -width)
            falls = weights * u_t / u * self._relative(u_t, u)
            way = u_t - u_s  # what does not need a sum is integrated exactly, as in ComfyUI
            return float(way - falls.sum()), float(way**2 / 2 - falls @ (u - u_s))
        fall = (np.log(u_s) - np.log(u_t)) * (2 + (self.eta or 0)) + (u_s**0.3 if self.eta is None else 0)
        ends = np.linspace(np.log(u_s), np.log(u_t), 1 + int(np.ceil(min(fall, MOST * FALL) / FALL)))
        node, weight = np.polynomial.legendre.leggauss(LEGENDRE)
        half = np.diff(ends)[:, None] / 2
        u = np.exp(ends[:-1, None] + half * (1 + node))
        integrand = half * weight * u * (1 - u_t / u * self._relative(u_t, u))
        return float(integrand.sum()), float((integrand * (u - u_s)).sum())
