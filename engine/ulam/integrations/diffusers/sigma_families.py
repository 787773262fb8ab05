"""Euler, Heun, LMS, KDPM2, EDM's Euler and flow matching: schedulers on sigmas, whose samples are x / alpha."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.schedulers.scheduling_edm_euler import EDMEulerSchedulerOutput
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_k_dpm_2_discrete import KDPM2DiscreteSchedulerOutput
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteSchedulerOutput

from ...denoiser import x0_coefficients
from ...program import Program
from ...samplers import DDIM, DPM2, LMS, Euler, EulerAncestral, Heun
from ...samplers.grid import Grid, GridSampler
from ...schedules import Array, Schedule, edm, flow
from .levels import (
    at_sigmas,
    clip_of,
    estimates,
    grid_of,
    numbers,
    predicts_of,
    reading_scaled,
    unsupported,
    vp_schedule,
    with_negated_output,
)
from .noise import Generators
from .plan import Calls
from .scheduler import Fused, ScaledInput, Timestep

CHURN_OFF = (0.0, 0.0, math.inf, 1.0)


class OnSigmas(ScaledInput):
    """A scheduler on VP levels whose samples are x / alpha, compiled by one of ulam's samplers."""

    predictions: ClassVar[tuple[str, ...]] = ("epsilon", "sample", "v_prediction")

    def _check(self) -> None:
        predicts_of(self.config, *self.predictions)

    def _sampler(self, steps: int, options: tuple[Any, ...]) -> GridSampler:
        raise NotImplementedError

    def _grid(self, schedule: Schedule, start: int) -> Grid:
        """The grid from position `start` on."""
        times = numbers(self.timesteps)
        levels = at_sigmas(schedule, numbers(self.sigmas)[: len(times) + 1])
        return grid_of(times[start:], (levels[0][start:], levels[1][start:]))

    def _row_sigmas(self, start: int) -> Array:
        """The sigma that the network is evaluated at in every call."""
        return numbers(self.sigmas)[start : len(self.timesteps)]

    def _calls(self, start: int, options: tuple[Any, ...]) -> Calls:
        schedule, predicts = vp_schedule(self), predicts_of(self.config, *self.predictions)
        grid = self._grid(schedule, start)
        program = self._sampler(len(grid), options).on(grid, schedule, predicts)
        times, sigmas = numbers(self.timesteps)[start:], self._row_sigmas(start)
        levels = at_sigmas(schedule, sigmas)
        last = at_sigmas(schedule, numbers(self.sigmas)[len(times) + start : len(times) + start + 1])[0]
        clip, _ = clip_of(self.config)
        return Calls(
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

    def _calls(self, start: int, options: tuple[Any, ...]) -> Calls:
        calls = super()._calls(start, options)
        if options == CHURN_OFF:
            return calls
        predicts = predicts_of(self.config, *self.predictions)
        sigmas = numbers(self.sigmas)[start : start + len(calls.program) + 1]
        hat, std = _raised(sigmas, options)
        at = sigmas[:-1] if predicts == "v" else hat  # diffusers reads v at the level before the churn
        alphas, levels = at_sigmas(vp_schedule(self), at)
        kx, km, _ = x0_coefficients(predicts, alphas, levels)
        return _churned(calls, sigmas[1:] / hat, kx * alphas, km, std)

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
        _reject_index(timestep)
        options = (s_churn, s_tmin, s_tmax, s_noise) if s_churn else CHURN_OFF
        return self._run(model_output, timestep, sample, generator, return_dict, options=options)


def _raised(sigmas: Array, options: tuple[float, ...]) -> tuple[Array, Array]:
    """(sigma_hat, std of the noise that leads there) [n] under churn [Karras 2022, algorithm 2]."""
    churn, least, most, noise = options
    sigma = sigmas[:-1]
    gamma = np.where((least <= sigma) & (sigma <= most), min(churn / len(sigma), math.sqrt(2) - 1), 0.0)
    return sigma * (1 + gamma), noise * sigma * np.sqrt(gamma * (2 + gamma))


def _churned(calls: Calls, q: Array, kx: Array, km: Array, std: Array) -> Calls:
    """y_hat = y + std z, D = kx y_hat + km m, y' = q y_hat + (1 - q) D, q = sigma_s / sigma_hat; the network saw y."""

    def rows(a: Array, b: Array) -> Program:
        on_y = a + b * kx
        A = np.zeros_like(calls.program.A)
        A[:, 0, 0], A[:, 0, 2], A[:, 0, 3] = on_y, b * km, on_y * std
        nothing = np.zeros_like(kx)
        return replace(calls.program, A=A, kx=nothing, km=nothing)

    return Calls(rows(q, 1 - q), std > 0, lambda: rows(np.zeros_like(q), np.ones_like(q)), second_reads_noise=True)


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
        _reject_index(timestep)
        return self._run(model_output, timestep, sample, generator, return_dict)


class FusedHeun(OnSigmas):
    """HeunDiscreteScheduler on `ulam.samplers.Heun`."""

    has_history = True
    output: ClassVar[tuple[Any, str | None]] = (HeunDiscreteSchedulerOutput, "pred_original_sample")

    def _sampler(self, steps: int, options: tuple[Any, ...]) -> GridSampler:
        return Heun(steps, clip=clip_of(self.config)[0])

    def _grid(self, schedule: Schedule, start: int) -> Grid:
        times, sigmas = numbers(self.timesteps), numbers(self.sigmas)
        if start % 2:
            raise ValueError(f"timestep must be the first of its two, a loop cannot begin at call {start}")
        alphas, levels = at_sigmas(schedule, np.append(sigmas[start::2], sigmas[-1:]))
        return grid_of(times[start::2], (alphas[: len(times[start::2]) + 1], levels[: len(times[start::2]) + 1]))

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
        return self._run(model_output, timestep, sample, None, return_dict, options=(order,))


class FusedEDMEuler(ScaledInput):
    """EDMEulerScheduler on `ulam.samplers.Euler` and EDM's preconditioning; churn as in `FusedEuler`."""

    output = EDMEulerSchedulerOutput, "pred_original_sample"
    usual_options = (*CHURN_OFF, False)

    def _check(self) -> None:
        edm_options(self.config)

    def _calls(self, start: int, options: tuple[Any, ...]) -> Calls:
        schedule, sign = edm_options(self.config)
        *churn, given = options
        sigmas = numbers(self.sigmas)[start : len(self.timesteps) + 1]
        grid = grid_of(sigmas[:-1], at_sigmas(schedule, sigmas))
        predicts = "x0" if given else "raw"
        program = Euler(len(grid)).on(grid, schedule, predicts)
        levels = grid.alphas[:-1], grid.sigmas[:-1]

        def signed(program: Program) -> Program:
            return with_negated_output(program) if sign < 0 and not given else program

        calls = Calls(
            signed(program),
            np.zeros(len(grid), dtype=np.bool_),
            lambda: signed(estimates(schedule, predicts, sigmas[:-1], levels, None)),
        )
        if tuple(churn) == CHURN_OFF:
            return calls
        hat, std = _raised(sigmas, tuple(churn))
        kx, km, _ = x0_coefficients(predicts, np.ones_like(hat), hat, self.config.sigma_data)
        return _churned(calls, sigmas[1:] / hat, kx, km if given else sign * km, std)

    def _input_scales(self) -> Array:
        return np.asarray(1 / np.hypot(self.config.sigma_data, numbers(self.sigmas)[: len(self.timesteps)]))

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
        pred_original_sample: torch.Tensor | None = None,
    ) -> Any:
        _reject_index(timestep)
        given = pred_original_sample is not None
        options = ((s_churn, s_tmin, s_tmax, s_noise) if s_churn else CHURN_OFF) + (given,)
        output = model_output if pred_original_sample is None else pred_original_sample
        return self._run(output, timestep, sample, generator, return_dict, options=options)


