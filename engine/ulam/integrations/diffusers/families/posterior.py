"""unCLIP and Wuerstchen: DDPM's posterior, its coefficients rounded where diffusers rounds them [Ho 2020, eq. 6-7]."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddpm_wuerstchen import DDPMWuerstchenSchedulerOutput
from diffusers.schedulers.scheduling_unclip import UnCLIPSchedulerOutput

from ulam_kernels.arguments import whole
from ulam_kernels.tracing import outside_graphs

from ....programs.builder import ProgramBuilder
from ....schedules import Array, vp_cosine
from ..call_table import CallRows, CallTable
from ..configuration import unsupported
from ..noise import Generators
from ..positions import Timestep
from ..program_edits import estimates
from ..scheduler import Fused
from ..tracing import check_not_recorded
from ..translation import clip_of, numbers, predicts_of, vp_levels, vp_schedule

LEAST = 1e-20  # of a variance whose logarithm is taken
NEXT, BEFORE = "next", "before"  # a step goes to the next of the timesteps, or one training step down


class FusedUnCLIP(Fused):
    """UnCLIPScheduler: x_s = sqrt(a) sigma_s^2 / sigma_t^2 x_t + alpha_s b / sigma_t^2 D + std z, a = 1 - b.

    b = 1 - abar_t / abar_s is in float32, as in diffusers, or beta_t itself one training step down. std^2 is
    b sigma_s^2 / sigma_t^2, or what the network says between that and b (learned_range). prev_timestep is s: by
    default t - 1, whatever `timesteps` are.
    """

    counted = False
    usual_options = (NEXT,)
    output = UnCLIPSchedulerOutput, "pred_original_sample"
    alphas_cumprod: Any
    betas: Any

    def _check(self) -> None:
        predicts_of(self.config, "epsilon", "sample")
        if self.config.variance_type not in ("fixed_small_log", "learned_range"):
            right = "fixed_small_log or learned_range"
            raise unsupported("variance_type", self.config.variance_type, right)

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        schedule, predicts = vp_schedule(self), predicts_of(self.config, "epsilon", "sample")
        clip, _ = clip_of(self.config)
        times = numbers(self.timesteps)[start:] if start >= 0 else np.array([-1.0 - start])
        alphas, sigmas = (level[:-1] for level in vp_levels(self, times, 1.0))
        levels = alphas, sigmas
        after = times - 1 if options[0] == BEFORE else np.append(times[1:], -1.0)
        if options[0] not in (NEXT, BEFORE):
            after = np.full(len(times), float(options[0]))
        abar, at = numbers(self.alphas_cumprod), times.astype(np.int64)
        abar_s = np.where(after >= 0, abar[np.maximum(after, 0).astype(np.int64)], 1.0)
        ratio = (1 - abar[at].astype(np.float32) / abar_s.astype(np.float32)).astype(np.float64)
        b = np.where(after == times - 1, numbers(self.betas)[at], ratio)
        rest = (1 - abar_s) / sigmas**2
        low, high, noisy = np.log(np.maximum(b * rest, LEAST)) / 2, np.log(np.maximum(b, LEAST)) / 2, times > 0
        learned = self.config.variance_type == "learned_range"
        builder = ProgramBuilder(schedule, predicts, clip=clip)
        builder.rows(
            times,
            levels=levels,
            x={
                "x": np.sqrt(1 - b) * rest,
                "D": np.sqrt(abar_s) * b / sigmas**2,
                "z": np.where(noisy, 1.0 if learned else np.exp(low), 0.0),
            },
            log_scale=((high - low) / 2, (high + low) / 2) if learned else None,
        )
        program = builder.program(sampler="unCLIP", init_scale=1.0)
        program = replace(program, learned=program.learned & noisy)  # no second half is needed without noise
        return CallRows(program, noisy, lambda: estimates(schedule, predicts, times, levels, clip))

    def _at(self, calls: CallTable, time: float) -> int:
        here = calls.options[0] in (NEXT, BEFORE) and time in calls.positions
        if here or time not in range(self.config.num_train_timesteps):
            return super()._at(calls, time)
        return -1 - int(time)

    @outside_graphs
    def step(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        prev_timestep: int | torch.Tensor | None = None,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        check_not_recorded("step")
        options = (self._goes(timestep, prev_timestep),)
        return self._run(model_output, timestep, sample, generator, return_dict, options=options)

    def _goes(self, timestep: Timestep, prev_timestep: Any) -> str | int:
        """Where the step goes: to the next of `timesteps`, one down, or to a training step, -1 for the data."""
        calls = self._call_table(self.usual_options)
        time = self._local.times.value(timestep)
        if prev_timestep is None:
            last = time == 0 and calls.times[-1] == 0
            return NEXT if last else BEFORE
        after = prev_timestep
        if isinstance(after, torch.Tensor):
            value = self._local.times.value(after)
            after = float(after) if value is None else value
            after = int(after) if after.is_integer() else after
        after = whole(after, "prev_timestep", -1, len(self.alphas_cumprod) - 1)
        position = calls.positions.get(time, (len(calls.times),))[0] if time is not None else len(calls.times)
        if calls.times[position + 1 : position + 2] == [after]:
            return NEXT
        if time is not None and after >= time:
            raise ValueError(f"prev_timestep: got {after}, expected one below the timestep {time:g}")
        return after


class FusedWuerstchen(Fused):
    """DDPMWuerstchenScheduler: x_s = (x_t - (1 - a) / sigma_t m) / sqrt(a) + std z, a = abar_t / abar_s.

    std^2 = (1 - a) sigma_s^2 / sigma_t^2, 0 in a step to timestep 0. A timestep for every sample leads each to the next
    of its own (diffusers: all to that of the first sample). There is no step at the last of `timesteps`.
    """

    counted = False
    output = DDPMWuerstchenSchedulerOutput, None
    _alpha_cumprod: Any

    def _check(self) -> None: ...

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        times = numbers(self.timesteps)[start:]
        abar: Array = self._alpha_cumprod(torch.as_tensor(times, dtype=torch.float32), torch.device("cpu")).numpy()
        a, noisy = abar[:-1] / abar[1:], times[1:] != 0
        rest, now, after = (1.0 - part.astype(np.float64) for part in (a, abar[:-1], abar[1:]))
        a = a.astype(np.float64)
        builder = ProgramBuilder(vp_cosine(), "eps")
        builder.rows(
            times[:-1],
            levels=(np.sqrt(1 - now), np.sqrt(now)),
            x={
                "x": 1 / np.sqrt(a),
                "m": -rest / np.sqrt(now * a),
                "z": np.where(noisy, np.sqrt(np.maximum(rest, 0.0) * after / now), 0.0),
            },
        )
        return CallRows(builder.program(sampler="Wuerstchen", init_scale=1.0), np.ones(len(a), np.bool_))

    def _at(self, calls: CallTable, time: float) -> int:
        position = super()._at(calls, time)
        if position == calls.length - 1:
            raise ValueError(f"timestep: got {time:g}, the last one, expected one that another of timesteps follows")
        return position

    def _result_dtype(self, sample: torch.Tensor, model_output: torch.Tensor) -> torch.dtype:
        return model_output.dtype

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        return self._run(model_output, timestep, sample, generator, return_dict)
