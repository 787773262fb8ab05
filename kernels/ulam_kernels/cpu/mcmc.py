"""Langevin and Metropolis operations of the native C++ backend: see :mod:`ulam_kernels.mcmc`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ulam_kernels import _cpu, native_mcmc
from ulam_kernels.densities import Density


def _run(operation: Callable[..., None], arguments: native_mcmc.Arguments) -> None:
    operation(*arguments, torch.get_num_threads())


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
    _run(_cpu.mcmc_langevin, native_mcmc.langevin(x, score, step, noise_scale, scale, lo, hi, *rest))


def kick_drift(x: torch.Tensor, *tensors: torch.Tensor | None) -> None:
    _run(_cpu.mcmc_kick_drift, native_mcmc.of_chains(x, *tensors))


def mala_accept(x: torch.Tensor, *tensors: torch.Tensor | None) -> None:
    _run(_cpu.mcmc_mala_accept, native_mcmc.of_chains(x, *tensors))


def squared_norm(x: torch.Tensor, out: torch.Tensor) -> None:
    _run(_cpu.mcmc_squared_norm, native_mcmc.of_chains(x, out))


def accept(log_ratio: torch.Tensor, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], *rest: torch.Tensor) -> None:
    _run(_cpu.mcmc_accept, native_mcmc.accept(log_ratio, pairs, *rest))


def evaluate(
    density: Density, params: torch.Tensor, x: torch.Tensor, energy: torch.Tensor | None, score: torch.Tensor
) -> None:
    _run(_cpu.mcmc_evaluate, native_mcmc.evaluate(density, params, x, energy, score))


def run(density: Density, params: torch.Tensor, x: torch.Tensor, *rest: object) -> None:
    _run(_cpu.mcmc_run, native_mcmc.run(density, params, x, *rest))  # type: ignore[arg-type]
