"""DDIM's and DPM-Solver's inversions: schedulers whose noise levels rise, from the data to noise [Mokady 2023]."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim_inverse import DDIMSchedulerOutput

from ....programs.builder import ProgramBuilder
from ....samplers.grid import Grid
from ....schedules import Array
from ..call_table import CallRows, CallTable
from ..configuration import unsupported
from ..positions import Timestep
from ..program_edits import estimates
from ..scheduler import Fused
from ..translation import MovingSteps, clip_of, numbers, predicts_of, vp_levels, vp_schedule
from .solver import FusedDPMMultistep


class FusedDDIMInverse(Fused):
    """DDIMInverseScheduler: x_t = alpha_t D + sigma_t eps, D and eps at the level of T // n training steps before t.

    The network is told t. Before the first training step the level is the data's, where an output that is the data
    (prediction_type="sample") says nothing about noise: set_alpha_to_one=False has a level there.
    """

    counted = False
    needs_steps = True
    output = DDIMSchedulerOutput, "pred_original_sample"
    alphas_cumprod: Any
    initial_alpha_cumprod: Any

    def _check(self) -> None:
        predicts_of(self.config, "epsilon", "sample", "v_prediction")
        clip_of(self.config)

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        schedule, predicts = vp_schedule(self), predicts_of(self.config, "epsilon", "sample", "v_prediction")
        clip, _ = clip_of(self.config)
        times = numbers(self.timesteps)[start:] if start >= 0 else np.array([-1.0 - start])
        alphas, sigmas = (level[:-1] for level in vp_levels(self, times, 1.0))
        before = times.astype(np.int64) - self.config.num_train_timesteps // self.num_inference_steps
        known, first = numbers(self.alphas_cumprod), float(self.initial_alpha_cumprod)
        abar = np.where(before >= 0, known[np.maximum(before, 0)], first)
        if predicts == "x0" and (abar == 1).any():
            right = "another, or set_alpha_to_one=False: the data's level says nothing about noise"
            raise unsupported("prediction_type", self.config.prediction_type, right)
        levels = np.sqrt(abar), np.sqrt(1 - abar)
        builder = ProgramBuilder(schedule, predicts, clip=clip)
        builder.rows(times, levels=levels, x={"D": alphas, "eps": sigmas})
        return CallRows(
            builder.program(sampler="DDIM inversion", init_scale=1.0),
            np.zeros(len(times), np.bool_),
            lambda: estimates(schedule, predicts, times, levels, clip),
        )

    def _at(self, calls: CallTable, time: float) -> int:
        if time in calls.positions:
            with suppress(ValueError):
                calls.row_offset(calls.position_of(time))
                return calls.position_of(time)
            # a timestep behind it has no row: alpha 0, or beyond the schedule
        if time not in range(self.config.num_train_timesteps):
            return super()._at(calls, time)
        return -1 - int(time)

    def _has_rows(self, calls: CallTable) -> bool:
        with suppress(ValueError):
            calls.first_row(self._at(calls, calls.first))
            return True
        return super()._has_rows(calls)

    def step(
        self, model_output: torch.Tensor, timestep: Timestep, sample: torch.Tensor, return_dict: bool = True
    ) -> Any:
        return self._run(model_output, timestep, sample, None, return_dict)


class Rising(Grid):
    """A grid whose noise levels rise. Raises ValueError unless they do, from above 0."""

    def __post_init__(self) -> None:
        ratios = self.ratios
        rises = ratios[1:] > ratios[:-1]
        if not (np.isfinite(ratios[:-1]).all() and ratios[0] > 0 and rises.all()):
            at = 0 if ratios[0] <= 0 else int(np.argmin(rises))
            raise ValueError(
                f"sigmas: got {ratios[at]:g} before {ratios[at + 1]:g}, expected finite levels above 0 that rise"
            )


class RisingSteps(MovingSteps):
    """The steps on levels that rise; a last level that repeats rises by 1e-9 of itself."""

    @property
    def grid(self) -> Grid:
        alphas, sigmas = (np.append(level[:-1][self.moves], level[-1]) for level in self.levels)
        if sigmas[-1] * alphas[-2] <= sigmas[-2] * alphas[-1] * (1 + 1e-9):
            alphas[-1], sigmas[-1] = alphas[-2], sigmas[-2] * (1 + 1e-9)
        return Rising(self.times[self.moves], alphas, sigmas)


class FusedDPMInverse(FusedDPMMultistep):
    """DPMSolverMultistepInverseScheduler on `ulam.samplers.DPMSolverPP` and `DPMSolver`, on levels that rise.

    The reverse SDE does not run that way: its noise would have variance 1 - exp(-2 h) with h < 0. use_flow_sigmas has
    levels that fall, in diffusers too.
    """

    def _check(self) -> None:
        super()._check()
        if self._sde():
            raise unsupported("algorithm_type", self.config.algorithm_type, "dpmsolver++ or dpmsolver on rising levels")

    def _rises(self) -> bool:
        return not self.config.use_flow_sigmas

    def _moving(self, times: Array, levels: tuple[Array, Array]) -> MovingSteps:
        return RisingSteps(times, levels) if self._rises() else super()._moving(times, levels)
