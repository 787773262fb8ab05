"""Restart: Heun's method that goes back up with fresh noise, and down again [Xu 2023]."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

import numpy as np

from ulam_kernels.arguments import described

from ..programs.builder import ProgramBuilder
from ..programs.program import Program
from ..schedules import Schedule
from .arguments import check_number, check_whole
from .euler import Coordinates, at_ratio
from .grid import Grid, GridSampler
from .heun import check_told_end, told_times

Interval: TypeAlias = tuple[int, int, float, float]  # steps, times, low, high
RHO = 7.0  # of the grid within an interval [Karras 2022, eq. 5]


@dataclass(frozen=True)
class Restart(GridSampler):
    """Heun's method; at the level `low` noise takes the state back up to `high`, and Heun's method down again.

    Going up from sigma / alpha = low to high, x <- (alpha_high / alpha_low) x + std z with
    std = s_noise alpha_high sqrt(high^2 - low^2), which keeps the marginals; errors made above `low` shrink [Xu
    2023]. Down from high there are `steps` of Heun's method on a grid uniform in (sigma / alpha)^(1/7).

    restarts: (steps, times, low, high) for each interval, `times` being how often; low and high are moved to the
    nearest levels of the grid above 0. Default: the rule of A1111's web interface: none below 20 steps; from 20 on (9,
    1, 0.1, 2), from 36 on (steps // 4, 2, 0.1, 2), the grid having as many levels less, so that `steps` counts all of
    Heun's steps (A1111 always takes sigmas="karras"). Its own table counts one step more.

    Order 2 (weakly where it restarts); two evaluations a step, one in a last step to sigma = 0; one register beyond x.
    spacing, timesteps, sigmas, final: see `GridSampler`. Raises ValueError naming the argument.
    """

    restarts: tuple[Interval, ...] | None = None
    s_noise: float = 1.0

    section: ClassVar[str] = "Stochastic"
    use: ClassVar[str] = "20 steps or more, where errors of the early steps show; recipes that name it."
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"restarts": ((4, 2, 0.1, 2.0),)},)
    elsewhere: ClassVar[tuple[str, ...]] = ("restart",)

    def __post_init__(self) -> None:
        super().__post_init__()
        listed = self.timesteps is not None or isinstance(self.sigmas, tuple)
        if self.restarts is None and listed:
            raise ValueError(
                "restarts: got None with levels in a list, expected intervals ((steps, times, low, high), ...), or ()"
            )
        self._set(restarts=_check(self.restarts), s_noise=check_number("s_noise", self.s_noise, 0))

    def _plan(self, steps: int) -> tuple[Interval, ...]:
        if self.restarts is not None:
            return self.restarts
        if steps < 20:
            return ()
        return ((9, 1, 0.1, 2.0),) if steps < 36 else ((steps // 4, 2, 0.1, 2.0),)

    def grid(self, schedule: Schedule) -> Grid:
        """The levels without restarts."""
        if self.restarts is not None:
            return super().grid(schedule)
        count = self._count(schedule)
        repeated = sum(steps * times for steps, times, _, _ in self._plan(count))
        return replace(self, steps=count - repeated, restarts=()).grid(schedule)

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        return self._rows(grid, schedule, predicts, whole=False)

    def on_indices(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        check_told_end(grid, schedule, predicts)
        return self._rows(grid, schedule, predicts, whole=True)

    def _rows(self, grid: Grid, schedule: Schedule, predicts: str, whole: bool) -> Program:
        """whole: whether the levels of restarts are at whole training indices, as `grid` is."""
        line = Coordinates.of(grid, schedule, predicts)
        builder = ProgramBuilder(schedule, predicts, registers=2)
        levels = self._levels(grid, schedule, whole)
        for i, ((time, *at), (after_time, *to)) in enumerate(itertools.pairwise(levels)):
            level, after = (at[0], at[1]), (to[0], to[1])
            if _ratio(after) > _ratio(level):
                continue  # the row before went there
            gain, std = 1.0, 0.0
            if i + 2 < len(levels) and _ratio(levels[i + 2][1:]) > _ratio(after):
                _, alpha, sigma = levels[i + 2]
                gain = alpha / after[0]
                std = self.s_noise * np.sqrt((sigma - gain * after[1]) * (sigma + gain * after[1]))
            scale, u, u_after = line.scale(after), line.u(level), line.u(after)
            euler = line.terms(level, D=scale, d=scale * u_after)
            if after[1] == 0:
                builder.rows(time, levels=level, x=euler)
                continue
            halfway = line.terms(level, D=gain * scale, d=gain * scale * (u + u_after) / 2)
            builder.rows(time, levels=level, x=euler, r1=halfway)
            rest = line.terms(after, d=gain * scale * (u_after - u) / 2)
            builder.rows(after_time, levels=after, x={**rest, "r1": 1.0, "z": std})
        return builder.program(sampler=repr(self), order=2)

    def _levels(self, grid: Grid, schedule: Schedule, whole: bool) -> list[tuple[float, ...]]:
        """(time, alpha, sigma) of the levels that the state goes through; it is taken up where sigma / alpha rises."""
        ratios = grid.ratios[grid.ratios > 0]
        down: dict[int, list[tuple[float, ...]]] = {}  # what comes after the level of this index
        for steps, times, low, high in self._plan(len(grid) if self.steps is None else self.steps):
            to, back = (int(np.argmin(abs(ratios - value))) for value in (low, high))
            if back < to:
                down.setdefault(to, []).extend(_down(grid, schedule, back, to, steps, whole) * times)
            elif self.restarts is not None:
                raise ValueError(
                    f"restarts: got {low:g} to {high:g}, expected an interval that holds a step of the grid: "
                    f"nearest to its ends are {ratios[to]:.4g} and {ratios[back]:.4g}"
                )
        main = zip(told_times(grid, schedule), grid.alphas, grid.sigmas, strict=True)
        return [level for i, here in enumerate(main) for level in (here, *down.get(i, ()))]


def _down(grid: Grid, schedule: Schedule, back: int, to: int, steps: int, whole: bool) -> list[tuple[float, ...]]:
    """(time, alpha, sigma) of the levels of `steps` steps from the grid's level `back` to its level `to`."""
    high, low = grid.ratios[[back, to]] ** (1 / RHO)
    times, (alphas, sigmas) = at_ratio(schedule, np.linspace(high, low, steps + 1)[1:-1] ** RHO)
    if whole:
        times = times.round()
        alphas, sigmas = schedule.levels(times)
    known = told_times(grid, schedule)
    first, last = ((known[i], grid.alphas[i], grid.sigmas[i]) for i in (back, to))
    levels: list[tuple[float, ...]] = [first, *zip(times, alphas, sigmas, strict=True), last]
    if any(_ratio(b[1:]) >= _ratio(a[1:]) for a, b in itertools.pairwise(levels)):
        raise ValueError(
            f"restarts: got {steps} steps, two of them at one training step, expected fewer between sigma / alpha = "
            f"{grid.ratios[back]:.4g} and {grid.ratios[to]:.4g}"
        )
    return levels


def _ratio(level: Sequence[float]) -> float:
    with np.errstate(divide="ignore"):
        return float(np.divide(level[1], level[0]))


def _check(restarts: object) -> tuple[Interval, ...] | None:
    """`restarts` with every interval's numbers checked, else ValueError."""
    if restarts is None:
        return None
    right = "expected None or intervals ((steps, times, low, high), ...)"
    if not isinstance(restarts, Sequence) or isinstance(restarts, (str, bytes)):
        raise ValueError(f"restarts: got {described(restarts)}, {right}")
    checked: list[Interval] = []
    for interval in restarts:
        if not isinstance(interval, Sequence) or isinstance(interval, (str, bytes)) or len(interval) != 4:
            raise ValueError(f"restarts: got {described(interval)} among them, {right}")
        steps, times = (check_whole("restarts", value, 1) for value in interval[:2])
        low, high = (check_number("restarts", value, 0) for value in interval[2:])
        if not 0 < low < high:
            raise ValueError(f"restarts: got {low:g} to {high:g}, expected 0 < low < high")
        checked.append((steps, times, low, high))
    return tuple(checked)
