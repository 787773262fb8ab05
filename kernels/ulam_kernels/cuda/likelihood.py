"""Likelihood operations of the CUDA C++ backend: see :mod:`ulam_kernels.likelihood`."""

from __future__ import annotations

import torch

from ulam_kernels import _cuda
from ulam_kernels.cuda import _launch


def gaussian_kl(
    mean_a: torch.Tensor,
    log_var_a: torch.Tensor,
    mean_b: torch.Tensor,
    log_var_b: torch.Tensor,
    each_a: bool,
    each_b: bool,
    out: torch.Tensor,
) -> None:
    addresses = (tensor.data_ptr() for tensor in (mean_a, log_var_a, mean_b, log_var_b))
    sizes = (len(mean_a), mean_a.numel() // len(mean_a))
    _launch(_cuda.gaussian_kl, mean_a.device, (*sizes, *addresses, each_a, each_b, out.data_ptr()))


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
    addresses = (tensor.data_ptr() for tensor in (x, mean, log_scale))
    sizes = (len(x), x.numel() // len(x))
    arguments = (*sizes, *addresses, each, half, edge, tanh, out.data_ptr())
    _launch(_cuda.discretised_log_likelihood, x.device, arguments)
