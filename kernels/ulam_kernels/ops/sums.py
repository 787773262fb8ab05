"""Sums over the elements of a chain, in a fixed order: what guidance beyond a weighted difference is made of."""

from __future__ import annotations

import torch

from ulam_kernels.autograd import check_no_gradient
from ulam_kernels.dispatch import select
from ulam_kernels.operator import BACKEND, operator
from ulam_kernels.tracing import through_operator
from ulam_kernels.validation import check, check_chains

__all__ = ["moments"]

SUMS = 5


def _five(x: torch.Tensor, **_: object) -> torch.Tensor:
    return x.new_empty((*x.shape[:1], SUMS), dtype=torch.float64)


@operator(f"moments(Tensor x, Tensor y, {BACKEND}) -> Tensor", _five)
def moments(x: torch.Tensor, y: torch.Tensor, *, backend: str | None = None) -> torch.Tensor:
    """Sums of x, y, x^2, x y and y^2 over each chain, ``[B, 5]`` float64: inner products, means and variances.

    A product of two float32 is exact in float64. Sums are those of :func:`ulam_kernels.reduce`: lane l of 1024 adds the
    elements e with e mod 1024 = l in order of e, then lane l adds lane l + w for w = 512, ... 1; so they have the same
    bits on every backend, whatever the batch.

    Args:
        x, y: ``[B, *shape]``, contiguous, float32 (float64 on the reference backend).

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or layout.
        RuntimeError: an argument requires grad while gradients are recorded.
    """
    check_no_gradient("moments", x=x, y=y)
    if through_operator("moments", x, y, pure=True):
        return torch.ops.ulam.moments(x, y, backend)  # type: ignore[no-any-return]
    check_chains(x, "x")
    check(y, "y", x.dtype, x.device, x.shape)
    out = torch.zeros(len(x), SUMS, dtype=torch.float64, device=x.device)
    if x.numel():
        select(backend, x.device.type, x.dtype).moments(x, y, out)
    return out
