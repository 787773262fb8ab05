"""PNDM: pseudo-numerical Runge-Kutta and linear multistep [Liu 2022]."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..programs.builder import ProgramBuilder
from ..programs.program import Program
from ..schedules import Array, Schedule, VariancePreserving
from .arguments import check_choice, check_flag
from .euler import Coordinates, NoiseLevel, Terms, at_ratio
from .grid import Grid, GridSampler, at_sigma_min, to_the_data

# Adams-Bashforth on equal steps, by the number of past derivatives, newest first [Liu 2022, eq. 12 has the last].
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@dataclass(frozen=True)
class PNDM(GridSampler):
    """Classical weights for the noise estimate, DDIM's transfer for the state [Liu 2022, eq. 9, 12 and 13].

    The transfer phi(x, e, t, s) = (alpha_s / alpha_t) x + (sigma_s - alpha_s sigma_t / alpha_t) e. Three Runge-Kutta
    steps come first, each with h halfway between t and s:

        e1 = eps(x_t, t),                  e2 = eps(phi(x_t, e1, t, h), h),    e3 = eps(phi(x_t, e2, t, h), h),
        e4 = eps(phi(x_t, e3, t, s), s),   x_s = phi(x_t, (e1 + 2 e2 + 2 e3 + e4) / 6, t, s)

    then x_s = phi(x_t, (55 e_t - 59 e_{t-1} + 37 e_{t-2} - 9 e_{t-3}) / 24, t, s). skip_prk=True starts with one
    step of Heun's method and Adams-Bashforth of order 2 and 3 instead (PLMS, as Stable Diffusion does): the second
    time is told twice. On flow schedules and at zero terminal SNR eps - D takes the place of eps and the transfer
    is along it, see `Coordinates`. h is the middle training index, rounded down; where sigmas are given, or there
    are no training steps, the middle in u (for networks with time="index" at the nearest training step).

    mixes: "eps" as in the paper, or "output": the weights go over the network's outputs, and their mean is turned into
    eps with the step's own x_t, as diffusers does. For v, score and raw that is of order 1.

    final: "sigma_min" by default, as in diffusers (set_alpha_to_one=False). Where the grid ends at that level already
    (leading spacing) its last time is left out, which diffusers evaluates to no effect; a grid of one time there ends
    at the data.

    Order 2, or 1 as said (the weights presume equal steps in u); one evaluation a step, and nine more with
    Runge-Kutta steps, one more without; four registers beyond x (three past estimates and a step's start), three
    without Runge-Kutta. steps, spacing, timesteps, sigmas: see `GridSampler`. Raises ValueError naming the argument.
    """

    skip_prk: bool = False
    mixes: str = "eps"
    final: str | float = field(default="sigma_min", kw_only=True)

    convention: ClassVar[str] = "index"
    default_spacing: ClassVar[str] = "leading"
    section: ClassVar[str] = "Solvers of the probability flow"
    use: ClassVar[str] = "Stable Diffusion recipes, with skip_prk=True (PLMS) and 30 to 50 steps."
    elsewhere: ClassVar[tuple[str, ...]] = ("plms", "PNDMScheduler")
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"skip_prk": True},)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("skip_prk", self.skip_prk)
        check_choice("mixes", self.mixes, ("eps", "output"))

    def _ended(self, schedule: Schedule, times: Array, alphas: Array, sigmas: Array) -> Grid:
        if self.final == "sigma_min" and at_sigma_min(schedule, alphas, sigmas):
            return Grid(times[:-1], alphas, sigmas) if len(times) > 1 else to_the_data(times, alphas, sigmas)
        return super()._ended(schedule, times, alphas, sigmas)

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        return self._rows(grid, schedule, predicts, whole=False)

    def on_indices(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        return self._rows(grid, schedule, predicts, whole=True)

    def _rows(self, grid: Grid, schedule: Schedule, predicts: str, whole: bool) -> Program:
        """whole: whether the middles are at whole training indices wherever `grid` is."""
        line = Coordinates.of(grid, schedule, predicts)
        builder = ProgramBuilder(schedule, predicts, registers=4 if self.skip_prk else 5)
        for i, time in enumerate(grid.times):
            level, after = ((grid.alphas[j], grid.sigmas[j]) for j in (i, i + 1))
            last = i + 1 == len(grid)  # its end may be the data, where no network is evaluated
            step = Step(line, float(time), level, after, 0 if last else min(i + 1, 3), self.mixes == "output")
            if last or i >= (1 if self.skip_prk else 3):
                step.multistep(builder, ADAMS_BASHFORTH[min(i, 3)])
            elif self.skip_prk:
                step.heun(builder, float(grid.times[i + 1]))
            else:
                after_time = float(grid.times[i + 1])
                step.runge_kutta(builder, *self._middle(step, schedule, after_time, whole), after_time)
        first_order = self.mixes == "output" and predicts in ("v", "score", "raw")
        return builder.program(sampler=repr(self), order=1 if first_order else 2)

    def _middle(self, step: Step, schedule: Schedule, after_time: float, whole: bool) -> tuple[float, NoiseLevel]:
        """The time and the level halfway through the step."""
        if isinstance(schedule, VariancePreserving) and self.sigmas is None and self.spacing != "log-snr":
            middle = (step.time + after_time) / 2
            if step.time % 1 == after_time % 1 == 0:
                middle //= 1
            return middle, schedule.levels(middle)
        u = (step.line.u(step.level) + step.line.u(step.after)) / 2
        time, level = at_ratio(schedule, u / (1 - step.line.k * u))
        if whole:
            time = np.minimum(time.round(), step.time - 1)
            level = schedule.levels(time)
        return float(time), level


@dataclass(frozen=True)
class Step:
    """The rows of one step from `level` (told as `time`) to `after`; r1, r2, r3 hold estimates, newest first.

    An estimate is the derivative d of `line`, or the network's output (mixes_output). `keeps` of them are needed later.
    """

    line: Coordinates
    time: float
    level: NoiseLevel
    after: NoiseLevel
    keeps: int
    mixes_output: bool

    def kept(self, estimate: Terms) -> dict[str, Any]:
        """The updates of r1, r2, r3 that leave the `keeps` newest estimates there."""
        newest = (estimate, {"r1": 1.0}, {"r2": 1.0})
        return {f"r{j}": terms for j, terms in enumerate(newest[: self.keeps], 1)}

    def estimate(self, level: NoiseLevel) -> Terms:
        """The estimate of a row evaluated at `level`."""
        return {"x": 0.0, "m": 1.0} if self.mixes_output else self.line.terms(level, d=1.0)

    def transfer(self, to: NoiseLevel) -> tuple[Array | float, Array | float]:
        """(p, q): p x + q e takes the step's first state x along the estimate e to the level `to`."""
        scale = self.line.scale(to)
        p, q = scale / self.line.scale(self.level), scale * (self.line.u(to) - self.line.u(self.level))
        if not self.mixes_output:
            return p, q
        along = self.line.terms(self.level, d=q)
        return p + along["x"], along["m"]

    def multistep(self, builder: ProgramBuilder, weights: tuple[float, ...]) -> None:
        """One row: the weighted mean of this estimate and the past ones."""
        (p, q), e = self.transfer(self.after), self.estimate(self.level)
        past = {f"r{j}": q * weight for j, weight in enumerate(weights[1:], 1)}
        builder.rows(self.time, levels=self.level, x=along(e, q * weights[0], x=p, **past), **self.kept(e))

    def heun(self, builder: ProgramBuilder, after_time: float) -> None:
        """Two rows; r3 holds what the second only adds to."""
        (p, q), e = self.transfer(self.after), self.estimate(self.level)
        builder.rows(self.time, levels=self.level, x=along(e, q, x=p), r1=e, r3=along(e, q / 2, x=p))
        builder.rows(after_time, levels=self.after, x=along(self.estimate(self.after), q / 2, r3=1.0))

    def runge_kutta(self, builder: ProgramBuilder, middle_time: float, middle: NoiseLevel, after_time: float) -> None:
        """Four rows. r4 holds the step's first state x; from the third row on, what the fourth only adds to.

        The second estimate is not kept: it is what took x to the third row's state.
        """
        (p, q), (p_middle, q_middle) = self.transfer(self.after), self.transfer(middle)
        e, e_middle = self.estimate(self.level), self.estimate(middle)
        builder.rows(self.time, levels=self.level, x=along(e, q_middle, x=p_middle), r4={"x": 1.0}, **self.kept(e))
        builder.rows(middle_time, levels=middle, x=along(e_middle, q_middle, r4=p_middle))
        second = q / (3 * q_middle)
        builder.rows(
            middle_time,
            levels=middle,
            x=along(e_middle, q, r4=p),
            r4=along(e_middle, q / 3, x=second, r4=p - second * p_middle, r1=q / 6),
        )
        builder.rows(after_time, levels=self.after, x=along(self.estimate(self.after), q / 6, r4=1.0))


def along(estimate: Terms, weight: Array | float, **more: Array | float) -> Terms:
    """`weight` times the estimate, plus the terms `more`."""
    scaled = {name: weight * value for name, value in estimate.items()}
    return {**scaled, **more, "x": scaled["x"] + more.get("x", 0.0)}
