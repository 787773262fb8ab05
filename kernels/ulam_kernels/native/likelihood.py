"""Arguments of the sums over chains, of tensors that `likelihood` has validated, as bindings/likelihood.h has them."""

from __future__ import annotations

import torch

from ulam_kernels.native.addresses import addresses, sizes

Arguments = tuple[object, ...]


def gaussian_kl(
    mean_a: torch.Tensor,
    log_var_a: torch.Tensor,
    mean_b: torch.Tensor,
    log_var_b: torch.Tensor,
    per_element_a: bool,
    per_element_b: bool,
    out: torch.Tensor,
) -> Arguments:
    return (
        *sizes(mean_a),
        *addresses([mean_a, log_var_a, mean_b, log_var_b]),
        per_element_a,
        per_element_b,
        out.data_ptr(),
    )


def discretised_log_likelihood(
    x: torch.Tensor,
    mean: torch.Tensor,
    log_scale: torch.Tensor,
    per_element: bool,
    half: float,
    edge: float,
    tanh: bool,
    out: torch.Tensor,
) -> Arguments:
    return (*sizes(x), *addresses([x, mean, log_scale]), per_element, half, edge, tanh, out.data_ptr())
