"""Consistency models: a scheduler on EDM's levels for networks with a boundary condition [Song 2023]."""

from __future__ import annotations

from typing import Any

import numpy as np
from diffusers.schedulers.scheduling_consistency_models import CMStochasticIterativeSchedulerOutput

from ....samplers import Consistency
from ....schedules import edm
from ..arguments import check_index
from ..call_table import CallRows
from ..translation import at_sigmas, grid_of, numbers
from .edm import EDMInput


class FusedConsistency(EDMInput):
    """CMStochasticIterativeScheduler on `ulam.samplers.Consistency` [Song 2023]."""

    output = CMStochasticIterativeSchedulerOutput, None

    def _check(self) -> None: ...

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        config, calls = self.config, len(self.timesteps)
        schedule = edm(config.sigma_min, config.sigma_max, config.sigma_data, config.rho)
        sigmas = np.append(numbers(self.sigmas)[start:calls], config.sigma_min)
        grid = grid_of(numbers(self.timesteps)[start:], at_sigmas(schedule, sigmas))
        sampler = Consistency(len(grid), s_noise=config.s_noise, clip=(-1.0, 1.0) if config.clip_denoised else None)
        return CallRows(sampler.on(grid, schedule, "raw"), draws=np.full(len(grid), calls > 1))

    def step(
        self, model_output: Any, timestep: Any, sample: Any, generator: Any = None, return_dict: bool = True
    ) -> Any:
        check_index(timestep)
        return self._run(model_output, timestep, sample, generator, return_dict)
