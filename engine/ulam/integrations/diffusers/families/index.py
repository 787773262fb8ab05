"""DDPM, DDIM, LCM and PNDM: schedulers on training indices, whose samples are alpha x_0 + sigma eps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_ddim_parallel import DDIMParallelSchedulerOutput
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.schedulers.scheduling_ddpm_parallel import DDPMParallelSchedulerOutput
from diffusers.schedulers.scheduling_lcm import LCMSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from ulam_kernels.arguments import real, switch
from ulam_kernels.tracing import outside_graphs

from ....programs.builder import ProgramBuilder
from ....programs.program import Program
from ....samplers import DDIM, DDPM, LCM, PNDM
from ....samplers.euler import Coordinates
from ....samplers.grid import Grid
from ....samplers.pndm import ADAMS_BASHFORTH, Step
from ....schedules import posterior
from ..call_table import CallRows, CallTable
from ..configuration import unsupported
from ..noise import Generators
from ..positions import Timestep
from ..program_edits import estimates, with_scaled_D
from ..scheduler import Fused
from ..translation import (
    MovingSteps,
    clip_of,
    falling,
    grid_of,
    numbers,
    predicts_of,
    vp_levels,
    vp_schedule,
)

VARIANCES = {
    "fixed_small": "posterior",
    "fixed_small_log": "posterior",
    "fixed_large": "beta",
    "fixed_large_log": "beta",
    "learned": "learned",
    "learned_range": "learned_range",
}


class FusedDDPM(Fused):
    """DDPMScheduler on `ulam.samplers.DDPM`.

    Not as in diffusers, where it gives NaN: variance_type="fixed_large_log" has beta's standard deviation, and
    "learned" reads the network's second half as a logarithm [Nichol & Dhariwal 2021]. Any other name is "fixed_small",
    as there.
    """

    counted = False
    output: ClassVar[tuple[Any, str | None]] = DDPMSchedulerOutput, "pred_original_sample"

    def _check(self) -> None:
        predicts_of(self.config, "epsilon", "sample", "v_prediction")
        clip_of(self.config)

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        self._check()
        schedule, predicts = vp_schedule(self), predicts_of(self.config, "epsilon", "sample", "v_prediction")
        times, (clip, factor) = numbers(self.timesteps)[start:], clip_of(self.config)
        alphas, sigmas = vp_levels(self, times, 1.0)
        variance = VARIANCES.get(self.config.variance_type, "posterior")

        def compiled(grid: Grid) -> Program:
            sampler = DDPM(len(grid), variance=variance, clip=clip)
            return _rounded_as_in_diffusers(sampler.on(grid, schedule, predicts), grid)

        program = MovingSteps(times, (alphas, sigmas)).program(compiled, times, schedule, predicts)
        program = with_scaled_D(program, factor)
        if times[-1] > 0:
            program = _with_noise_at_the_end(program, float(sigmas[-2]), variance)
        levels = alphas[:-1], sigmas[:-1]
        return CallRows(
            program,
            times > 0,
            lambda: with_scaled_D(estimates(schedule, predicts, times, levels, clip), factor),
        )

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        return self._run(model_output, timestep, sample, generator, return_dict)


def _rounded_as_in_diffusers(program: Program, grid: Grid) -> Program:
    """The rows with 1 - abar_t / abar_s rounded as in diffusers, which takes it in float32.

    It cancels near the data: there diffusers' coefficients of D and z are off by up to 1e-3, and these rows with them.
    """
    abar = (grid.alphas**2).astype(np.float32)
    on_x, _, fresh = posterior(grid.alphas[:-1], grid.sigmas[:-1], grid.alphas[1:], grid.sigmas[1:])
    ratio = (1 - abar[:-1] / abar[1:]).astype(np.float64) / grid.sigmas[:-1] ** 2 / fresh
    A = program.A.copy()
    A[:, 0, 0] = on_x + ratio * (A[:, 0, 0] - on_x)
    A[:, 0, 1:3] *= ratio[:, None]
    A[~program.learned, 0, 3] *= np.sqrt(ratio)[~program.learned]
    return replace(program, A=A, lv_b=program.lv_b + np.where(program.learned, np.log(ratio) / 2, 0.0))


def _with_noise_at_the_end(program: Program, std: float, variance: str) -> Program:
    """diffusers adds noise in the last step too, of variance 1e-20 to beta, unless its timestep is 0."""
    A, learned, lv_m, lv_b = (np.array(getattr(program, name)) for name in ("A", "learned", "lv_m", "lv_b"))
    smallest = 1e-10
    A[-1, 0, -1] = {"posterior": smallest, "beta": std}.get(variance, 1.0)
    if variance.startswith("learned"):
        learned[-1] = True
        lv_m[-1], lv_b[-1] = 0.5, 0.0
        if variance == "learned_range":
            low, high = np.log(smallest), np.log(std)
            lv_m[-1], lv_b[-1] = (high - low) / 2, (high + low) / 2
    return replace(program, A=A, learned=learned, lv_m=lv_m, lv_b=lv_b)


class FusedDDIM(Fused):
    """DDIMScheduler on `ulam.samplers.DDIM`.

    Each step goes to the next of `timesteps`. diffusers goes to timestep - T // n, which is another one for linspace
    spacing, and for trailing where n does not divide T. A timestep that is none of them goes there in both, and so does
    the last of leading spacing: with steps_offset of at least T // n that is no end, but a training step.
    """

    counted = False
    needs_steps = True
    usual_options = (0.0, False)
    output: ClassVar[tuple[Any, str | None]] = DDIMSchedulerOutput, "pred_original_sample"
    final_alpha_cumprod: Any

    def _check(self) -> None:
        predicts_of(self.config, "epsilon", "sample", "v_prediction")
        clip_of(self.config)

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        eta, rederive = options
        schedule, predicts = vp_schedule(self), predicts_of(self.config, "epsilon", "sample", "v_prediction")
        clip, factor = clip_of(self.config)
        times = numbers(self.timesteps)[start:] if start >= 0 else np.array([-1.0 - start])
        alphas, sigmas = vp_levels(self, times, _end(self, times[-1], anywhere=start < 0))

        def compiled(grid: Grid) -> Program:
            return DDIM(len(grid), eta=eta, clip=clip, rederive_eps=rederive).on(grid, schedule, predicts)

        program = MovingSteps(times, (alphas, sigmas)).program(compiled, times, schedule, predicts)
        return CallRows(
            with_scaled_D(program, factor),
            np.full(len(times), eta > 0),
            lambda: with_scaled_D(estimates(schedule, predicts, times, (alphas[:-1], sigmas[:-1]), clip), factor),
        )

    def _at(self, calls: CallTable, time: float) -> int:
        if time in calls.positions or time not in range(self.config.num_train_timesteps):
            return super()._at(calls, time)
        return -1 - int(time)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generators = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        eta = real(eta, "eta", "a finite number of at least 0")
        if eta < 0:
            raise ValueError(f"eta: got {eta:g}, expected at least 0")
        if eta > 0 and variance_noise is not None and generator is not None:
            raise ValueError("generator, variance_noise: got both, expected one of them")
        noise = variance_noise if eta > 0 else None
        if use_clipped_model_output is not None:  # as pipelines pass
            switch(use_clipped_model_output, "use_clipped_model_output")
        options = (eta, bool(use_clipped_model_output))
        return self._run(model_output, timestep, sample, generator, return_dict, options=options, noise=noise)


def _end(scheduler: Any, time: float, *, anywhere: bool = False) -> float:
    """alphas_cumprod after the step at `time`: at T // n before it with leading spacing or `anywhere`, else final."""
    assert scheduler.num_inference_steps is not None
    after = int(time) - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    there = after >= 0 and (anywhere or scheduler.config.timestep_spacing == "leading")
    return float(scheduler.alphas_cumprod[after] if there else scheduler.final_alpha_cumprod)


