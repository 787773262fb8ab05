"""Euler, Heun, LMS and KDPM2: schedulers on sigmas, whose samples are x / alpha."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_k_dpm_2_ancestral_discrete import KDPM2AncestralDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_k_dpm_2_discrete import KDPM2DiscreteSchedulerOutput
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteSchedulerOutput

from ulam_kernels.arguments import whole

from ....programs.builder import ProgramBuilder
from ....programs.predictions import x0_coefficients
from ....programs.program import Program
from ....samplers import DPM2, LMS, Euler, EulerAncestral, Heun
from ....samplers.euler import Terms
from ....samplers.grid import Grid, GridSampler
from ....schedules import Array, Schedule
from ..arguments import CHURN_OFF, check_index
from ..call_table import CallRows
from ..noise import Generators
from ..positions import Timestep
from ..program_edits import estimates, reading_scaled
from ..scheduler import Fused, ScaledInput
from ..translation import MovingSteps, at_sigmas, clip_of, numbers, predicts_of, vp_schedule
from .churn import Churning, churned, quotients, raised


class OnSigmas(ScaledInput):
    """A scheduler on VP levels whose samples are x / alpha, compiled by one of ulam's samplers."""

    predictions: ClassVar[tuple[str, ...]] = ("epsilon", "sample", "v_prediction")

    def _check(self) -> None:
        predicts_of(self.config, *self.predictions)

    def _sampler(self, steps: int, options: tuple[Any, ...]) -> GridSampler:
        raise NotImplementedError

    def _steps(self, schedule: Schedule, start: int) -> MovingSteps:
        """The steps from position `start` on."""
        times = numbers(self.timesteps)
        levels = at_sigmas(schedule, numbers(self.sigmas)[: len(times) + 1])
        return MovingSteps(times[start:], (levels[0][start:], levels[1][start:]))

    def _row_sigmas(self, start: int) -> Array:
        """The sigma that the network is evaluated at in every call."""
        return numbers(self.sigmas)[start : len(self.timesteps)]

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        schedule, predicts = vp_schedule(self), predicts_of(self.config, *self.predictions)
        times, sigmas = numbers(self.timesteps)[start:], self._row_sigmas(start)

        def compiled(grid: Grid) -> Program:
            return self._sampler(len(grid), options).on(grid, schedule, predicts)

        program = self._steps(schedule, start).program(compiled, times, schedule, predicts)
        levels = at_sigmas(schedule, sigmas)
        last = at_sigmas(schedule, numbers(self.sigmas)[len(times) + start : len(times) + start + 1])[0]
        clip, _ = clip_of(self.config)
        return CallRows(
            program.rescaled(np.append(levels[0], last if len(last) else 1.0)),
            np.full(len(program), program.needs_noise),
            lambda: reading_scaled(estimates(schedule, predicts, times, levels, clip), levels[0]),
        )


class FusedEuler(Churning, OnSigmas):
    """EulerDiscreteScheduler on `ulam.samplers.Euler`; with s_churn, on the same row with churn before the update."""

    predictions = ("epsilon", "sample", "original_sample", "v_prediction")
    output = EulerDiscreteSchedulerOutput, "pred_original_sample"

    def _sampler(self, steps: int, options: tuple[Any, ...]) -> GridSampler:
        return Euler(steps)

    def _second_dtype(self, sample: torch.Tensor, model_output: torch.Tensor) -> torch.dtype:
        return widened(self.config, model_output)

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        calls = super()._call_rows(start, options)
        if options == CHURN_OFF:
            return calls
        predicts = predicts_of(self.config, *self.predictions)
        sigmas = numbers(self.sigmas)[start : start + len(calls.program) + 1]
        hat, std = raised(sigmas, options)
        at = sigmas[:-1] if predicts == "v" else hat  # diffusers reads v at the level before the churn
        alphas, levels = at_sigmas(vp_schedule(self), at)
        kx, km, _ = x0_coefficients(predicts, alphas, levels)
        return churned(calls, quotients(sigmas[1:], hat), kx * alphas, km, std)


def widened(config: Any, model_output: torch.Tensor) -> torch.dtype:
    """The dtype of an estimate from a sample in float32, or of an output that is one."""
    if config.prediction_type in ("sample", "original_sample"):
        return model_output.dtype
    return torch.promote_types(torch.float32, model_output.dtype)


class FusedEulerAncestral(OnSigmas):
    """EulerAncestralDiscreteScheduler on `ulam.samplers.EulerAncestral`."""

    output = EulerAncestralDiscreteSchedulerOutput, "pred_original_sample"

    def _sampler(self, steps: int, options: tuple[Any, ...]) -> GridSampler:
        return EulerAncestral(steps)

    def _result_dtype(self, sample: torch.Tensor, model_output: torch.Tensor) -> torch.dtype:
        return model_output.dtype

    def _second_dtype(self, sample: torch.Tensor, model_output: torch.Tensor) -> torch.dtype:
        return widened(self.config, model_output)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        check_index(timestep)
        return self._run(model_output, timestep, sample, generator, return_dict)


class TwoCalls(Fused):
    """A scheduler whose steps are two calls each, but for the last, so that a loop begins at an even position."""

    has_history = True

    def _check_begins(self, start: int) -> None:
        """Raise ValueError for a loop that would begin with the second call of a step."""
        if start % 2:
            raise ValueError(f"timestep: got that of call {start} to begin at, expected the first of a step's two")

    def _among(self, equal: Sequence[int]) -> int:
        """The second of them, or the first, which is the first of a step's two calls."""
        begins = [position for position in (super()._among(equal), *equal) if position % 2 == 0]
        return begins[0] if begins else equal[0]


