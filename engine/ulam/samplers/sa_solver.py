"""SA-Solver: a stochastic Adams predictor and corrector that share the network's evaluations [Xue 2023]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from ulam_kernels.arguments import described
from ulam_kernels.validation import real_numbers

from ..programs.builder import ProgramBuilder
from ..programs.clip import Clip
from ..programs.program import Program
from ..schedules import Array, FlowMatching, Schedule, VariancePreserving
from .arguments import check_clip, check_flag, check_number, check_whole
from .exponential import Form, Integers, Steps, append, combined, moments, predicted_and_corrected, weights
from .grid import Grid, GridSampler
from .noise_levels import coordinate, sigma_min


@dataclass(frozen=True)
class SASolver(GridSampler):
    """The reverse SDE with tau^2 times its strength, from level s to t, by polynomials through the estimates m:

        predictor  x_t   = a x^c_s + b (c_0 m_s + sum_j v_j (m_j - m_s)) + std z                    j: the last p - 1
        corrector  x^c_t = a x^c_s + b (c_0 m_s + sum_j w_j (m_j - m_s) + omega (m_t - m_s)) + std z    the last c - 2

    with the same z, m_t being the network's estimate at the predicted x_t [Xue 2023, p and c counting the estimates
    used]. For m = D (predict_x0), with h = lambda_t - lambda_s and g = (1 + tau^2) h,

        a = (sigma_t / sigma_s) exp(-tau^2 h),    b = alpha_t,    std = s_noise sigma_t sqrt(1 - exp(-2 tau^2 h))

    and for m = eps, with g = -h, a = alpha_t / alpha_s, b = (1 + tau^2) sigma_t, std = s_noise tau sigma_t
    sqrt(exp(2 h) - 1). v and (w, omega) integrate the polynomial through the estimates exactly: sum_j v_j tau_j^k is
    c_k, the integral of g exp(-g (1 - tau)) tau^k over [0, 1], tau = (lambda - lambda_s) / h. simple_order_2: with two
    estimates of D, g / 2 stands for c_1 in both. c_1 is below 1 and g / 2 grows with the step, so errors of long steps
    are large: on karras levels from 80 to 0.002 simple_order_2=False has less than half of them from 6 to 60 steps.

    predictor_order: p, 1 to 4. corrector_order: c, 0 (none) to 5; 1 is m_t alone. The first rows have what there is.
    tau: a number, or one for each step. interval: a single number counts where the level that a step ends on lies
    between these fractions of the way in time (0.2 and 0.8 in ComfyUI; diffusers asks where it starts), and is 0
    elsewhere; None is everywhere. On VE and EDM schedules the way is in log sigma.
    lower_order_final: predictors have at most as many estimates as steps are left, and the correction of a level two
    more than the step from there, as in diffusers. On the way to the data it is one more, as in ComfyUI, the last
    step not counted: that gives D, and its level is not corrected (with pece by m_t alone).
    pece: a corrected state is evaluated again, at the same level (ComfyUI's sa_solver_pece).
    clip: (lo, hi) for D, or a `DynamicThreshold`; with predict_x0=False the eps used is that of the clipped D.

    Order (weak) min(p, 2) without a corrector, min(c, p + 1, 2) with one, or min(c, p + 1, 3) where every tau is 0. One
    evaluation a step, with pece two where it is corrected; registers beyond x: one for a corrector, and the greater of
    p - 1 and c - 2.
    The defaults are those of diffusers' SASolverScheduler, but for tau's interval; ComfyUI's sa_solver has orders 3 and
    4 and simple_order_2=False. steps, spacing, timesteps, sigmas, final: see `GridSampler`. Raises ValueError naming
    the argument.
    """

    predictor_order: int = 2
    corrector_order: int = 2
    tau: float | tuple[float, ...] = 1.0
    interval: tuple[float, float] | None = (0.2, 0.8)
    s_noise: float = 1.0
    predict_x0: bool = True
    pece: bool = False
    simple_order_2: bool = True
    lower_order_final: bool = True
    clip: Clip = None

    convention: ClassVar[str] = "endless"
    default_spacing: ClassVar[str] = "linspace"
    section: ClassVar[str] = "Stochastic"
    use: ClassVar[str] = "noise with 20 steps or more; orders 3 and 4 without guidance."
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"predictor_order": 3, "corrector_order": 4, "simple_order_2": False},
        {"predictor_order": 3, "corrector_order": 4, "simple_order_2": False, "pece": True},
    )
    elsewhere: ClassVar[tuple[str, ...]] = ("sa_solver", "sa_solver_pece", "SASolverScheduler")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("predict_x0", "pece", "simple_order_2", "lower_order_final"):
            check_flag(name, getattr(self, name))
        self._set(
            predictor_order=check_whole("predictor_order", self.predictor_order, 1, 4),
            corrector_order=check_whole("corrector_order", self.corrector_order, 0, 5),
            tau=_check_tau(self.tau),
            interval=_check_interval(self.interval),
            s_noise=check_number("s_noise", self.s_noise, 0),
            clip=check_clip(self.clip),
        )

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        n, rows = len(grid), np.arange(len(grid))
        taus = self._taus(grid, schedule)
        form = Form(self.predict_x0, taus**2, self.clip is not None, self.s_noise)
        steps = form.steps(grid, rows, rows + 1)
        predictor, corrector = self._orders(grid)
        v, w, omega = self._weights(grid, steps, predictor, corrector)
        corrects = corrector > 0
        x, kept = predicted_and_corrected(steps, v, w, omega, corrects, again=self.pece)
        builder = ProgramBuilder(schedule, predicts, registers=1 + len(kept), clip=self.clip)
        if not (self.pece and corrects.any()):
            append(builder, grid, x, kept)
        else:
            for i in rows:
                if i and corrects[i - 1]:
                    level = grid.alphas[i], grid.sigmas[i]
                    corrected = combined((1.0, {"r1": 1.0}), (omega[i - 1], form.estimate(*level)))
                    builder.rows(grid.times[i], levels=level, x=corrected)
                append(builder, grid, x, kept, [slice(i, i + 1 if i + 1 < n else None)])
        order = min(self.predictor_order, 2)
        if corrects[: n - 1 - (grid.sigmas[-1] == 0)].all() and self.corrector_order:
            order = min(self.corrector_order, self.predictor_order + 1, 2 if taus.any() else 3)
        return builder.program(sampler=repr(self), order=order)

    def _taus(self, grid: Grid, schedule: Schedule) -> Array:
        """[n] tau of every step; 0 where it ends at the data, which get no noise."""
        n = len(grid)
        if isinstance(self.tau, tuple):
            if len(self.tau) != n:
                raise ValueError(f"tau: got {len(self.tau)} numbers, expected {n}, one for every step")
            taus = np.array(self.tau)
        else:
            taus = np.full(n, self.tau)
            if self.interval is not None:
                ends = grid.sigmas[1:] if isinstance(schedule, FlowMatching) else grid.ratios[1:]
                first, last = (level_on_the_way(schedule, fraction) for fraction in self.interval)
                taus[(ends > first) | (ends < last)] = 0.0
        return np.where(grid.sigmas[1:] > 0, taus, 0.0)

    def _orders(self, grid: Grid) -> tuple[Integers, Integers]:
        """[n] how many estimates each step's predictor and corrector use; 0 for no corrector."""
        n, to_data = len(grid), bool(grid.sigmas[-1] == 0)
        rows = np.arange(n)
        predictor = np.minimum(rows + 1, self.predictor_order)
        corrector = np.minimum(rows + 2, self.corrector_order)
        if self.lower_order_final:
            left = n - to_data - rows  # this step and those behind it that do not end at the data
            predictor = np.minimum(predictor, np.maximum(left, 1))
            corrector = np.minimum(corrector, left + (not to_data))
        if to_data:
            predictor[-1] = 1
            if not self.pece:  # the level whose D is the result
                corrector[-2:] = 0
        corrector[-1] = 0
        if grid.alphas[0] == 0 and (not self.predict_x0 or (self.simple_order_2 and corrector[0] == 2)):
            corrector[0] = 0  # c_k and g are infinite
        return predictor, corrector

    def _weights(
        self, grid: Grid, steps: Steps, predictor: Integers, corrector: Integers
    ) -> tuple[Array, Array, Array]:
        """b v and b w [n, past] and b omega [n], past being the number of estimates that are kept."""
        n, past = len(grid), max(int(predictor.max()) - 1, int(corrector.max()) - 2, 0)
        v, w, omega = np.zeros((n, past)), np.zeros((n, past)), np.zeros(n)
        for i, (p, c) in enumerate(zip(predictor, corrector, strict=True)):
            if p < 2 and c == 0:
                continue
            integrals = moments(float(steps.g[i]), 5)
            nodes = (grid.log_snr[max(i - past, 0) : i][::-1] - grid.log_snr[i]) / steps.h[i]
            simple = self.simple_order_2 and self.predict_x0
            half = np.array([steps.g[i] / 2])
            if p > 1:
                v[i, : p - 1] = weights(half if simple and p == 2 else integrals[1:p], nodes[: p - 1])
            if c == 1:
                omega[i] = integrals[0]
            elif c > 1:
                target = half if simple and c == 2 else integrals[1:c]
                *w[i, : c - 2], omega[i] = weights(target, np.append(nodes[: c - 2], 1.0))
        b = steps.scale
        return v * b[:, None], w * b[:, None], omega * b


def level_on_the_way(schedule: Schedule, fraction: float) -> float:
    """The level (as in `sigmas`) at this fraction of the way in time from noise (0) to the data (1), as in ComfyUI."""
    if fraction in (0, 1):
        return 0.0 if fraction else np.inf
    if isinstance(schedule, VariancePreserving):
        log_ratios = np.log(schedule.ratios)
        return float(np.exp(np.interp((1 - fraction) * (schedule.steps - 1), np.arange(schedule.steps), log_ratios)))
    if isinstance(schedule, FlowMatching):
        return schedule.shift * (1 - fraction) / (1 + (schedule.shift - 1) * (1 - fraction))
    largest, smallest = float(coordinate(schedule, schedule.grid(1))[0]), sigma_min(schedule)  # type: ignore[attr-defined]
    return float(largest * (smallest / largest) ** fraction)


def _check_tau(tau: object) -> float | tuple[float, ...]:
    """`tau` as a number of at least 0, or a tuple of such, else ValueError."""
    if isinstance(tau, (np.ndarray, torch.Tensor)) and tau.ndim == 1:
        tau = real_numbers("tau", tau).tolist()
    if isinstance(tau, Sequence) and not isinstance(tau, (str, bytes)):
        if not tau:
            raise ValueError(f"tau: got {described(tau)}, expected a number, or one for every step")
        return tuple(check_number("tau", each, 0, 100) for each in tau)
    return check_number("tau", tau, 0, 100)


def _check_interval(interval: object) -> tuple[float, float] | None:
    """`interval` as two fractions in order, or None, else ValueError."""
    if interval is None:
        return None
    if not isinstance(interval, Sequence) or isinstance(interval, (str, bytes)) or len(interval) != 2:
        raise ValueError(f"interval: got {described(interval)}, expected None or two fractions of the way")
    first, last = (check_number("interval", each, 0, 1) for each in interval)
    if first > last:
        raise ValueError(f"interval: got {first:g} before {last:g}, expected fractions in order")
    return first, last
