"""LCM: few steps of a distilled consistency model, noised again between steps [Luo 2023]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..programs.builder import ProgramBuilder
from ..programs.clip import Clip
from ..programs.program import Program
from ..schedules import Array, Schedule, VariancePreserving
from .arguments import check_clip, check_number, check_whole
from .grid import Grid, GridSampler

DATA_STD = 0.5  # sigma_data of the boundary condition, as published models were distilled with


@dataclass(frozen=True)
class LCM(GridSampler):
    """f = c_skip x_t + c_out D, x_s = alpha_s f + s_noise sigma_s z: multistep consistency sampling [Luo 2023, alg. 3].

    With u = timestep_scaling t, t the training index: c_skip = 1 / (4 u^2 + 1), c_out = u / sqrt(u^2 + 1/4), so that
    f(x, 0) = x. On schedules without training steps f = D (diffusers' FlowMatchLCM), and so it is everywhere with
    timestep_scaling=None (ComfyUI's lcm of a model whose own sampling is not "lcm"). The last row ends at the data and
    adds no noise. s_noise other than 1 is not what the network was distilled with.

    Levels: `steps` of the `original_steps` that the distillation used (`distilled_times`), where no spacing, timesteps
    or sigmas are given. clip: (lo, hi) for D, or a `DynamicThreshold`. steps, spacing, timesteps, sigmas, final: see
    `GridSampler`. Order 0: with the ideal consistency function every number of steps is exact, with a plain denoiser
    more steps do not converge. NFE/step 1, no register beyond x. For LCM and LCM-LoRA checkpoints, 2 to 8 steps.
    Raises ValueError naming the argument.
    """

    original_steps: int = 50
    timestep_scaling: float | None = 10.0
    clip: Clip = None
    s_noise: float = 1.0

    convention: ClassVar[str] = "index"
    default_spacing: ClassVar[str] = "leading"
    section: ClassVar[str] = "Few steps, from distilled networks"
    use: ClassVar[str] = "LCM and LCM-LoRA checkpoints, 2 to 8 steps."
    elsewhere: ClassVar[tuple[str, ...]] = ("lcm", "LCMScheduler", "FlowMatchLCMScheduler")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.timestep_scaling is not None:
            self._set(timestep_scaling=check_number("timestep_scaling", self.timestep_scaling, 0))
        self._set(
            original_steps=check_whole("original_steps", self.original_steps, 1),
            clip=check_clip(self.clip),
            s_noise=check_number("s_noise", self.s_noise, 0),
        )

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        c_skip, c_out = np.zeros(len(grid)), np.ones(len(grid))
        if isinstance(schedule, VariancePreserving) and self.timestep_scaling is not None:
            scaled = self.timestep_scaling * grid.times
            c_skip = DATA_STD**2 / (scaled**2 + DATA_STD**2)
            c_out = scaled / np.hypot(scaled, DATA_STD)
        alpha_s, sigma_s = grid.alphas[1:], grid.sigmas[1:]
        builder = ProgramBuilder(schedule, predicts, clip=self.clip)
        builder.rows(
            grid.times,
            levels=(grid.alphas[:-1], grid.sigmas[:-1]),
            x={"x": alpha_s * c_skip, "D": alpha_s * c_out, "z": self.s_noise * sigma_s},
        )
        return builder.program(sampler=repr(self), order=0)

    def _times(self, schedule: Schedule) -> Array:
        if self.spacing is None and isinstance(schedule, VariancePreserving):
            return distilled_times(schedule, self.original_steps, self.steps)
        return super()._times(schedule)


def distilled_times(schedule: VariancePreserving, original_steps: int, steps: int | None) -> Array:
    """[steps] training indices, decreasing: evenly chosen among k - 1, 2k - 1, ..., k = T // original_steps.

    These are the times that the distillation trained on; the choice is diffusers'. Raises ValueError where there are
    too few of them.
    """
    if original_steps > schedule.steps:
        right = f"at most the {schedule.steps} training steps of the schedule"
        raise ValueError(f"original_steps: got {original_steps}, expected {right}")
    if steps is None or steps > original_steps:
        raise ValueError(f"steps: got {steps}, expected at most original_steps={original_steps}")
    chosen = np.floor(np.linspace(0, original_steps, steps, endpoint=False))
    return (original_steps - chosen) * (schedule.steps // original_steps) - 1
