"""SA-Solver: a predictor and a corrector on the reverse SDE whose strength is a function of the timestep [Xue 2023]."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ....programs.clip import Clip
from ....samplers import SASolver
from ....samplers.grid import GridSampler
from ....schedules import Array
from ..configuration import short, unsupported
from ..noise import Generators
from ..positions import Timestep
from ..translation import clip_of, numbers
from .solver import Positions, Solver


class FusedSASolver(Solver):
    """SASolverScheduler on `ulam.samplers.SASolver`, tau being tau_func of the timestep that a step begins at.

    As in diffusers every call draws noise, also where tau is 0. A last step that goes nowhere (the levels of Karras and
    others repeat the last one) adds none.

    Not as in diffusers: thresholding with algorithm_type="noise_prediction", which reads a timestep there that it is
    not given, bounds the estimate of the data. tau_func is read by set_timesteps and when it is set. In the middle of a
    loop another one must agree about the step before, whose corrector goes on from what its tau made (there the step is
    made again with the new tau).
    """

    alphas_cumprod: Any
    tau_func: Any

    def _check(self) -> None:
        self._schedule()
        clip_of(self.config)
        for name in ("predictor_order", "corrector_order"):
            if not 1 <= self.config[name] <= 4:
                raise unsupported(name, self.config[name], "1 to 4")
        if not callable(self.tau_func):
            raise unsupported("tau_func", self.tau_func, "a function of the timestep, or none")

    def _result_dtype(self, sample: torch.Tensor, model_output: torch.Tensor) -> torch.dtype:
        return sample.dtype

    def _sde(self) -> bool:
        return True

    def _levels(self) -> Any:
        taus, known, done = self._taus(), self._local.taus, self._local._step_index
        if done and known is not None and len(known) == len(taus) > done and known[done - 1] != taus[done - 1]:
            came, time = f"{taus[done - 1]:g} for {known[done - 1]:g}", float(self.timesteps[done - 1])
            right = "one that agrees about the step before, or a call of set_timesteps"
            raise ValueError(f"tau_func: got {came} at {time:g} in the middle of a loop, expected {right}")
        self._local.taus = taus
        return np.append(numbers(self.alphas_cumprod), taus)

    def _taus(self) -> Array:
        """[n] tau at every timestep. Raises ValueError for one that is no number of at least 0."""
        taus = []
        for time in self.timesteps:
            value = self.tau_func(time)
            try:
                tau = float(value)
            except (TypeError, ValueError):
                tau = -1.0
            if not 0 <= tau < np.inf:
                raise ValueError(f"tau_func: got {short(value)} at {float(time):g}, expected a number of at least 0")
            taus.append(tau)
        return np.array(taus)

    def _sampler(self, steps: int, few: bool, clip: Clip, positions: Positions) -> GridSampler:
        c, levels = self.config, numbers(self.sigmas)
        taus = self._taus()
        taus[-1] *= levels[len(taus)] < levels[len(taus) - 1]
        return SASolver(
            steps,
            predictor_order=c.predictor_order,
            corrector_order=c.corrector_order,
            tau=tuple(taus[positions].tolist()),
            interval=None,
            predict_x0=c.algorithm_type == "data_prediction",
            lower_order_final=c.lower_order_final,
            clip=clip,
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
