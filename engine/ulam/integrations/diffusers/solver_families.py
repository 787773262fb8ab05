"""DPM-Solver (multistep, singlestep, EDM's), UniPC and DEIS: exponential integrators on x = alpha x_0 + sigma eps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from ...program import Clip
from ...samplers import DEIS, DPMSolver, DPMSolverPP, UniPC
from ...samplers.grid import GridSampler
from ...schedules import Array, FlowMatching, Schedule, flow
from .levels import (
    at_sigmas,
    clip_of,
    grid_of,
    numbers,
    predicts_of,
    unsupported,
    vp_schedule,
    with_negated_output,
    with_scaled_D,
)
from .noise import Generators
from .plan import Calls
from .scheduler import Fused, ScaledInput, Timestep
from .sigma_families import edm_options

FEW = 15  # rows, below which lower_order_final lowers orders


class Solver(Fused):
    """A scheduler on sigmas, on VP or (use_flow_sigmas) flow levels. A loop begins with order 1 wherever it begins."""

    has_history = True
    output = SchedulerOutput, None
    num_inference_steps: int | None

    def _check(self) -> None:
        self._schedule()

    def _schedule(self) -> tuple[Schedule, str]:
        """(schedule, what the network predicts)."""
        predicts = predicts_of(self.config, "epsilon", "sample", "v_prediction", "flow_prediction")
        if self.config.use_flow_sigmas:
            return flow(), predicts
        if predicts == "flow":
            raise unsupported("prediction_type", "flow_prediction", "it needs use_flow_sigmas=True")
        return vp_schedule(self), predicts

    def _sampler(self, steps: int, few: bool, clip: Clip, start: int) -> GridSampler:
        """The sampler; few: whether the whole loop has fewer than 15 calls."""
        raise NotImplementedError

    def _sde(self) -> bool:
        """Whether every call draws noise."""
        return str(self.config.get("algorithm_type")).startswith("sde")

    def _calls(self, start: int, options: tuple[Any, ...]) -> Calls:
        schedule, predicts = self._schedule()
        times, sigmas = numbers(self.timesteps), numbers(self.sigmas)[start : len(self.timesteps) + 1]
        told = sigmas[:-1] if isinstance(schedule, FlowMatching) else times[start:]
        grid = grid_of(told, at_sigmas(schedule, sigmas))
        clip, factor = clip_of(self.config)
        sampler = self._sampler(len(grid), len(times) < FEW, clip, start)
        program = with_scaled_D(sampler.on(grid, schedule, predicts), factor)
        return Calls(program, np.full(len(program), self._sde()))

    def _checked_run(self, *arguments: Any, **named: Any) -> Any:
        if self.num_inference_steps is None:
            raise ValueError("Number of inference steps is 'None', you need to run 'set_timesteps' first")
        return self._run(*arguments, **named)


class FusedDPMMultistep(Solver):
    """DPMSolverMultistepScheduler on `ulam.samplers.DPMSolverPP` and `DPMSolver`.

    Not as in diffusers: solver_order=3 of "sde-dpmsolver++" has the sign of its formula (see `DPMSolverPP`), and that
    of "sde-dpmsolver" exists.
    """

    def _sampler(self, steps: int, few: bool, clip: Clip, start: int) -> GridSampler:
        c = self.config
        kind = DPMSolverPP if c.algorithm_type.endswith("++") else DPMSolver
        return kind(
            steps,
            order=c.solver_order,
            variant=c.solver_type,
            sde=self._sde(),
            lower_order_final=c.lower_order_final and few,
            euler_at_final=c.euler_at_final,
            clip=clip,
        )

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        generator: Generators = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        noise = variance_noise if self._sde() else None
        return self._checked_run(
            model_output, timestep, sample, generator, return_dict, noise=noise, noise_dtype=torch.float32
        )


class FusedDPMSinglestep(Solver):
    """DPMSolverSinglestepScheduler on `ulam.samplers.DPMSolverPP` and `DPMSolver`, kind="singlestep".

    Not as in diffusers: solver_order=3 of "sde-dpmsolver++" with solver_type="heun" has the sign of its formula.
    """

    def _sampler(self, steps: int, few: bool, clip: Clip, start: int) -> GridSampler:
        c = self.config
        kind = DPMSolverPP if c.algorithm_type.endswith("++") else DPMSolver
        return kind(
            steps,
            order=c.solver_order,
            kind="singlestep",
            variant=c.solver_type,
            sde=self._sde(),
            lower_order_final=c.lower_order_final,
            clip=clip,
        )

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        return self._checked_run(model_output, timestep, sample, generator, return_dict)


class FusedUniPC(Solver):
    """UniPCMultistepScheduler on `ulam.samplers.UniPC`."""

    def _check(self) -> None:
        super()._check()
        if self.config.solver_p is not None:
            raise unsupported("solver_p", type(self.config.solver_p).__name__, "the predictor is UniP, use None")

    def _sampler(self, steps: int, few: bool, clip: Clip, start: int) -> GridSampler:
        c = self.config
        return UniPC(
            steps,
            order=c.solver_order,
            variant=c.solver_type,
            predict_x0=c.predict_x0,
            lower_order_final=c.lower_order_final,
            disable_corrector=tuple(step - start for step in c.disable_corrector if step >= start),
            clip=clip if c.predict_x0 else None,
        )

    def step(
        self, model_output: torch.Tensor, timestep: Timestep, sample: torch.Tensor, return_dict: bool = True
    ) -> Any:
        return self._checked_run(model_output, timestep, sample, None, return_dict)


class FusedDEIS(Solver):
    """DEISMultistepScheduler on `ulam.samplers.DEIS`."""

    def _sampler(self, steps: int, few: bool, clip: Clip, start: int) -> GridSampler:
        c = self.config
        return DEIS(steps, order=c.solver_order, lower_order_final=c.lower_order_final and few, clip=clip)

    def step(
        self, model_output: torch.Tensor, timestep: Timestep, sample: torch.Tensor, return_dict: bool = True
    ) -> Any:
        return self._checked_run(model_output, timestep, sample, None, return_dict)


class FusedEDMDPM(ScaledInput, FusedDPMMultistep):
    """EDMDPMSolverMultistepScheduler on `ulam.samplers.DPMSolverPP` and EDM's preconditioning."""

    def _schedule(self) -> tuple[Schedule, str]:
        return edm_options(self.config)[0], "raw"

    def _calls(self, start: int, options: tuple[Any, ...]) -> Calls:
        calls = super()._calls(start, options)
        if edm_options(self.config)[1] > 0:
            return calls
        return Calls(with_negated_output(calls.program), calls.draws)

    def _input_scales(self) -> Array:
        return np.asarray(1 / np.hypot(self.config.sigma_data, numbers(self.sigmas)[: len(self.timesteps)]))

    def step(  # type: ignore[override]
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        return self._checked_run(model_output, timestep, sample, generator, return_dict)
