"""Likelihood operations of the native C++ backend: see :mod:`ulam_kernels.likelihood`."""

from __future__ import annotations

import torch

from ulam_kernels import _cpu


def gaussian_kl(
    mean_a: torch.Tensor,
    log_var_a: torch.Tensor,
    mean_b: torch.Tensor,
    log_var_b: torch.Tensor,
    each_a: bool,
    each_b: bool,
    out: torch.Tensor,
) -> None:
    _cpu.gaussian_kl(
        len(mean_a),
        mean_a.numel() // len(mean_a),
        mean_a.data_ptr(),
        log_var_a.data_ptr(),
        mean_b.data_ptr(),
        log_var_b.data_ptr(),
        each_a,
        each_b,
        out.data_ptr(),
        torch.get_num_threads(),
    )


def discretised_log_likelihood(
    x: torch.Tensor,
    mean: torch.Tensor,
    log_scale: torch.Tensor,
    each: bool,
    half: float,
    edge: float,
    tanh: bool,
    out: torch.Tensor,
) -> None:
    _cpu.discretised_log_likelihood(
        len(x),
        x.numel() // len(x),
        x.data_ptr(),
        mean.data_ptr(),
        log_scale.data_ptr(),
        each,
        half,
        edge,
        tanh,
        out.data_ptr(),
        torch.get_num_threads(),
    )