class FusedDDPMParallel(FusedDDPM):
    """DDPMParallelScheduler: `FusedDDPM`; `batch_step_no_noise` is diffusers' own."""

    output = DDPMParallelSchedulerOutput, "pred_original_sample"


class FusedDDIMParallel(FusedDDIM):
    """DDIMParallelScheduler: `FusedDDIM`; `batch_step_no_noise` is diffusers' own."""

    output = DDIMParallelSchedulerOutput, "pred_original_sample"


class FusedLCM(Fused):
    """LCMScheduler on `ulam.samplers.LCM`."""

    needs_steps = True
    output = LCMSchedulerOutput, "denoised"

    def _check(self) -> None:
        predicts_of(self.config, "epsilon", "sample", "v_prediction")
        clip_of(self.config)

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        predicts = predicts_of(self.config, "epsilon", "sample", "v_prediction")
        times, (clip, factor) = numbers(self.timesteps)[start:], clip_of(self.config)
        grid = falling(times, vp_levels(self, times, 1.0))
        sampler = LCM(len(grid), timestep_scaling=self.config.timestep_scaling, clip=clip)
        program = with_scaled_D(sampler.on(grid, vp_schedule(self), predicts), factor)

        def denoised() -> Program:
            A = program.A / grid.alphas[1:, None, None]
            A[:, :, -1] = 0.0
            return replace(program, A=A)

        return CallRows(program, np.arange(len(grid)) < len(grid) - 1, denoised)

    def _second_dtype(self, sample: torch.Tensor, model_output: torch.Tensor) -> torch.dtype:
        return self._result_dtype(sample, model_output)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        return self._run(model_output, timestep, sample, generator, return_dict)


