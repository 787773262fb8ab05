"""Euler, Heun, LMS, KDPM2 and flow matching: schedulers on sigmas, whose samples are x / alpha."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_k_dpm_2_discrete import KDPM2DiscreteSchedulerOutput
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteSchedulerOutput

from ulam_kernels.arguments import whole

from ....programs.builder import ProgramBuilder
from ....programs.predictions import x0_coefficients
from ....programs.program import Program
from ....samplers import DDIM, DPM2, LMS, Euler, EulerAncestral, Heun
from ....samplers.euler import Terms
from ....samplers.grid import Grid, GridSampler
from ....schedules import Array, Schedule, flow
from ..arguments import CHURN_OFF, check_batch, check_index, check_return_dict, check_sample, churn
from ..call_table import CallRows
from ..noise import Generators, check_generators
from ..positions import Timestep
from ..program_edits import estimates, reading_scaled
from ..scheduler import Fused, ScaledInput
from ..translation import MovingSteps, at_sigmas, clip_of, falling, numbers, predicts_of, vp_schedule


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


class FusedEuler(OnSigmas):
    """EulerDiscreteScheduler on `ulam.samplers.Euler`; with s_churn, on the same row with churn before the update."""

    predictions = ("epsilon", "sample", "original_sample", "v_prediction")
    output = EulerDiscreteSchedulerOutput, "pred_original_sample"
    usual_options = CHURN_OFF

    def _sampler(self, steps: int, options: tuple[Any, ...]) -> GridSampler:
        return Euler(steps)

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
        return churned(calls, quotients(sigmas, hat), kx * alphas, km, std)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        check_index(timestep)
        options = churn(s_churn, s_tmin, s_tmax, s_noise)
        return self._run(model_output, timestep, sample, generator, return_dict, options=options)


def raised(sigmas: Array, options: tuple[float, ...]) -> tuple[Array, Array]:
    """(sigma_hat, std of the noise that leads there) [n] under churn [Karras 2022, algorithm 2]."""
    churn, least, most, noise = options
    sigma = sigmas[:-1]
    gamma = np.where((least <= sigma) & (sigma <= most), min(churn / len(sigma), math.sqrt(2) - 1), 0.0)
    return sigma * (1 + gamma), noise * sigma * np.sqrt(gamma * (2 + gamma))


def quotients(sigmas: Array, hat: Array) -> Array:
    """sigma_s / sigma_hat [n], 1 where both are 0."""
    return np.asarray(np.divide(sigmas[1:], hat, out=np.ones_like(hat), where=hat > 0))


def churned(calls: CallRows, q: Array, kx: Array, km: Array, std: Array) -> CallRows:
    """y_hat = y + std z, D = kx y_hat + km m, y' = q y_hat + (1 - q) D, q = sigma_s / sigma_hat; the network saw y."""

    def rows(a: Array, b: Array) -> Program:
        on_y = a + b * kx
        A = np.zeros_like(calls.program.A)
        A[:, 0, 0], A[:, 0, 2], A[:, 0, 3] = on_y, b * km, on_y * std
        nothing = np.zeros_like(kx)
        return replace(calls.program, A=A, kx=nothing, km=nothing, writes=np.ones_like(calls.program.writes))

    return CallRows(rows(q, 1 - q), std > 0, lambda: rows(np.zeros_like(q), np.ones_like(q)), second_reads_noise=True)


class FusedEulerAncestral(OnSigmas):
    """EulerAncestralDiscreteScheduler on `ulam.samplers.EulerAncestral`."""

    output = EulerAncestralDiscreteSchedulerOutput, "pred_original_sample"

    def _sampler(self, steps: int, options: tuple[Any, ...]) -> GridSampler:
        return EulerAncestral(steps)

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


class FusedHeun(OnSigmas):
    """HeunDiscreteScheduler on `ulam.samplers.Heun`."""

    has_history = True
    output: ClassVar[tuple[Any, str | None]] = (HeunDiscreteSchedulerOutput, "pred_original_sample")

    def _sampler(self, steps: int, options: tuple[Any, ...]) -> GridSampler:
        return Heun(steps, clip=clip_of(self.config)[0])

    def _steps(self, schedule: Schedule, start: int) -> MovingSteps:
        times, sigmas = numbers(self.timesteps), numbers(self.sigmas)
        if start % 2:
            raise ValueError(f"timestep: got that of call {start} to begin at, expected the first of a step's two")
        alphas, levels = at_sigmas(schedule, np.append(sigmas[start::2], sigmas[-1:]))
        count = len(times[start::2])
        return MovingSteps(times[start::2], (alphas[: count + 1], levels[: count + 1]))

    def _among(self, equal: Sequence[int]) -> int:
        """The second of them, or the first, which is the first of a step's two calls."""
        begins = [position for position in (super()._among(equal), *equal) if position % 2 == 0]
        return begins[0] if begins else equal[0]

    def step(
        self, model_output: torch.Tensor, timestep: Timestep, sample: torch.Tensor, return_dict: bool = True
    ) -> Any:
        return self._run(model_output, timestep, sample, None, return_dict)


