"""UniPC: a predictor and a corrector that share the network's evaluations [Zhao 2023]."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ulam_kernels.arguments import described

from ..programs.builder import ProgramBuilder
from ..programs.clip import Clip
from ..programs.program import Flags, Program
from ..schedules import Array, Schedule
from .arguments import check_choice, check_clip, check_flag, check_whole
from .exponential import Form, Integers, Steps, append, moments, predicted_and_corrected, weights
from .grid import Grid, GridSampler

VARIANTS = ("bh1", "bh2")


@dataclass(frozen=True)
class UniPC(GridSampler):
    """UniPC-p on the data estimate m = D (predict_x0) or the noise estimate m = eps, from level s to t:

        predictor  x_t  = a x^c_s + b (c_0 m_s + sum_j v_j (m_j - m_s))                        j: the last p - 1 rows
        corrector  x^c_t = a x^c_s + b (c_0 m_s + sum_j w_j (m_j - m_s) + omega (m_t - m_s))

    m_t being the network's estimate at the predicted x_t, so that the corrector costs no evaluation [Zhao 2023,
    sec. 3]. (a, b) is (sigma_t / sigma_s, alpha_t) for D and (alpha_t / alpha_s, sigma_t) for eps; with h = lambda_t -
    lambda_s, tau = (lambda - lambda_s) / h and g = h for D, g = -h for eps, c_k is the integral of g exp(-g (1 - tau))
    tau^k over [0, 1]. v and (w, omega) make the sums exact for polynomials in tau, but for the predictor of order 2
    (v_1 tau_1 = B / 2) and the corrector of order 1 (omega = B / 2): B = g for variant="bh1", B = c_0 for "bh2".

    The order grows from 1 in the first rows. The global order is order + 1, but at most 3: the first corrector's local
    error is O(h^3). One NFE a row; `order` registers beyond x (the corrector's known part and order - 1 estimates).
    lower_order_final: the last rows have at most orders ..., 2, 1. A row that ends at the data has order 1.
    disable_corrector: the steps (0, 1, ...) whose result is left as predicted; range(steps) is UniP alone. A step from
    alpha = 0, where h is infinite, is corrected only if B is finite (predict_x0 with "bh2").
    clip: (lo, hi) for D, or a `DynamicThreshold`; with predict_x0=False the eps used is that of the clipped D
    (diffusers ignores thresholding there).

    The defaults are those of diffusers' UniPCMultistepScheduler; order goes to 4.
    steps, spacing, timesteps, sigmas, final: see `GridSampler`. Raises ValueError naming the argument.
    """

    order: int = 2
    variant: str = "bh2"
    predict_x0: bool = True
    lower_order_final: bool = True
    disable_corrector: tuple[int, ...] = ()
    clip: Clip = None

    convention: ClassVar[str] = "endless"
    default_spacing: ClassVar[str] = "linspace"
    section: ClassVar[str] = "Solvers of the probability flow"
    use: ClassVar[str] = "5 to 20 steps, where every evaluation counts; order=3 without guidance."
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"order": 3},)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("variant", self.variant, VARIANTS)
        check_flag("predict_x0", self.predict_x0)
        check_flag("lower_order_final", self.lower_order_final)
        self._set(
            order=check_whole("order", self.order, 1, 4),
            disable_corrector=_check_steps("disable_corrector", self.disable_corrector),
            clip=check_clip(self.clip),
        )

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        n = len(grid)
        orders = np.minimum(np.arange(n) + 1, self.order)
        if self.lower_order_final:
            orders = np.minimum(orders, n - np.arange(n))
        if grid.sigmas[-1] == 0:
            orders[-1] = 1
        form, rows = Form(self.predict_x0, clipped=self.clip is not None), np.arange(n)
        steps, corrects = form.steps(grid, rows, rows + 1), self._corrects(grid)
        v, w, omega = self._weights(grid, steps, orders, corrects)

        x, kept = predicted_and_corrected(steps, v, w, omega, corrects)
        builder = ProgramBuilder(schedule, predicts, registers=1 + len(kept), clip=self.clip)
        append(builder, grid, x, kept)
        every = bool(corrects[:-1].all())
        return builder.program(sampler=repr(self), order=min(self.order + 1, 3) if every else min(self.order, 2))

    def _corrects(self, grid: Grid) -> Flags:
        """[n] whether the next row corrects what a row predicts."""
        rows = np.arange(len(grid))
        bounded = (grid.alphas[:-1] > 0) | (self.predict_x0 and self.variant == "bh2")
        return bounded & (rows < len(grid) - 1) & ~np.isin(rows, self.disable_corrector)

    def _weights(self, grid: Grid, steps: Steps, orders: Integers, corrects: Flags) -> tuple[Array, Array, Array]:
        """b v and b w [n, orders - 1] and b omega [n], of what a row predicts and of its correction."""
        n, past = len(grid), int(orders.max()) - 1
        v, w, omega = np.zeros((n, past)), np.zeros((n, past)), np.zeros(n)
        for i, order in enumerate(orders):
            if order == 1 and not corrects[i]:
                continue
            back = grid.log_snr[i - order + 1 : i][::-1]
            nodes = (back - grid.log_snr[i]) / steps.h[i]
            c = moments(float(steps.g[i]), order + 1)
            half = np.array([steps.g[i] if self.variant == "bh1" else c[0]]) / 2
            if order > 1:
                v[i, : order - 1] = weights(half if order == 2 else c[1:order], nodes)
            if corrects[i]:
                *w[i, : order - 1], omega[i] = weights(c[1:], np.append(nodes, 1.0)) if order > 1 else half
        scale = steps.scale
        return v * scale[:, None], w * scale[:, None], omega * scale


def _check_steps(name: str, steps: object) -> tuple[int, ...]:
    """`steps` as a tuple of whole numbers from 0, else ValueError."""
    if isinstance(steps, str) or not isinstance(steps, Iterable) or getattr(steps, "ndim", 1) != 1:
        raise ValueError(f"{name}: got {described(steps)}, expected a sequence of steps (whole numbers from 0)")
    return tuple(check_whole(name, step, 0) for step in steps)