class FusedHeun(TwoCalls, OnSigmas):
    """HeunDiscreteScheduler on `ulam.samplers.Heun`."""

    output: ClassVar[tuple[Any, str | None]] = (HeunDiscreteSchedulerOutput, "pred_original_sample")

    def _sampler(self, steps: int, options: tuple[Any, ...]) -> GridSampler:
        return Heun(steps, clip=clip_of(self.config)[0])

    def _steps(self, schedule: Schedule, start: int) -> MovingSteps:
        times, sigmas = numbers(self.timesteps), numbers(self.sigmas)
        self._check_begins(start)
        alphas, levels = at_sigmas(schedule, np.append(sigmas[start::2], sigmas[-1:]))
        count = len(times[start::2])
        return MovingSteps(times[start::2], (alphas[: count + 1], levels[: count + 1]))

    def step(
        self, model_output: torch.Tensor, timestep: Timestep, sample: torch.Tensor, return_dict: bool = True
    ) -> Any:
        return self._run(model_output, timestep, sample, None, return_dict)


class FusedKDPM2(FusedHeun):
    """KDPM2DiscreteScheduler on `ulam.samplers.DPM2`."""

    output: ClassVar[tuple[Any, str | None]] = (KDPM2DiscreteSchedulerOutput, "pred_original_sample")
    sigmas_interpol: Any

    def _sampler(self, steps: int, options: tuple[Any, ...]) -> GridSampler:
        return DPM2(steps)

    def _row_sigmas(self, start: int) -> Array:
        n = len(self.timesteps)
        middle, sigmas = numbers(self.sigmas_interpol)[:n], numbers(self.sigmas)[:n]
        return np.asarray(np.where(np.arange(n) % 2 == 0, sigmas, middle)[start:])

    def _input_scales(self) -> Array:
        return np.asarray(1 / np.hypot(1, self._row_sigmas(0)))


class FusedKDPM2Ancestral(FusedKDPM2):
    """KDPM2AncestralDiscreteScheduler: the rows of `ulam.samplers.DPM2` with eta = 1, on diffusers' own levels.

    In y = x / alpha: y' = y + (m - u) eps, then y_s = y + (down - u) eps(y', m) + up z, or one call to sigma 0. m, down
    and up are float32 there, where down^2 = u_s^2 - up^2 cancels in large steps.
    """

    predictions = ("epsilon", "v_prediction")
    output = KDPM2AncestralDiscreteSchedulerOutput, "pred_original_sample"
    sigmas_down: Any
    sigmas_up: Any

    def _row_sigmas(self, start: int) -> Array:
        n = len(self.timesteps)
        middle, sigmas = np.roll(numbers(self.sigmas_interpol)[:n], 1), numbers(self.sigmas)[:n]
        return np.asarray(np.where(np.arange(n) % 2 == 0, sigmas, middle)[start:])

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        if start % 2:
            raise ValueError(f"timestep: got that of call {start} to begin at, expected the first of a step's two")
        schedule, predicts = vp_schedule(self), predicts_of(self.config, *self.predictions)
        times, at = numbers(self.timesteps)[start:], self._row_sigmas(start)
        u, middle, down, up = (
            np.nan_to_num(numbers(levels)[start : start + len(times)])
            for levels in (self.sigmas, self.sigmas_interpol, self.sigmas_down, self.sigmas_up)
        )
        levels = alphas, _ = at_sigmas(schedule, at)
        builder = ProgramBuilder(schedule, predicts, registers=2)
        for i, time in enumerate(times):
            here, first, after = (alphas[i], levels[1][i]), i - i % 2, alphas[i + 1] if i + 1 < len(times) else 1.0
            along: Terms = {"x": after / alphas[i], "eps": after * (middle[i] - u[i])}
            if i == first:
                builder.rows(time, levels=here, x=along, r1={"x": 1 / alphas[i]})
            elif middle[first] == 0:  # the first call went to the data
                builder.rows(time, levels=here, x={"x": after / alphas[i]})
            else:
                along = {"r1": after, "eps": after * (down[first] - u[first]), "z": after * up[first]}
                builder.rows(time, levels=here, x=along)
        program = builder.program(sampler="DPM2", order=1, init_scale=1.0)
        return CallRows(
            program.rescaled(np.append(alphas, 1.0)),
            np.arange(len(times)) % 2 == 1,
            lambda: reading_scaled(estimates(schedule, predicts, times, levels, None), alphas),
        )

    def step(  # type: ignore[override]
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        return self._run(model_output, timestep, sample, generator, return_dict)


class FusedLMS(OnSigmas):
    """LMSDiscreteScheduler on `ulam.samplers.LMS`.

    A loop that begins in the middle (image to image) begins with order 1; diffusers begins there with the weights of a
    history that it does not have.
    """

    has_history = True
    output = LMSDiscreteSchedulerOutput, "pred_original_sample"
    usual_options = (4,)

    def _sampler(self, steps: int, options: tuple[Any, ...]) -> GridSampler:
        return LMS(steps, order=options[0])

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        order: int = 4,
        return_dict: bool = True,
    ) -> Any:
        options = (whole(order, "order", 1, 4),)
        return self._run(model_output, timestep, sample, None, return_dict, options=options)
