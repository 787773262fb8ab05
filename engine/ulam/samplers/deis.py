"""DEIS: exponential Adams-Bashforth in log(sigma / alpha) on the noise estimate [Zhang & Chen 2023]."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ..programs.builder import ProgramBuilder
from ..programs.clip import Clip
from ..programs.program import Program
from ..schedules import Array, Schedule
from .arguments import check_clip, check_flag, check_whole
from .exponential import Form, moments, multistep, multistep_orders
from .grid import Grid, GridSampler, at_sigma_min, to_the_data


@dataclass(frozen=True)
class DEIS(GridSampler):
    """The log-rho multistep DEIS: with rho = sigma / alpha and p the polynomial in log rho through the last estimates,

        x_t = alpha_t (x_s / alpha_s + int_{rho_s}^{rho_t} p(log rho) drho)

    [Zhang & Chen 2023, sec. 3]. log rho = -lambda, so this is the noise form of the exponential integrator
    with exact weights: x_t = (alpha_t / alpha_s) x_s - sigma_t (c_0 eps_s + sum_j v_j (eps_j - eps_s)) where
    sum_j v_j tau_j^k = c_k = int_0^1 h exp(h (1 - tau)) tau^k dtau, with h and tau as in `DPMSolver`.

    The first rows have orders 1 and 2, so the global order is 1 for order=1 and 2 above it. One NFE a row, order - 1
    registers beyond x. lower_order_final: of fewer than 15 rows the last two have at most orders 2 and 1; a row that
    ends at the data has order 1 and gives D.
    clip: (lo, hi) for D, or a `DynamicThreshold`; the eps used is that of the clipped D, as in diffusers.

    As in diffusers' DEISMultistepScheduler, the default final is "sigma_min"; where the grid itself goes down to there
    (karras and other sigmas, VE and EDM schedules) diffusers' last row changes nothing, and ours ends at the data.
    steps, spacing, timesteps, sigmas: see `GridSampler`. Raises ValueError naming the argument.
    """

    order: int = 3
    lower_order_final: bool = True
    clip: Clip = None
    final: str | float = field(default="sigma_min", kw_only=True)

    convention: ClassVar[str] = "endless"
    default_spacing: ClassVar[str] = "linspace"
    section: ClassVar[str] = "Solvers of the probability flow"
    use: ClassVar[str] = "10 to 20 steps without guidance."
    elsewhere: ClassVar[tuple[str, ...]] = ("DEISMultistepScheduler",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("lower_order_final", self.lower_order_final)
        self._set(order=check_whole("order", self.order, 1, 3), clip=check_clip(self.clip))

    def _ended(self, schedule: Schedule, times: Array, alphas: Array, sigmas: Array) -> Grid:
        if self.final == "sigma_min" and at_sigma_min(schedule, alphas, sigmas):
            return to_the_data(times, alphas, sigmas)
        return super()._ended(schedule, times, alphas, sigmas)

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        orders = multistep_orders(grid, self.order, self.lower_order_final, euler_at_final=False)
        builder = ProgramBuilder(schedule, predicts, registers=max(orders), clip=self.clip)
        form = Form(data=False, clipped=self.clip is not None)
        multistep(builder, grid, form, orders, lambda order, g: moments(g, order)[1:])
        return builder.program(sampler=repr(self), order=min(self.order, 2))
