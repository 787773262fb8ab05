"""DPM-Solver: exponential integrators of the noise estimate [Lu 2022a], and what DPM-Solver++ shares with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..programs.builder import ProgramBuilder
from ..programs.clip import Clip
from ..programs.program import Program
from ..schedules import Array, Schedule
from .arguments import check_choice, check_clip, check_flag, check_number, check_whole
from .exponential import Form, Terms, moments, multistep, multistep_orders, weights
from .grid import Grid, GridSampler
from .stages import staged

KINDS = ("multistep", "singlestep")
VARIANTS = ("midpoint", "heun", "dpmsolver")


@dataclass(frozen=True)
class _DPM(GridSampler):
    """The arguments and rows of DPM-Solver and DPM-Solver++, which differ in the estimate that they extrapolate."""

    order: int = 2
    kind: str = "multistep"
    variant: str = "midpoint"
    sde: bool = False
    lower_order_final: bool | None = None
    euler_at_final: bool = False
    clip: Clip = None
    eta: float = 1.0
    s_noise: float = 1.0

    convention: ClassVar[str] = "endless"
    default_spacing: ClassVar[str] = "linspace"
    data: ClassVar[bool]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("kind", self.kind, KINDS)
        check_choice("variant", self.variant, VARIANTS)
        check_flag("sde", self.sde)
        check_flag("euler_at_final", self.euler_at_final)
        if self.lower_order_final is not None:
            check_flag("lower_order_final", self.lower_order_final)
        self._set(order=check_whole("order", self.order, 1, 3), clip=check_clip(self.clip))
        for name in ("eta", "s_noise"):
            self._set(**{name: check_number(name, getattr(self, name), 0)})
            if not self.sde and getattr(self, name) != 1:
                raise ValueError(f"{name}: got {getattr(self, name):g} under sde=False, expected 1, or sde=True")

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        eta = self.eta if self.sde else 0.0
        form = Form(self.data, eta, self.clip is not None, self.s_noise)
        many = self.kind == "multistep"
        lower = many if self.lower_order_final is None else self.lower_order_final
        ends = lower, self.euler_at_final
        orders = multistep_orders(grid, self.order, *ends) if many else singlestep_blocks(grid, self.order, *ends)
        builder = ProgramBuilder(schedule, predicts, registers=max(orders), clip=self.clip)
        if many:
            multistep(builder, grid, form, orders, self._target)
        else:
            first = 0
            for size in orders:
                self.block(builder, grid, form, first, size)
                first += size
        accuracy = min(self.order, 2) if many else 1 if eta > 0 else self.order
        return builder.program(sampler=repr(self), order=accuracy)

    def _target(self, order: int, g: float) -> Array:
        """What sum_j v_j tau_j^k must equal in a multistep row; see the classes' docstrings."""
        c = moments(g, 3)
        if order == 3:
            return np.array([c[1], c[2] / 2])
        return c[1:2] if self.variant == "heun" else c[:1] / 2

    def _stage(self, g: float, nodes: Array, inner: bool) -> Array:
        """v, shaped like `nodes`, the stages that a singlestep row looks back to; inner: whether it is one itself."""
        c = moments(g, 3)
        if len(nodes) < 2:
            exact = self.variant == "heun" or (self.variant == "dpmsolver" and inner)
            return weights(c[1:2] if exact else c[:1] / 2, nodes)
        if self.variant == "heun":
            return weights(c[1:], nodes)
        return np.append(0.0, weights(c[1:2], nodes[1:]))

    def block(self, builder: ProgramBuilder, grid: Grid, form: Form, first: int, size: int, std: float = 0.0) -> None:
        """A step over `size` levels. Row first + k ends on level first + k + 1; r1, r2 gather what later rows need.

        std: of noise that is added at the end.
        """
        steps = form.steps(grid, np.full(size, first), np.arange(first + 1, first + size + 1))
        estimates = [form.estimate(grid.alphas[i : i + 1], grid.sigmas[i : i + 1]) for i in range(first, first + size)]
        v = np.zeros((size, size))  # [row, stage]
        for j in range(1, size):
            back = (grid.log_snr[first + 1 : first + j + 1] - grid.log_snr[first]) / steps.h[j]
            v[j, 1 : j + 1] = steps.scale[j] * self._stage(float(steps.g[j]), back, inner=j + 1 < size)
        v[:, 0] = -v.sum(axis=1)
        known: list[Terms] = [
            {name: np.asarray(value)[j] for name, value in steps.noiseless.items()} for j in range(size)
        ]
        rows = slice(first, first + size)
        nodes = Grid(grid.times[rows], grid.alphas[first : rows.stop + 1], grid.sigmas[first : rows.stop + 1])
        noise = np.diag(steps.std)
        noise[-1, -1] += std
        staged(builder, nodes, known, estimates, v, noise)


