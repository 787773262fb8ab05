"""sCM: few steps of a continuous-time consistency model on TrigFlow's angles [Lu & Song 2025]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..programs.builder import ProgramBuilder
from ..programs.clip import Clip
from ..programs.program import Program
from ..schedules import Continuous, FlowMatching, Schedule
from .arguments import check_clip, check_number
from .grid import Grid, GridSampler
from .noise_levels import levels_at, network_times


@dataclass(frozen=True)
class SCM(GridSampler):
    """x_s = alpha_s D + sigma_s z at angles, tan(angle) = sigma / alpha: multistep consistency sampling [Song 2023].

    TrigFlow's state cos(a) x_0 + sin(a) z is, up to its scale, that of any schedule where sigma / alpha = tan(a), for
    data divided by sigma_data [Lu & Song 2025]: predicts="v" on VP schedules is its network itself, and SANA-Sprint's
    [Chen 2025] are flow networks, told sin(a) / (sin(a) + cos(a)).

    Angles: `steps` from max_angle (or the schedule's largest) to 0, uniform, the 0 left out; of two steps the second is
    at `middle`. Where spacing, timesteps or sigmas are given, those. clip: (lo, hi) for D, or a `DynamicThreshold`.
    final: see `GridSampler`. Order 0: with the ideal consistency function every number of steps is exact. NFE/step 1,
    no register beyond x. For sCM and SANA-Sprint checkpoints, 1 to 4 steps. Raises ValueError naming the argument.
    """

    max_angle: float = np.pi / 2
    middle: float = 1.3
    clip: Clip = None

    section: ClassVar[str] = "Few steps, from distilled networks"
    use: ClassVar[str] = "sCM and SANA-Sprint checkpoints, 1 to 4 steps."
    elsewhere: ClassVar[tuple[str, ...]] = ("SCMScheduler",)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_angle", "middle"):
            angle = check_number(name, getattr(self, name), 0, np.pi / 2)
            if angle == 0:
                raise ValueError(f"{name}: got 0, expected an angle above 0 and at most pi / 2")
            self._set(**{name: angle})
        self._set(clip=check_clip(self.clip))

    def grid(self, schedule: Schedule) -> Grid:
        if self.spacing is not None or self.timesteps is not None or self.sigmas is not None:
            return super().grid(schedule)
        steps = self._count(schedule)
        first = schedule.grid(1)[0] if isinstance(schedule, Continuous) else schedule.steps - 1.0  # type: ignore[operator]
        largest = float(np.arctan2(schedule.sigma(first), schedule.alpha(first)))
        angles = np.linspace(min(self.max_angle, largest), 0, steps + 1)[:-1]
        if steps == 2:
            if self.middle >= angles[0]:
                raise ValueError(f"middle: got {self.middle:g}, expected an angle below the first, {angles[0]:g}")
            angles[1] = self.middle
        capped = int(self.max_angle >= largest)  # then the schedule's own first level, without a rounding
        sin, cos = np.sin(angles[capped:]), np.cos(angles[capped:])
        alphas, sigmas = levels_at(schedule, sin / (cos + sin if isinstance(schedule, FlowMatching) else cos))
        times = network_times(schedule, alphas, sigmas)
        if capped:
            alpha, sigma = schedule.levels(first)
            times, alphas, sigmas = np.append(first, times), np.append(alpha, alphas), np.append(sigma, sigmas)
        return self._ended(schedule, times, alphas, sigmas)

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        builder = ProgramBuilder(schedule, predicts, clip=self.clip)
        builder.rows(
            grid.times,
            levels=(grid.alphas[:-1], grid.sigmas[:-1]),
            x={"D": grid.alphas[1:], "z": grid.sigmas[1:]},
        )
        return builder.program(sampler=repr(self), order=0)
