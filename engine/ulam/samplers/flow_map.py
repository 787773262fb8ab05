"""Flow maps: a network that knows the way between any two times, in one evaluation [Boffi 2024; Geng 2025]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..programs.builder import ProgramBuilder
from ..programs.clip import Clip
from ..programs.predictions import told_steps
from ..programs.program import Program
from ..schedules import Schedule
from .arguments import check_clip, check_number
from .grid import Grid, GridSampler
from .noise_levels import network_times


@dataclass(frozen=True)
class FlowMap(GridSampler):
    """x_s = X(x_t; t, s) = x_t + (s - t) u(x_t, t, s): one evaluation from t to any s, the network being told both.

    u is the mean velocity of the probability flow between the two times: MeanFlow [Geng 2025], flow maps [Boffi 2024;
    Sabour 2025], AnyFlow [Gu 2026], on flow schedules with predicts="flow". On others the same in their terms: the
    step alpha_s D + sigma_s eps with the estimates D and eps of the output for that pair of times.

    gamma > 0 goes on to a lower level r and from there back to s with fresh noise, gamma-sampling [Kim 2024; Sabour
    2025], which averages out errors of the map:

        sigma_r / alpha_r = sqrt(1 - gamma^2) sigma_s / alpha_s
        x_s = (alpha_s / alpha_r) X(x_t; t, r) + gamma sigma_s z

    so the marginals are those of the flow at every gamma. gamma = 1 goes to the data each time: multistep sampling of a
    consistency model, and of a network that knows the way to the data alone. The last row adds no noise.

    The denoiser has ``second_time`` for the name under which its network takes r, a time of the schedule as t is. For
    one that is told the length t - r (MeanFlow's own, shortcut models) wrap it: ``lambda x, t, r: net(x, t, t - r)``.
    clip: (lo, hi) for D, or a `DynamicThreshold`. steps, spacing, timesteps, sigmas, final: see `GridSampler`. Order 0:
    with the ideal map every number of steps is exact; a network that is told one time alone makes it `Euler`. NFE/step
    1, no register beyond x. For networks distilled or trained as flow maps, 1 to 8 steps. Raises ValueError naming the
    argument.
    """

    gamma: float = 0.0
    clip: Clip = None

    section: ClassVar[str] = "Few steps, from distilled networks"
    use: ClassVar[str] = "flow maps (MeanFlow, AnyFlow), 1 to 8 steps; gamma where more steps are no better."
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"gamma": 0.5},)
    elsewhere: ClassVar[tuple[str, ...]] = ("FlowMapEulerDiscreteScheduler",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(gamma=check_number("gamma", self.gamma, 0, 1), clip=check_clip(self.clip))

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        alpha_s, sigma_s = grid.alphas[1:], grid.sigmas[1:]
        along = np.sqrt((1 - self.gamma) * (1 + self.gamma)) * sigma_s
        second, inside = np.zeros_like(along), along > 0  # the data's time is 0 on every schedule
        second[inside] = network_times(schedule, alpha_s[inside], along[inside])
        if self.gamma == 0:
            second[:-1] = grid.times[1:]
        builder = ProgramBuilder(schedule, predicts, clip=self.clip)
        builder.rows(
            grid.times,
            levels=(grid.alphas[:-1], grid.sigmas[:-1]),
            second=second,
            x={"D": alpha_s, "eps": along, "z": self.gamma * sigma_s},
        )
        return builder.program(sampler=repr(self), order=0)

    def index_program(self, schedule: Schedule, predicts: str = "eps") -> Program:
        program = super().index_program(schedule, predicts)
        if (between := program.second[program.second % 1 > 0]).any():
            where = f"{told_steps(predicts)}, which puts a second time between training steps, at {between[0]:g}"
            raise ValueError(f"gamma: got {self.gamma:g} under {where}, expected 0 or 1")
        return program
