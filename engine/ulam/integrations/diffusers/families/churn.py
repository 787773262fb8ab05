"""Churn: noise that raises a step's level before the step, as an argument of `step` [Karras 2022, algorithm 2]."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ....programs.program import Program
from ....schedules import Array
from ..arguments import CHURN_OFF, check_index, churn
from ..call_table import CallRows
from ..noise import Generators
from ..positions import Timestep
from ..scheduler import Fused


class Churning(Fused):
    """A scheduler whose step takes churn and gives the dtype of the network's output."""

    usual_options = CHURN_OFF

    def _result_dtype(self, sample: torch.Tensor, model_output: torch.Tensor) -> torch.dtype:
        return model_output.dtype

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


def raised(sigmas: Array, options: tuple[float, ...], of: int | None = None) -> tuple[Array, Array]:
    """(sigma_hat, std of the noise that leads there) [n] under churn [Karras 2022, algorithm 2].

    of: the number of steps that the churn is spread over, default n.
    """
    churn, least, most, noise = options
    sigma = sigmas[:-1]
    gamma = np.where((least <= sigma) & (sigma <= most), min(churn / (of or len(sigma)), math.sqrt(2) - 1), 0.0)
    return sigma * (1 + gamma), noise * sigma * np.sqrt(gamma * (2 + gamma))


def quotients(levels: Array, hat: Array) -> Array:
    """levels / sigma_hat [n], 1 where sigma_hat is 0."""
    return np.asarray(np.divide(levels, hat, out=np.ones_like(hat), where=hat > 0))


def churned(calls: CallRows, q: Array, kx: Array, km: Array, std: Array) -> CallRows:
    """y_hat = y + std z, D = kx y_hat + km m, y' = q y_hat + (1 - q) D, q = sigma_s / sigma_hat; the network saw y."""

    def rows(a: Array, b: Array) -> Program:
        on_y = a + b * kx
        A = np.zeros_like(calls.program.A)
        A[:, 0, 0], A[:, 0, 2], A[:, 0, 3] = on_y, b * km, on_y * std
        nothing = np.zeros_like(kx)
        return replace(calls.program, A=A, kx=nothing, km=nothing, writes=np.ones_like(calls.program.writes))

    return CallRows(rows(q, 1 - q), std > 0, lambda: rows(np.zeros_like(q), np.ones_like(q)), second_reads_noise=True)
