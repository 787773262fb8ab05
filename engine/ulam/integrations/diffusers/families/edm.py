"""EDM's Euler and DPM-Solver: schedulers on sigmas for networks with EDM's preconditioning [Karras 2022]."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_edm_euler import EDMEulerSchedulerOutput

from ....programs.predictions import x0_coefficients
from ....programs.program import Program
from ....samplers import Euler
from ....samplers.grid import Grid
from ....schedules import Array, Schedule, edm
from ..arguments import CHURN_OFF, check_index, check_sample, churn
from ..call_table import CallRows
from ..noise import Generators
from ..positions import Timestep
from ..program_edits import estimates, with_negated_output
from ..scheduler import Fused, ScaledInput
from ..translation import MovingSteps, at_sigmas, numbers, predicts_of
from .churn import churned, quotients, raised
from .sigma import widened
from .solver import FusedDPMMultistep


def edm_options(config: Any) -> tuple[Schedule, int]:
    """(schedule, sign of the network's output): v_prediction is EDM's F with the other sign."""
    predicts = predicts_of(config, "epsilon", "v_prediction")
    return edm(config.sigma_min, config.sigma_max, config.sigma_data, config.rho), 1 if predicts == "eps" else -1


class EDMInput(ScaledInput):
    """A scheduler whose network reads x / sqrt(sigma^2 + sigma_data^2)."""

    def _input_scales(self) -> Array:
        return np.asarray(1 / np.hypot(self.config.sigma_data, numbers(self.sigmas)[: len(self.timesteps)]))


class FusedEDMEuler(EDMInput):
    """EDMEulerScheduler on `ulam.samplers.Euler` and EDM's preconditioning; churn as in `FusedEuler`."""

    output = EDMEulerSchedulerOutput, "pred_original_sample"
    usual_options = (*CHURN_OFF, False)

    def _check(self) -> None:
        edm_options(self.config)

    def _result_dtype(self, sample: torch.Tensor, model_output: torch.Tensor) -> torch.dtype:
        return model_output.dtype

    def _second_dtype(self, sample: torch.Tensor, model_output: torch.Tensor) -> torch.dtype:
        return widened(self.config, model_output)

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        schedule, sign = edm_options(self.config)
        *churn, given = options
        sigmas = numbers(self.sigmas)[start : len(self.timesteps) + 1]
        levels, predicts = at_sigmas(schedule, sigmas), "x0" if given else "raw"

        def compiled(grid: Grid) -> Program:
            return Euler(len(grid)).on(grid, schedule, predicts)

        program = MovingSteps(sigmas[:-1], levels).program(compiled, sigmas[:-1], schedule, predicts)

        def signed(program: Program) -> Program:
            return with_negated_output(program) if sign < 0 and not given else program

        calls = CallRows(
            signed(program),
            np.zeros(len(program), dtype=np.bool_),
            lambda: signed(estimates(schedule, predicts, sigmas[:-1], (levels[0][:-1], levels[1][:-1]), None)),
        )
        if tuple(churn) == CHURN_OFF:
            return calls
        hat, std = raised(sigmas, tuple(churn))
        kx, km, _ = x0_coefficients(predicts, np.ones_like(hat), hat, schedule)
        return churned(calls, quotients(sigmas[1:], hat), kx, km if given else sign * km, std)

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
        check_index(timestep)
        options = (*churn(s_churn, s_tmin, s_tmax, s_noise), pred_original_sample is not None)
        output: torch.Tensor = model_output
        dtypes: dict[str, Any] = {}
        if pred_original_sample is not None:
            check_sample(sample, model_output)
            check_sample(sample, pred_original_sample, "pred_original_sample")
            output = pred_original_sample
            sample = sample.to(torch.promote_types(sample.dtype, output.dtype))
            dtypes = {"dtype": model_output.dtype, "second_dtype": output.dtype}
        return self._run(output, timestep, sample, generator, return_dict, options=options, **dtypes)


class FusedEDMDPM(EDMInput, FusedDPMMultistep):
    """EDMDPMSolverMultistepScheduler on `ulam.samplers.DPMSolverPP` and EDM's preconditioning."""

    def _result_dtype(self, sample: torch.Tensor, model_output: torch.Tensor) -> torch.dtype:
        return Fused._result_dtype(self, sample, model_output)

    def _schedule(self) -> tuple[Schedule, str]:
        return edm_options(self.config)[0], "raw"

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        calls = super()._call_rows(start, options)
        if edm_options(self.config)[1] > 0:
            return calls
        return CallRows(with_negated_output(calls.program), calls.draws)

    def step(  # type: ignore[override]
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        return self._run(model_output, timestep, sample, generator, return_dict)
