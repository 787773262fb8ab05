"""Helios: stages of growing size, each on flow levels of its own; diffusers' Euler, UniPC and DMD schedulers."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.schedulers.scheduling_helios import HeliosSchedulerOutput
from diffusers.schedulers.scheduling_helios_dmd import HeliosDMDSchedulerOutput

from ulam_kernels.arguments import described, whole
from ulam_kernels.tracing import outside_graphs
from ulam_kernels.validation import real_numbers

from ....schedules import Array, Schedule
from ..arguments import check_batch, check_noise, number
from ..call_table import CallRows, CallTable
from ..configuration import MOST_STEPS, unsupported
from ..noise import Generators
from ..positions import Timestep
from ..scheduler import Fused
from ..tracing import check_not_recorded
from ..translation import numbers
from .flow import affine, dtype_of, toward_noise
from .solver import FusedUniPC


class FusedHelios(FusedUniPC):
    """HeliosScheduler: with scheduler_type="unipc" on `ulam.samplers.UniPC`, with "euler" x' = x + (s - t) m.

    A loop begins at the timestep that it is given; diffusers begins at the first, whichever is given. Of the output
    model_outputs, last_sample and this_order, which diffusers fills with its history, are None.
    """

    output = HeliosSchedulerOutput, None
    most = 4

    def _check(self) -> None:
        c = self.config
        if c.scheduler_type not in ("euler", "unipc"):
            raise unsupported("scheduler_type", c.scheduler_type, "euler or unipc; for DMD take HeliosDMDScheduler")
        if c.scheduler_type == "euler":
            return
        if not c.use_flow_sigmas:
            raise unsupported("use_flow_sigmas", c.use_flow_sigmas, "True: Helios has no other levels")
        if c.thresholding:
            raise unsupported("thresholding", c.thresholding, "False: diffusers has no thresholds here")
        if not c.predict_x0 and c.prediction_type == "flow_prediction":
            raise unsupported("predict_x0", c.predict_x0, "True with flow_prediction")
        super()._check()

    def _on_flow(self) -> bool:
        return True

    def _levels_at(self, schedule: Schedule, sigmas: Array) -> tuple[Array, Array]:
        return 1 - sigmas, np.maximum(
            sigmas, 1e-8
        )  # as diffusers has the end, which with lower_order_final=False counts

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        self._check()
        if self.config.scheduler_type == "unipc":
            return super()._call_rows(start, options)
        sigmas = numbers(self.sigmas)[start : len(self.timesteps) + 1]
        return CallRows(affine(x={"x": 1.0, "m": np.diff(sigmas)}), np.zeros(len(sigmas) - 1, dtype=np.bool_))

    def step(  # type: ignore[override]
        self,
        model_output: torch.Tensor,
        timestep: Timestep = None,  # type: ignore[assignment]
        sample: torch.Tensor = None,  # type: ignore[assignment]
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        euler = self.config.scheduler_type == "euler"
        dtype = dtype_of(model_output) if euler else None
        result = self._run(model_output, timestep, sample, None, return_dict, dtype=dtype)
        return result if return_dict or euler else (*result, None, None, None)


class FusedHeliosDMD(Fused):
    """HeliosDMDScheduler: x' = (1 - s) D + s z with D = x - t m, and D itself in the last step.

    The levels are those that `step` is given, dmd_sigmas at the dmd_timesteps nearest to the timestep and to the next
    of all_timesteps, and z is dmd_noisy_tensor, a stage's own noise. The result has the noise's dtype, in the last step
    that of the network's output.
    """

    counted = False
    output = HeliosDMDSchedulerOutput, None
    usual_options: ClassVar[tuple[Any, ...]] = (0.5, None)  # any: the levels come with a call

    def _check(self) -> None:
        pass

    def _prepare(self) -> None:
        pass

    def _check_times(self, times: Array) -> None:
        pass

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        t, s = (np.array([level or 0.0]) for level in options)
        return CallRows(affine(x=toward_noise(t, s)), np.array([options[1] is not None]))

    def _row(self, calls: CallTable, timestep: Timestep, sample: torch.Tensor) -> int | torch.Tensor:
        return calls.row_offset(0)

    @outside_graphs
    def step(
        self,
        model_output: torch.Tensor,
        timestep: Timestep = None,  # type: ignore[assignment]
        sample: torch.Tensor = None,  # type: ignore[assignment]
        generator: Generators = None,
        return_dict: bool = True,
        cur_sampling_step: int = 0,
        dmd_noisy_tensor: torch.Tensor | None = None,
        dmd_sigmas: torch.Tensor | None = None,
        dmd_timesteps: torch.Tensor | None = None,
        all_timesteps: torch.Tensor | None = None,
    ) -> Any:
        check_not_recorded("step")
        check_batch(sample, "sample")
        given = {"dmd_sigmas": dmd_sigmas, "dmd_timesteps": dmd_timesteps, "all_timesteps": all_timesteps}
        sigmas, known, times = (_levels(name, values) for name, values in given.items())
        if len(sigmas) < len(known):
            raise ValueError(f"dmd_sigmas: got {len(sigmas)} levels, expected one for each of {len(known)} timesteps")
        at = whole(cur_sampling_step, "cur_sampling_step", 0, MOST_STEPS)
        noise = dmd_noisy_tensor if at < len(times) - 1 else None
        level, after = _nearest(sigmas, known, _as_number(timestep)), None
        dtype = dtype_of(model_output)
        if at < len(times) - 1:
            check_noise(noise, sample, "dmd_noisy_tensor")
            level, after = level, _nearest(sigmas, known, float(times[at + 1]))
            dtype = dtype_of(noise)
        options = level, after
        return self._run(model_output, 0.0, sample, None, return_dict, options=options, noise=noise, dtype=dtype)


def _levels(name: str, values: Any) -> Array:
    """[n] numbers. Raises TypeError or ValueError for what are none."""
    if values is None:
        raise ValueError(f"{name}: got None, expected the stage's own, as the pipeline has them")
    made = real_numbers(name, values)
    if made.dim() != 1 or not len(made) or not made.isfinite().all():
        raise ValueError(f"{name}: got {described(values)}, expected finite numbers, at least one")
    return numbers(made)


def _as_number(timestep: Any) -> float:
    if isinstance(timestep, torch.Tensor) and timestep.numel() == 1:
        timestep = timestep.item()
    return number(timestep)


def _nearest(sigmas: Array, times: Array, time: float) -> float:
    """The level of the timestep nearest to a whole one, as diffusers rounds it, down."""
    return float(sigmas[np.abs(times - int(time)).argmin()])
