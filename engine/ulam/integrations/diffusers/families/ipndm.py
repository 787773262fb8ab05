"""iPNDM: Adams-Bashforth on the noise estimate, with lower orders to begin [Zhang & Chen 2023]."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from ....programs.builder import ProgramBuilder
from ....samplers.pndm import ADAMS_BASHFORTH
from ....schedules import vp_linear
from ..call_table import CallRows
from ..positions import Timestep
from ..scheduler import Fused
from ..translation import numbers

LEAST_ALPHA = 1e-8


class FusedIPNDM(Fused):
    """IPNDMScheduler: x_s = (alpha_s / alpha_t) (x_t - sigma_t e) + sigma_s e, e = sum_j w_j eps_j.

    The network predicts v, eps = sigma x + alpha v on its own levels sin(pi t / 2)^2. From alpha_t = 0, where
    x_t = eps, the step is x_s = sigma_s e: as in diffusers, the estimate of the data there is not read. A loop that
    begins in the middle begins with order 1.
    """

    has_history = needs_steps = True
    output = SchedulerOutput, None
    alphas: Any
    betas: Any
    ets: list[torch.Tensor]

    def _check(self) -> None: ...

    def _levels(self) -> Any:
        return self.betas

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        times = numbers(self.timesteps)[start:]
        alphas, sigmas = (numbers(level)[start : start + len(times) + 1] for level in (self.alphas, self.betas))
        on_x = np.zeros(len(times))
        np.divide(alphas[1:], alphas[:-1], out=on_x, where=alphas[:-1] > LEAST_ALPHA)
        on_e = sigmas[1:] - on_x * sigmas[:-1]
        w = np.zeros((len(times), 4))
        for i in range(len(times)):
            w[i, : min(i, 3) + 1] = ADAMS_BASHFORTH[min(i, 3)]
        builder = ProgramBuilder(vp_linear(), "v", registers=4)
        builder.rows(
            times,
            levels=(alphas[:-1], sigmas[:-1]),
            x={"x": on_x, **{e: on_e * w[:, j] for j, e in enumerate(("eps", "r1", "r2", "r3"))}},
            r1={"eps": 1.0},
            r2={"r1": 1.0},
            r3={"r2": 1.0},
        )
        return CallRows(builder.program(sampler="IPNDM", order=1, init_scale=1.0), np.zeros(len(times), np.bool_))

    def step(
        self, model_output: torch.Tensor, timestep: Timestep, sample: torch.Tensor, return_dict: bool = True
    ) -> Any:
        """One call; diffusers' own where the caller has set `ets`, a history of his."""
        if self.ets:
            return super().step(model_output, timestep, sample, return_dict=return_dict)  # type: ignore[misc]
        return self._run(model_output, timestep, sample, None, return_dict)
