"""CogVideoX: DDIM and the SDE of DPM-Solver++, on a schedule whose signal-to-noise ratio is shifted [Yang 2024]."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim_cogvideox import DDIMSchedulerOutput as DDIMOutput
from diffusers.schedulers.scheduling_dpm_cogvideox import DDIMSchedulerOutput as DPMOutput

import ulam_kernels
from ulam_kernels.tracing import outside_graphs

from ....noise import DRAWS_PER_ROW
from ....programs.builder import ProgramBuilder
from ....schedules import Array
from ..arguments import check_no_gradient, check_noise, check_return_dict, check_sample, number
from ..call_table import CallRows, CallTable
from ..execution import wide
from ..noise import Generators, check_generators, drawn
from ..positions import Timestep
from ..program_edits import estimates
from ..scheduler import Fused
from ..tracing import check_not_recorded
from ..translation import numbers, predicts_of, vp_levels, vp_schedule

PREDICTIONS = ("epsilon", "sample", "v_prediction")


class CogVideoX(Fused):
    """A scheduler whose step goes T // n training steps down, to final_alpha_cumprod at the end.

    As in diffusers clip_sample, eta, use_clipped_model_output and variance_noise are not read.
    """

    counted = False
    needs_steps = True
    alphas_cumprod: Any
    final_alpha_cumprod: Any

    def _check(self) -> None:
        predicts_of(self.config, *PREDICTIONS)

    def _after(self, times: Array) -> Array:
        """abar [n] at the ends of steps that begin at these training steps."""
        assert self.num_inference_steps is not None
        after = times.astype(np.int64) - self.config.num_train_timesteps // self.num_inference_steps
        known = numbers(self.alphas_cumprod)[np.maximum(after, 0)]
        return np.where(after >= 0, known, float(self.final_alpha_cumprod))

    def _levels_of(self, times: Array) -> tuple[Array, Array]:
        alphas, sigmas = vp_levels(self, times, 1.0)
        return alphas[:-1], sigmas[:-1]


class FusedCogVideoXDDIM(CogVideoX):
    """CogVideoXDDIMScheduler: x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) D."""

    output = DDIMOutput, "pred_original_sample"

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        schedule, predicts = vp_schedule(self), predicts_of(self.config, *PREDICTIONS)
        times = numbers(self.timesteps)[start:] if start >= 0 else np.array([-1.0 - start])
        levels = alphas, sigmas = self._levels_of(times)
        abar_s = self._after(times)
        on_x = np.sqrt(1 - abar_s) / sigmas
        builder = ProgramBuilder(schedule, predicts)
        builder.rows(times, levels=levels, x={"x": on_x, "D": np.sqrt(abar_s) - alphas * on_x})
        program = builder.program(sampler="CogVideoX DDIM", init_scale=1.0)
        nothing = np.zeros(len(times), np.bool_)
        return CallRows(program, nothing, lambda: estimates(schedule, predicts, times, levels, None))

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
        return self._run(model_output, timestep, sample, None, return_dict)


class FusedCogVideoXDPM(CogVideoX):
    """CogVideoXDPMScheduler: x_s = (sigma_s / sigma_t) e^-h x_t + alpha_s (1 - e^-2h) D' + sigma_s sqrt(1 - e^-2h) z.

    D' = D + (D - D_back) / (2 r) with the estimate of the call before, that the caller passes, r = h_back / h; D in the
    first call and in the last. The second output is there at once: the next call reads it. Two draws of noise are made
    where D_back is used, of which the second is used, as in diffusers.
    """

    output = DPMOutput, "pred_original_sample"

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        """From `start` on: each but the first and the last from the one before; start < 0 is one (t, back)."""
        steps = self.config.num_train_timesteps
        if start >= 0:
            times = numbers(self.timesteps)[start:]
            back = np.append(np.nan, times[:-1])
        else:
            pair = -1 - start
            times, back = np.array([pair // (steps + 1)], np.float64), np.array([pair % (steps + 1) - 1.0])
            back = np.where(back < 0, np.nan, back)
        schedule, predicts = vp_schedule(self), predicts_of(self.config, *PREDICTIONS)
        levels = alphas, sigmas = self._levels_of(times)
        abar_s = self._after(times)
        with np.errstate(divide="ignore", invalid="ignore"):
            here, there = np.log(alphas / sigmas), np.log(np.sqrt(abar_s / (1 - abar_s)))
            alphas_b, sigmas_b = self._levels_of(np.nan_to_num(back))
            h, h_back = there - here, here - np.log(alphas_b / sigmas_b)
            extra = np.where(np.isfinite(h) & np.isfinite(h_back) & ~np.isnan(back), h / (2 * h_back), 0.0)
            decay = np.exp(-h)
        on_x = np.sqrt(1 - abar_s) / sigmas * decay
        on_D = -np.sqrt(abar_s) * np.expm1(-2 * h)
        builder = ProgramBuilder(schedule, predicts, registers=2)
        std = np.sqrt(np.maximum((1 - abar_s) * -np.expm1(-2 * h), 0.0))
        x = {"x": on_x, "D": on_D * (1 + extra), "r1": -on_D * extra, "z": std}
        builder.rows(times, levels=levels, x=x, r1={"D": 1.0})
        return CallRows(builder.program(sampler="CogVideoX DPM", init_scale=1.0), np.ones(len(times), np.bool_))

    @outside_graphs
    def step(
        self,
        model_output: torch.Tensor,
        old_pred_original_sample: torch.Tensor | None,
        timestep: Timestep,
        timestep_back: Timestep | None,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generators = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = False,
    ) -> Any:
        """(prev_sample, pred_original_sample), in diffusers' output class if asked for and neither first nor last."""
        check_not_recorded("step")
        check_sample(sample, model_output)
        check_return_dict(return_dict)
        check_no_gradient(model_output=model_output, sample=sample, old_pred_original_sample=old_pred_original_sample)
        check_generators(generator, len(sample))
        calls = self._call_table()
        time = self._training_step(timestep, "timestep")
        back = None if timestep_back is None else self._training_step(timestep_back, "timestep_back")
        assert self.num_inference_steps is not None
        ends = time - self.config.num_train_timesteps // self.num_inference_steps < 0
        old = None if ends else old_pred_original_sample
        if old is not None:
            check_noise(old, sample, "old_pred_original_sample")
            if back is None:
                raise ValueError("timestep_back: got None, expected the timestep of old_pred_original_sample")
        position, row = self._row_of(calls, time, None if old is None else back)
        noise = self._noise_of(sample, generator, 1 if old is None else 2, position)
        dtype, device = wide(sample), sample.device
        state = torch.empty((2, *sample.shape), dtype=dtype, device=device)
        state[0].copy_(sample)
        state[1].zero_() if old is None else state[1].copy_(old)
        backend = None if dtype == torch.float64 else self._backend
        rows = calls.index(row, len(sample), device)
        ulam_kernels.step(state, calls.table(device, dtype), rows, model=model_output, backend=backend, **noise)
        pair = tuple(part.to(self._result_dtype(sample, model_output)) for part in state)
        return pair if old is None or not return_dict else DPMOutput(*pair)

    def _training_step(self, timestep: Timestep, name: str) -> int:
        """A timestep as a training step. Raises ValueError for what is none."""
        value = self._local.times.value(timestep) if isinstance(timestep, torch.Tensor) else number(timestep)
        time = float(timestep if value is None else value)
        if time not in range(self.config.num_train_timesteps):
            right = f"a training step below {self.config.num_train_timesteps}"
            raise ValueError(f"{name}: got {time:g}, expected {right}")
        return int(time)

    def _row_of(self, calls: CallTable, time: int, back: int | None) -> tuple[int, int]:
        """(position of the timestep, 0 for others; row) of a step from `time`, after one from `back`."""
        position = calls.positions.get(float(time), (-1,))[0]
        before = None if position <= 0 else calls.times[position - 1]
        if position >= 0 and before == back:
            return position, position + calls.row_offset(0)
        pair = time * (self.config.num_train_timesteps + 1) + (-1 if back is None else back) + 1
        return max(position, 0), calls.first_row(-1 - pair)

    def _noise_of(self, sample: torch.Tensor, generator: Generators, draws: int, position: int) -> dict[str, Any]:
        """The noise of a step as operands: the last of as many draws as diffusers makes."""
        chains, device = len(sample), sample.device
        if self._streams is not None:
            draw = torch.full((chains,), position * DRAWS_PER_ROW, device=device)
            return {**self._streams.operands(chains, device), "draw": draw}
        for _ in range(draws):
            noise = drawn(None, sample.shape, generator, device, sample.dtype, wide(sample))
        return {"noise": noise}