def singlestep_blocks(grid: Grid, order: int, lower_order_final: bool, euler_at_final: bool) -> list[int]:
    """The sizes of the steps, in rows, as diffusers has them: `order` each, the last smaller where rows do not suffice.

    lower_order_final (also where the rows are no multiple of `order`, or end at the data): a last step of full size is
    broken up into one of order - 1 and one of 1. The last row is a step of its own with `euler_at_final` and where it
    ends at the data; so is a first row at log-SNR -inf.
    """
    infinite = [1] if grid.alphas[0] == 0 and len(grid) > 1 else []
    rows, to_data = len(grid) - len(infinite), bool(grid.sigmas[-1] == 0)
    sizes = [order] * (rows // order) + [rows % order] * (rows % order > 0)
    broken = to_data or euler_at_final or (lower_order_final and sizes[-1] == order)
    if broken and sizes[-1] > 1:
        sizes[-1:] = [sizes[-1] - 1, 1]
    return infinite + sizes


@dataclass(frozen=True)
class DPMSolver(_DPM):
    """DPM-Solver in the noise form: with h = lambda_t - lambda_s and tau = (lambda - lambda_s) / h,

        x_t = (alpha_t / alpha_s) x_s - sigma_t (c_0 eps_s + c_1 d_1 + c_2 d_2 / 2),
        c_k = int_0^1 h exp(h (1 - tau)) tau^k dtau

    [Lu 2022a, sec. 3], d_1 and d_2 being differences of earlier estimates that stand for the derivatives
    in tau. Order 1 is DDIM. The kinds, orders, variants, registers and the rules for the last rows are those of
    `DPMSolverPP`, read with eps in the place of D. kind="singlestep" with variant="dpmsolver" is the paper's algorithm
    1 (order 2) and 2 (order 3): on levels at halves and thirds of the steps in log-SNR, k-diffusion's `dpm_fast`.
    diffusers' order 3 is variant="midpoint". The factor c_0 / 2 grows without bound as the data are neared, so a last
    row that ends there has order 1 and gives D, as in every solver of this family.

    sde: the reverse SDE instead of the flow: 1 + eta times the integral, and noise s_noise sigma_t sqrt(eta (exp(2 h) -
    1)) z [SDE-DPM-Solver, Lu 2022b, eta = 1; Xue 2023, eta = tau^2]. Large h makes it unstable (eps counts with
    1 + eta - eta exp(h)): use many steps, or `DPMSolverPP`. A first row from alpha = 0 is alpha_t D + sigma_t z, as
    there.

    Beside diffusers (algorithm_type "dpmsolver" and "sde-dpmsolver", which ask for final_sigmas_type "sigma_min"): use
    final="sigma_min" to get the same; sde has order 3 and kind="singlestep" here too. clip: (lo, hi) for D, or a
    `DynamicThreshold`; the eps used is then that of the clipped D.
    steps, spacing, timesteps, sigmas, final: see `GridSampler`. Raises ValueError naming the argument.
    """

    data: ClassVar[bool] = False
    section: ClassVar[str] = "Solvers of the probability flow"
    use: ClassVar[str] = "15 to 50 steps without guidance."
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"order": 3},
        {"kind": "singlestep"},
        {"kind": "singlestep", "order": 3},
        {"kind": "singlestep", "order": 3, "variant": "dpmsolver"},
    )
    elsewhere: ClassVar[tuple[str, ...]] = ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler")
