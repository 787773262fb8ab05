"""Karras' stochastic sampler on a VE schedule, told noise levels instead of timesteps [Karras 2022, algorithm 2]."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from diffusers.schedulers.deprecated.scheduling_karras_ve import KarrasVeOutput

import ulam_kernels
from ulam_kernels import Table
from ulam_kernels.arguments import real
from ulam_kernels.tracing import outside_graphs

from ....noise import DRAWS_PER_ROW
from ..arguments import check_no_gradient, check_noise, check_return_dict, check_sample
from ..execution import wide
from ..noise import Generators
from ..scheduler import Fused
from ..tracing import check_not_recorded
from .flow import affine


class FusedKarrasVe(Fused):
    """KarrasVeScheduler: D = x + sigma_hat m, d = -m, x' = x + (sigma_prev - sigma_hat) d; step_correct averages two d.

    Under noise-v1 the k-th call of add_noise_to_input since set_timesteps has the noise of row k.
    """

    counted = False
    output = KarrasVeOutput, None

    def _check(self) -> None: ...

    def _prepare(self) -> None: ...

    def add_noise_to_input(self, sample: torch.Tensor, sigma: Any, generator: Generators = None) -> Any:
        """(sample with noise of sigma_hat^2 - sigma^2, sigma_hat)."""
        if self._streams is None:
            return super().add_noise_to_input(sample, sigma, generator)  # type: ignore[misc]
        check_sample(sample, sample)
        level, config, chains = _level(sigma, "sigma"), self.config, len(sample)
        churns = config.s_min <= level <= config.s_max and self.num_inference_steps
        gamma = min(config.s_churn / self.num_inference_steps, math.sqrt(2) - 1) if churns else 0.0
        draw = torch.full((chains,), self._local.predictor_steps * DRAWS_PER_ROW, device=sample.device)
        self._local.predictor_steps += 1
        noise = torch.empty(sample.shape, device=sample.device)
        stream = self._streams.operands(chains, sample.device)
        ulam_kernels.fill_normal(noise, draw=draw, backend=self._backend, **stream)  # type: ignore[arg-type]
        std = config.s_noise * level * math.sqrt(gamma * (2 + gamma))
        return sample + (std * noise).to(sample.dtype), sigma + gamma * sigma

    @outside_graphs
    def step(
        self, model_output: torch.Tensor, sigma_hat: Any, sigma_prev: Any, sample_hat: torch.Tensor,
        return_dict: bool = True,
    ) -> Any:  # fmt: skip
        """From sigma_hat to sigma_prev by Euler's method."""
        check_not_recorded("step")
        levels = _level(sigma_hat, "sigma_hat"), _level(sigma_prev, "sigma_prev")
        check_sample(sample_hat, model_output)
        check_no_gradient(model_output=model_output, sample_hat=sample_hat)
        check_return_dict(return_dict)
        previous, derivative, data = self._executed(False, levels, model_output, sample_hat)
        return KarrasVeOutput(previous, derivative, data) if return_dict else (previous, derivative)

    @outside_graphs
    def step_correct(
        self, model_output: torch.Tensor, sigma_hat: Any, sigma_prev: Any, sample_hat: torch.Tensor,
        sample_prev: torch.Tensor, derivative: torch.Tensor, return_dict: bool = True,
    ) -> Any:  # fmt: skip
        """The same with the mean of `derivative` and that at `sample_prev`, where the output was evaluated."""
        check_not_recorded("step_correct")
        levels = _level(sigma_hat, "sigma_hat"), _level(sigma_prev, "sigma_prev")
        check_sample(sample_hat, model_output)
        check_noise(sample_prev, sample_hat, "sample_prev")
        check_noise(derivative, sample_hat, "derivative")
        check_no_gradient(
            model_output=model_output, sample_hat=sample_hat, sample_prev=sample_prev, derivative=derivative
        )
        check_return_dict(return_dict)
        previous, data, _ = self._executed(True, levels, model_output, sample_hat, sample_prev, derivative)
        return KarrasVeOutput(previous, derivative, data) if return_dict else (previous, derivative)

    def _executed(
        self, corrects: bool, levels: tuple[float, float], model_output: torch.Tensor, *states: torch.Tensor
    ) -> list[torch.Tensor]:
        """The registers after the row, that began with `states`."""
        sample = states[0]
        dtype, device = wide(sample), sample.device
        registers = torch.zeros((3, *sample.shape), dtype=dtype, device=device)
        for register, state in zip(registers, states, strict=False):
            register.copy_(state)
        rows = torch.zeros(len(sample), dtype=torch.int64, device=device)
        backend = None if dtype == torch.float64 else self._backend
        table = _table(corrects, *levels, dtype, device)
        ulam_kernels.step(registers, table, rows, model=model_output, backend=backend)
        result = self._result_dtype(sample, model_output)
        return [register.to(result) for register in registers]


@lru_cache(maxsize=1024)
def _table(corrects: bool, hat: float, prev: float, dtype: torch.dtype, device: torch.device) -> Table:
    """The row between two levels: x', d and D of x; corrects: x' and D of x, the sample before it and d."""
    if corrects:
        half = (prev - hat) / 2
        program = affine(registers=3, x={"x": 1.0, "r2": half, "m": -half}, r1={"r1": 1.0, "m": prev})
    else:
        program = affine(registers=3, x={"x": 1.0, "m": hat - prev}, r1={"m": -1.0}, r2={"x": 1.0, "m": hat})
    return program.table(dtype, device)


def _level(sigma: Any, name: str) -> float:
    """A noise level, a number or a tensor of one. Raises TypeError or ValueError for any other."""
    value = sigma.item() if isinstance(sigma, torch.Tensor) and sigma.numel() == 1 else sigma
    level = real(value, name, "a finite noise level of at least 0")
    if level < 0:
        raise ValueError(f"{name}: got {level:g}, expected a finite noise level of at least 0")
    return level
