"""TCD: strategic stochastic sampling from a trajectory consistency model [Zheng 2024]."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_tcd import TCDSchedulerOutput

from ulam_kernels.arguments import real
from ulam_kernels.tracing import outside_graphs

from ....programs.builder import ProgramBuilder
from ....programs.program import Program
from ....schedules import Array, correlation
from ..arguments import check_sample
from ..call_table import CallRows
from ..noise import Generators
from ..positions import Timestep
from ..scheduler import Fused
from ..tracing import check_not_recorded
from ..translation import numbers, predicts_of, vp_levels, vp_schedule


class FusedTCD(Fused):
    """TCDScheduler: the rows of `ulam.samplers.TCD`, with the middle time (1 - eta) s rounded down from float32.

    As in diffusers the last step ends at training index 0, and clip_sample and thresholding are not read.
    """

    needs_steps = True
    usual_options = (0.3,)
    output = TCDSchedulerOutput, "pred_noised_sample"

    def _check(self) -> None:
        predicts_of(self.config, "epsilon", "sample", "v_prediction")

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        schedule, predicts = vp_schedule(self), predicts_of(self.config, "epsilon", "sample", "v_prediction")
        times, (eta,) = numbers(self.timesteps)[start:], options
        after = np.append(times[1:], 0.0)
        (alpha_t, sigma_t), (alpha_s, sigma_s), (alpha_u, sigma_u) = (
            self._levels_of(at) for at in (times, after, _middle(after, eta))
        )
        if not (alpha_u > 0).all():
            at = int(after[np.argmin(alpha_u > 0)])
            raise ValueError(f"timesteps: got a step that ends at {at}, where alpha is 0, expected signal there")
        q = correlation(alpha_s, sigma_s, alpha_u, sigma_u)

        def program(**x: Array) -> Program:
            builder = ProgramBuilder(schedule, predicts)
            builder.rows(times, levels=(alpha_t, sigma_t), x=x)
            return builder.program(sampler="TCD", order=0, init_scale=1.0)

        last = start + np.arange(len(times)) == self.num_inference_steps - 1  # type: ignore[operator]
        return CallRows(
            program(D=alpha_s, eps=sigma_s * q, z=sigma_s * np.sqrt((1 - q) * (1 + q))),
            ~last & (eta > 0),
            lambda: program(D=alpha_u, eps=sigma_u),
        )

    def _second_dtype(self, sample: torch.Tensor, model_output: torch.Tensor) -> torch.dtype:
        return self._result_dtype(sample, model_output)

    def _levels_of(self, times: Array) -> tuple[Array, Array]:
        alphas, sigmas = vp_levels(self, times, 1.0)
        return alphas[:-1], sigmas[:-1]

    @outside_graphs
    def step(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        eta: float = 0.3,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        check_not_recorded("step")
        eta = real(eta, "eta", "a number from 0 to 1")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta: got {eta:g}, expected a number from 0 to 1")
        check_sample(sample, model_output)
        drawn = self._result_dtype(sample, model_output)
        return self._run(model_output, timestep, sample, generator, return_dict, options=(eta,), noise_dtype=drawn)


def _middle(after: Array, eta: float) -> Array:
    """[n] the training index between the two parts of a step that ends at `after`."""
    return numbers(torch.floor((1 - eta) * torch.from_numpy(after.astype(np.int64))))
