"""Per-chain sums of a variational bound's terms: one contract, several backends, the same bits.

    gaussian_kl                  KL of diagonal Gaussians
    discretised_log_likelihood   ln of the Gaussian probability of bins, as of 8-bit images

A term, of one element, is float32 operations in a fixed order, each rounded once; exp, ln and the normal tail are the
polynomials of ``csrc/include/ulam/elementary.h``. Terms are summed in float64 in the order of
:func:`ulam_kernels.reduce`: lane l of 1024 adds the elements e with e mod 1024 = l in order of e, then lane l adds lane
l + w for w = 512, ... 1. So a chain's number depends on its own elements alone.

Tensors are contiguous float32, or all float64 on the reference backend, for checking. There are no gradients:
RuntimeError where an argument requires grad while gradients are recorded.
"""

from __future__ import annotations

from typing import Any

import torch

from ulam_kernels.arguments import choice, whole
from ulam_kernels.autograd import check_no_gradient
from ulam_kernels.dispatch import select
from ulam_kernels.operator import BACKEND, operator, per_chain
from ulam_kernels.tracing import through_operator
from ulam_kernels.validation import check, check_chains, check_tensor

CDFS = ("exact", "tanh")


@operator(
    f"gaussian_kl(Tensor mean_a, Tensor log_var_a, Tensor mean_b, Tensor log_var_b, {BACKEND}) -> Tensor",
    per_chain(torch.float64),
)
def gaussian_kl(
    mean_a: torch.Tensor,
    log_var_a: torch.Tensor,
    mean_b: torch.Tensor,
    log_var_b: torch.Tensor,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """KL(N(mean_a, exp log_var_a) || N(mean_b, exp log_var_b)) of every chain, in nats, ``[B]`` float64.

    1/2 sum_i (exp(d_i) - 1 - d_i + (mean_a - mean_b)_i^2 exp(-log_var_b)_i) with d = log_var_a - log_var_b: the usual
    form without its cancellation, so that close Gaussians have an accurate small divergence. exp(-log_var_b) saturates
    outside [-86, 88], d above 88. A term of the bound of Ho et al. 2020 (eq. 5).

    Args:
        mean_a, mean_b: ``[B, *shape]``.
        log_var_a, log_var_b: ``[B, *shape]``, or ``[B]`` for one number a chain.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or layout.
    """
    check_no_gradient("gaussian_kl", mean_a=mean_a, log_var_a=log_var_a, mean_b=mean_b, log_var_b=log_var_b)
    if through_operator("gaussian_kl", mean_a, log_var_a, mean_b, log_var_b, pure=True):
        return torch.ops.ulam.gaussian_kl(mean_a, log_var_a, mean_b, log_var_b, backend)  # type: ignore[no-any-return]
    check_chains(mean_a, "mean_a")
    check(mean_b, "mean_b", mean_a.dtype, mean_a.device, mean_a.shape)
    per_element_a, per_element_b = (
        _is_per_element(log_var_a, "log_var_a", mean_a),
        _is_per_element(log_var_b, "log_var_b", mean_a),
    )
    out = torch.zeros(len(mean_a), dtype=torch.float64, device=mean_a.device)
    if mean_a.numel():
        _backend(backend, mean_a).gaussian_kl(mean_a, log_var_a, mean_b, log_var_b, per_element_a, per_element_b, out)
    return out


@operator(
    "discretised_log_likelihood(Tensor x, Tensor mean, Tensor log_scale, SymInt bins=256, str cdf='exact', "
    f"{BACKEND}) -> Tensor",
    per_chain(torch.float64),
)
def discretised_log_likelihood(
    x: torch.Tensor,
    mean: torch.Tensor,
    log_scale: torch.Tensor,
    bins: int = 256,
    *,
    cdf: str = "exact",
    backend: str | None = None,
) -> torch.Tensor:
    """sum_i ln P(N(mean, exp(log_scale)^2) falls into the bin of x)_i of every chain, in nats, ``[B]`` float64.

    Values lie on ``bins`` levels from -1 to 1. A bin reaches half the distance 2 / (bins - 1) to either side of its
    level, the first and the last to infinity [Ho 2020, eq. 13].

    | cdf | the normal distribution |
    |---|---|
    | exact | Phi, by its tails: right also where Phi itself rounds to 0 or 1; nothing is cut off |
    | tanh | (1 + tanh(sqrt(2 / pi) (y + 0.044715 y^3))) / 2, no probability below 1e-12, as guided-diffusion has it |

    exp(-log_scale) saturates outside [-86, 88].

    Args:
        x, mean: ``[B, *shape]``. log_scale: ``[B, *shape]``, or ``[B]`` for one number a chain.
        bins: 2 to 65536 levels.
        cdf: ``"exact"`` or ``"tanh"``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or layout, or out of range.
    """
    check_no_gradient("discretised_log_likelihood", x=x, mean=mean, log_scale=log_scale)
    if through_operator("discretised_log_likelihood", x, mean, log_scale, pure=True):
        return torch.ops.ulam.discretised_log_likelihood(  # type: ignore[no-any-return]
            x, mean, log_scale, bins, cdf, backend
        )
    check_chains(x, "x")
    check(mean, "mean", x.dtype, x.device, x.shape)
    per_element = _is_per_element(log_scale, "log_scale", x)
    bins, cdf = whole(bins, "bins", 2, 1 << 16), choice(cdf, "cdf", CDFS)
    half = 1 / (bins - 1)
    out = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    if x.numel():
        # a quarter of a bin inside the outermost level, far from what rounding moves
        _backend(backend, x).discretised_log_likelihood(
            x, mean, log_scale, per_element, half, 1 - half / 2, cdf == "tanh", out
        )
    return out


def _backend(name: str | None, x: torch.Tensor) -> Any:
    return select(name, x.device.type, x.dtype).likelihood


def _is_per_element(values: torch.Tensor, name: str, x: torch.Tensor) -> bool:
    """Whether there is one number an element, after the checks."""
    check_tensor(values, name)
    if values.shape not in (x.shape, x.shape[:1]):
        raise ValueError(f"{name}: got shape {list(values.shape)}, expected {list(x.shape)} or {list(x.shape[:1])}")
    check(values, name, x.dtype, x.device, values.shape)
    return values.shape == x.shape
