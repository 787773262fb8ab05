"""The smallest samplers on a grid of noise levels, and diffusers' schedulers on ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import diffusers
import torch

import sampler_cases
from ulam import Program, schedules
from ulam.programs.builder import ProgramBuilder
from ulam.samplers.grid import Grid, GridSampler
from ulam.schedules import Schedule, VariancePreserving


@dataclass(frozen=True)
class Fractional(GridSampler):
    """x_s = alpha_s D + sigma_s eps [Song 2021a]: the smallest sampler."""

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        builder = ProgramBuilder(schedule, predicts)
        levels = grid.alphas[:-1], grid.sigmas[:-1]
        builder.rows(grid.times, levels=levels, x={"D": grid.alphas[1:], "eps": grid.sigmas[1:]})
        return builder.program(sampler=repr(self))


class Index(Fractional):
    convention: ClassVar[str] = "index"


class Endless(Fractional):
    convention: ClassVar[str] = "endless"


VP = sampler_cases.VP | {"short": schedules.vp_linear(77)}
FAMILIES: dict[str, type[Fractional]] = {
    "DDPMScheduler": Index,
    "DDIMScheduler": Index,
    "EulerDiscreteScheduler": Fractional,
    "HeunDiscreteScheduler": Fractional,
    "LMSDiscreteScheduler": Fractional,
    "DPMSolverMultistepScheduler": Endless,
    "UniPCMultistepScheduler": Endless,
    "DEISMultistepScheduler": Endless,
}
LINEAR, FLOW = VP["linear"], schedules.flow()


def theirs(name: str, schedule: VariancePreserving, steps: int | None, arguments: Any = None, **config: Any) -> Any:
    """A diffusers scheduler with its times set, on our own alphas_cumprod in float64."""
    scheduler = getattr(diffusers, name)(num_train_timesteps=schedule.steps, **config)
    scheduler.alphas_cumprod = torch.from_numpy(schedule.alphas_cumprod.copy())
    scheduler.set_timesteps(steps, **(arguments or {}))
    return scheduler