class FusedKDPM2(FusedHeun):
    """KDPM2DiscreteScheduler on `ulam.samplers.DPM2`."""

    output = KDPM2DiscreteSchedulerOutput, "pred_original_sample"
    sigmas_interpol: Any

    def _sampler(self, steps: int, options: tuple[Any, ...]) -> GridSampler:
        return DPM2(steps)

    def _row_sigmas(self, start: int) -> Array:
        n = len(self.timesteps)
        middle, sigmas = numbers(self.sigmas_interpol)[:n], numbers(self.sigmas)[:n]
        return np.asarray(np.where(np.arange(n) % 2 == 0, sigmas, middle)[start:])

    def _input_scales(self) -> Array:
        return np.asarray(1 / np.hypot(1, self._row_sigmas(0)))


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


class FusedFlowMatchEuler(Fused):
    """FlowMatchEulerDiscreteScheduler on `ulam.samplers.Euler`, with stochastic_sampling on DDIM with all noise fresh.

    per_token_timesteps, a noise level for every token, are left to diffusers' own step. With invert_sigmas, from the
    data to noise, the rows are x' = x + (t' - t) m, and with stochastic_sampling x' = (1 - t') (x - t m) + t' z.
    """

    output = FlowMatchEulerDiscreteSchedulerOutput, None

    def _check(self) -> None:
        pass

    def _on_flow(self) -> bool:
        return True

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        schedule, n = flow(), len(self.timesteps)
        sigmas = np.append(numbers(self.sigmas), 0.0)[start : n + 1]
        times, levels, fresh = sigmas[:-1], at_sigmas(schedule, sigmas), bool(self.config.stochastic_sampling)
        if self.config.invert_sigmas:
            program = _rising(schedule, sigmas, fresh)
        elif fresh:
            program = DDIM(len(times), eta=1e12).on(falling(times, levels), schedule, "flow")
        else:
            program = MovingSteps(times, levels).program(
                lambda grid: Euler(len(grid)).on(grid, schedule, "flow"), times, schedule, "flow"
            )
        return CallRows(program, np.full(len(times), fresh))

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
        generator: Generators = None,
        per_token_timesteps: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        check_index(timestep)
        churn(s_churn, s_tmin, s_tmax, s_noise)  # which diffusers does not read either
        if per_token_timesteps is not None:
            self._check_per_token(model_output, timestep, sample, generator, per_token_timesteps)
            check_return_dict(return_dict)
            return super().step(  # type: ignore[misc]
                model_output,
                timestep.detach() if isinstance(timestep, torch.Tensor) else timestep,
                sample,
                generator=generator,
                per_token_timesteps=per_token_timesteps,
                return_dict=return_dict,
            )
        return self._run(model_output, timestep, sample, generator, return_dict, noise_dtype=torch.float32)

    def _check_per_token(
        self, model_output: Any, timestep: Timestep, sample: Any, generator: Generators, per_token: Any
    ) -> None:
        """Raise TypeError or ValueError for what diffusers' step would not take."""
        check_sample(sample, model_output)
        if model_output.shape != sample.shape:
            raise ValueError(
                f"model_output: got shape {list(model_output.shape)}, expected {list(sample.shape)} like sample"
            )
        check_batch(per_token, "per_token_timesteps")
        if sample.dim() != 3 or per_token.shape != sample.shape[:2]:
            right = f"{list(sample.shape[:2])}, one a token of the sample [B, tokens, C]"
            raise ValueError(f"per_token_timesteps: got shape {list(per_token.shape)}, expected {right}")
        check_generators(generator, len(sample))
        calls = self._call_table()
        if self._local._step_index is None and self._local._begin_index is None:
            self._lookup(calls, timestep)


def _rising(schedule: Schedule, sigmas: Array, fresh: bool) -> Program:
    """Flow matching's steps on levels [n + 1] that rise from 0."""
    t, after = sigmas[:-1], sigmas[1:]
    builder = ProgramBuilder(schedule, "flow")
    on_D: Terms = {"x": 1 - after, "m": -(1 - after) * t, "z": after}
    builder.rows(t, levels=(1 - t, t), x=on_D if fresh else {"x": 1.0, "m": after - t})
    return builder.program(sampler="Euler", init_scale=1.0)