class FusedPNDM(Fused):
    """PNDMScheduler on `ulam.samplers.PNDM`, mixing the network's outputs as diffusers does.

    Each step goes to the next of `timesteps`; diffusers goes to timestep - T // n, see `FusedDDIM`, and where that is
    odd its first Runge-Kutta stages go to another time than they are told. A loop that begins in the middle (image to
    image) begins with Adams-Bashforth of order 1, each timestep being used once.
    """

    has_history = needs_steps = True
    output = SchedulerOutput, None
    final_alpha_cumprod: Any
    _timesteps: Any
    ets: list[torch.Tensor]

    def _check(self) -> None:
        predicts_of(self.config, "epsilon", "v_prediction")

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        schedule, predicts = vp_schedule(self), predicts_of(self.config, "epsilon", "v_prediction")
        times = np.array(self._timesteps, dtype=np.float64)[::-1]
        skip = bool(self.config.skip_prk_steps)
        if start and not skip:
            raise unsupported("skip_prk_steps", skip, "True for a loop that does not begin at the first timestep")
        first = max(start - 1, min(start, 1))  # the second timestep is told twice, at positions 1 and 2
        alphas, sigmas = vp_levels(self, times, _end(self, times[-1]))
        grid = grid_of(times[first:], (alphas[first:], sigmas[first:]))
        if start:
            program = _adams_bashforth(grid, schedule, predicts, told_twice=start == 1)
        else:
            program = PNDM(len(grid), skip_prk=skip, mixes="output").on(grid, schedule, predicts)
        return CallRows(program, np.zeros(len(program), dtype=np.bool_))

    def step(
        self, model_output: torch.Tensor, timestep: Timestep, sample: torch.Tensor, return_dict: bool = True
    ) -> Any:
        return self._run(model_output, timestep, sample, None, return_dict)

    @outside_graphs
    def step_prk(
        self, model_output: torch.Tensor, timestep: Timestep, sample: torch.Tensor, return_dict: bool = True
    ) -> Any:
        """`step`; diffusers' own where the caller has set `ets`, a history of his."""
        step = super().step_prk if self.ets else self.step  # type: ignore[misc]
        return step(model_output, timestep, sample, return_dict=return_dict)

    @outside_graphs
    def step_plms(
        self, model_output: torch.Tensor, timestep: Timestep, sample: torch.Tensor, return_dict: bool = True
    ) -> Any:
        """`step_prk`, after the Runge-Kutta steps. Raises ValueError before, as diffusers does."""
        done = self._local._step_index or 0
        if not self.config.skip_prk_steps and done < 12 and not self.ets:
            raise ValueError(f"step_plms: got a call after {done} of step_prk, expected 12 of them first")
        step = super().step_plms if self.ets else self.step  # type: ignore[misc]
        return step(model_output, timestep, sample, return_dict=return_dict)


def _adams_bashforth(grid: Grid, schedule: Any, predicts: str, told_twice: bool) -> Program:
    """PNDM's multistep rows with no start-up of their own; where the first time is told twice, once to no effect."""
    line = Coordinates.of(grid, schedule, predicts)
    builder = ProgramBuilder(schedule, predicts, registers=4)
    if told_twice:
        builder.rows(grid.times[0], levels=(grid.alphas[0], grid.sigmas[0]))
    for i, time in enumerate(grid.times):
        level, after = ((grid.alphas[j], grid.sigmas[j]) for j in (i, i + 1))
        keeps = min(i + 1, 3) if i + 1 < len(grid) else 0
        step = Step(line, float(time), level, after, keeps, mixes_output=True)
        step.multistep(builder, ADAMS_BASHFORTH[min(i, 3)])
    return builder.program(sampler="PNDM", order=2)
