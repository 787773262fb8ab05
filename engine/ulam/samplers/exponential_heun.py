"""Exponential Heun: a first-order step, its estimate at the end, and the step again with both [Gonzalez 2023]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..programs.builder import ProgramBuilder
from ..programs.program import Program
from ..schedules import Schedule
from .arguments import check_choice, check_number
from .euler import Coordinates
from .exponential import moments
from .grid import Grid, GridSampler
from .heun import check_told_end, told_times

WEIGHTS = ("phi_2", "phi_1")


@dataclass(frozen=True)
class ExponentialHeun(GridSampler):
    """The exponential trapezoidal rule for D in log-SNR: from s to t, h = lambda_t - lambda_s, g = (1 + eta) h,

        x' = (sigma_t / sigma_s) exp(-eta h) x_s + alpha_t c_0 D_s + std z
        x_t = (sigma_t / sigma_s) exp(-eta h) x_s + alpha_t ((c_0 - v) D_s + v D(x', t)) + std z
        c_0 = 1 - exp(-g),    std = s_noise sigma_t sqrt(1 - exp(-2 eta h))

    [SEEDS-2 of Gonzalez 2023 with both stages at the ends of the step; ComfyUI, sample_exp_heun_2_x0 (eta = 0) and
    sample_exp_heun_2_x0_sde (eta = 1)]. Both lines have the same z. weights: "phi_2" is exact for a D that is linear in
    lambda, v = 1 - c_0 / g; "phi_1" takes v = c_0 / 2. A row that ends at the data gives D.

    Order 2 (with eta > 0 weakly); two evaluations a step, one in a last step to sigma = 0: 2 n - 1; one register beyond
    x. steps, spacing, timesteps, sigmas, final: see `GridSampler`. Raises ValueError naming the argument.
    """

    eta: float = 0.0
    s_noise: float = 1.0
    weights: str = "phi_2"

    section: ClassVar[str] = "Solvers of the probability flow"
    use: ClassVar[str] = "recipes that name it; eta = 1 where noise is wanted."
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"eta": 1.0},)
    elsewhere: ClassVar[tuple[str, ...]] = ("exp_heun_2_x0", "exp_heun_2_x0_sde")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("weights", self.weights, WEIGHTS)
        self._set(eta=check_number("eta", self.eta, 0), s_noise=check_number("s_noise", self.s_noise, 0))

    def on_indices(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        check_told_end(grid, schedule, predicts)
        return super().on_indices(grid, schedule, predicts)

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        line, times = Coordinates(predicts, schedule, 0, clipped=False), told_times(grid, schedule)
        builder = ProgramBuilder(schedule, predicts, registers=2)
        for i in range(len(grid)):
            level, (alpha, sigma) = (grid.alphas[i], grid.sigmas[i]), (grid.alphas[i + 1], grid.sigmas[i + 1])
            if sigma == 0:
                builder.rows(times[i], levels=level, x=line.terms(level, D=alpha, d=0.0))
                continue
            h = grid.log_snr[i + 1] - grid.log_snr[i]
            c = moments(float((1 + self.eta) * h), 2)
            v = alpha * (c[1] if self.weights == "phi_2" else c[0] / 2)
            kept, std = (1.0, 0.0) if self.eta == 0 else (np.exp(-self.eta * h), np.sqrt(-np.expm1(-2 * self.eta * h)))
            along, noise = sigma * kept, self.s_noise * sigma * std
            first = {**line.terms(level, D=alpha, d=along), "z": noise}  # alpha D + along eps
            start = {**line.terms(level, D=alpha - v, d=along), "z": noise}
            builder.rows(times[i], levels=level, x=first, r1=start)
            after = (alpha, sigma)
            builder.rows(times[i + 1], levels=after, x={**line.terms(after, D=v, d=0.0), "r1": 1.0})
        return builder.program(sampler=repr(self), order=2)