def edm_options(config: Any) -> tuple[Schedule, int]:
    """(schedule, sign of the network's output): v_prediction is EDM's F with the other sign."""
    predicts = predicts_of(config, "epsilon", "v_prediction")
    return edm(config.sigma_min, config.sigma_max, config.sigma_data, config.rho), 1 if predicts == "eps" else -1


class FusedFlowMatchEuler(Fused):
    """FlowMatchEulerDiscreteScheduler on `ulam.samplers.Euler`, with stochastic_sampling on DDIM with all noise fresh.

    per_token_timesteps, a noise level for every token, are left to diffusers' own step.
    """

    output = FlowMatchEulerDiscreteSchedulerOutput, None

    def _check(self) -> None:
        if self.config.invert_sigmas:
            raise unsupported("invert_sigmas", True, "samplers go from noise to data, use False")

    def _calls(self, start: int, options: tuple[Any, ...]) -> Calls:
        self._check()
        schedule, n = flow(), len(self.timesteps)
        sigmas = np.append(numbers(self.sigmas), 0.0)[start : n + 1]
        grid = grid_of(sigmas[:-1], at_sigmas(schedule, sigmas))
        fresh = self.config.stochastic_sampling
        sampler: GridSampler = DDIM(len(grid), eta=1e12) if fresh else Euler(len(grid))
        return Calls(sampler.on(grid, schedule, "flow"), np.full(len(grid), fresh))

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
        _reject_index(timestep)
        if per_token_timesteps is not None:
            return super().step(  # type: ignore[misc]
                model_output,
                timestep,
                sample,
                generator=generator,
                per_token_timesteps=per_token_timesteps,
                return_dict=return_dict,
            )
        return self._run(model_output, timestep, sample, generator, return_dict, noise_dtype=torch.float32)


def _reject_index(timestep: Timestep) -> None:
    """Raise ValueError for an integer, an index of the timesteps, as diffusers does."""
    if isinstance(timestep, int) or (isinstance(timestep, torch.Tensor) and not timestep.is_floating_point()):
        raise ValueError(f"timestep must be one of scheduler.timesteps, not an index, got {timestep!r}")
