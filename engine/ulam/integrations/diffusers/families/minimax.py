"""MiniMax-H3: Euler on a rectified flow that is told 1 - sigma, the network's output being x_0 - eps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_minimax_h3 import MiniMaxH3SchedulerOutput

from ..arguments import check_index
from ..call_table import CallRows
from ..positions import Timestep
from ..translation import numbers
from .flow import OnFlow, affine


class FusedMiniMaxH3(OnFlow):
    """MiniMaxH3Scheduler: x_s = x_t + (t - s) m, from level t to level s."""

    needs_steps = True
    output = MiniMaxH3SchedulerOutput, None

    def _call_rows(self, start: int, options: tuple[Any, ...]) -> CallRows:
        falls = -np.diff(numbers(self.sigmas)[start:])
        return CallRows(affine(x={"x": np.ones_like(falls), "m": falls}), np.zeros(len(falls), np.bool_))

    def index_for_timestep(self, timestep: Timestep) -> int:
        """The position of a timestep, as diffusers has it: its method takes no other timesteps."""
        return self._original.index_for_timestep(self, timestep)  # type: ignore[no-any-return]

    def step(
        self, model_output: torch.Tensor, timestep: Timestep, sample: torch.Tensor, return_dict: bool = True
    ) -> Any:
        check_index(timestep)
        return self._run(model_output, timestep, sample, None, return_dict, dtype=getattr(sample, "dtype", None))
