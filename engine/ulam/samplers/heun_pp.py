"""Heun++: Heun's method with a third evaluation one level further on [ComfyUI, sample_heunpp2]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..programs.program import Program
from ..schedules import Schedule
from .euler import ChurnSampler, Coordinates
from .grid import Grid


@dataclass(frozen=True)
class HeunPP(ChurnSampler):
    """An Euler step whose derivative is a mean over this level and the next two, lower levels counting less.

    In the coordinates (w, u) of `Coordinates` (w = x / alpha, u = sigma / alpha; on flow schedules w = x, u = t):

        w_1 = w + (u_1 - u_t) d,    w_2 = w_1 + (u_2 - u_1) d_1,    d = d(w, u_t), d_1 = d(w_1, u_1), d_2 = d(w_2, u_2)
        w_s = w + (u_1 - u_t) ((1 - b_1 - b_2) d + b_1 d_1 + b_2 d_2),    b_j = u_j / (3 u_0)

    to u_s = u_1, the next level; u_2 is the one after it and u_0 the first of all. The last step but one is without
    d_2, b_1 = u_1 / (2 u_0); the last is Euler's. There is no paper; the formula is that of the extension for A1111's
    web interface that ComfyUI took it from. Since d_j count with b_j, not 1/2, it tends to Euler's method as u falls.

    Order 1 (with churn weakly); three evaluations a step, 3 n - 3 in all; one register beyond x. churn, s_tmin, s_tmax,
    s_noise, clip: see `ChurnSampler`; steps, spacing, timesteps, sigmas, final: see `GridSampler`. Raises ValueError
    naming the argument.
    """

    section: ClassVar[str] = "Solvers of the probability flow"
    use: ClassVar[str] = "recipes that name it."
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"churn": 10.0},)
    elsewhere: ClassVar[tuple[str, ...]] = ("heunpp2",)

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        line = Coordinates.of(grid, schedule, predicts, self.clip)
        hat, n = self.raised(grid, schedule), len(grid)
        builder = self.builder(schedule, predicts, hat, registers=2)
        first = line.u((grid.alphas[0], grid.sigmas[0]))
        for i in range(n):
            level = (hat.alphas[i], hat.sigmas[i])
            ahead = [(grid.alphas[j], grid.sigmas[j]) for j in range(i + 1, min(i + 3, n))]  # evaluated too
            after = (grid.alphas[i + 1], grid.sigmas[i + 1])
            scale, u, u_after = hat.gain[i + 1] * line.scale(after), line.u(level), line.u(after)
            means = [line.u(at) / ((len(ahead) + 1) * first) for at in ahead]
            if not ahead:
                step = line.terms(level, D=scale, d=scale * u_after)
                builder.rows(hat.times[i], levels=level, x={**step, "z": hat.std[i + 1]})
                continue
            there = line.scale(after)
            mean = scale * (u + (u_after - u) * (1 - sum(means)))
            onwards = line.terms(level, D=there, d=there * u_after)
            builder.rows(hat.times[i], levels=level, x=onwards, r1=line.terms(level, D=scale, d=mean))
            for j, (at, share) in enumerate(zip(ahead, means, strict=True)):
                rest = {**line.terms(at, d=scale * (u_after - u) * share), "r1": 1.0}
                if j + 1 == len(ahead):
                    builder.rows(grid.times[i + 1 + j], levels=at, x={**rest, "z": hat.std[i + 1]})
                else:
                    u_next = line.u(ahead[j + 1])
                    onwards = line.terms(at, D=line.scale(ahead[j + 1]), d=line.scale(ahead[j + 1]) * u_next)
                    builder.rows(grid.times[i + 1 + j], levels=at, x=onwards, r1=rest)
        return builder.program(repr(self), init_scale=schedule.init_scale(float(grid.times[0])))
