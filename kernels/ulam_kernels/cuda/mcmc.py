"""Langevin and Metropolis operations of the CUDA C++ backend: see :mod:`ulam_kernels.mcmc`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ulam_kernels import _cuda, native_mcmc
from ulam_kernels.densities import Density


def _launch(operation: Callable[..., None], device: torch.device, arguments: native_mcmc.Arguments) -> None:
    with torch.cuda.device(device):
        operation(*arguments, torch.cuda.current_stream(device).cuda_stream)


def langevin(
    x: torch.Tensor,
    score: torch.Tensor,
    step: torch.Tensor,
    noise_scale: torch.Tensor,
    scale: torch.Tensor | None,
    lo: float,
    hi: float,
    *rest: torch.Tensor | None,
) -> None:
    _launch(_cuda.mcmc_langevin, x.device, native_mcmc.langevin(x, score, step, noise_scale, scale, lo, hi, *rest))


def kick_drift(x: torch.Tensor, *tensors: torch.Tensor | None) -> None:
    _launch(_cuda.mcmc_kick_drift, x.device, native_mcmc.of_chains(x, *tensors))


def mala_accept(x: torch.Tensor, *tensors: torch.Tensor | None) -> None:
    _launch(_cuda.mcmc_mala_accept, x.device, native_mcmc.of_chains(x, *tensors))


def squared_norm(x: torch.Tensor, out: torch.Tensor) -> None:
    _launch(_cuda.mcmc_squared_norm, x.device, native_mcmc.of_chains(x, out))


def accept(log_ratio: torch.Tensor, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], *rest: torch.Tensor) -> None:
    _launch(_cuda.mcmc_accept, log_ratio.device, native_mcmc.accept(log_ratio, pairs, *rest))


def evaluate(
    density: Density, params: torch.Tensor, x: torch.Tensor, energy: torch.Tensor | None, score: torch.Tensor
) -> None:
    _launch(_cuda.mcmc_evaluate, x.device, native_mcmc.evaluate(density, params, x, energy, score))


def run(density: Density, params: torch.Tensor, x: torch.Tensor, *rest: object) -> None:
    _launch(_cuda.mcmc_run, x.device, native_mcmc.run(density, params, x, *rest))  # type: ignore[arg-type]
