"""Sums over two tensors of a chain in Triton, one program a chain: see :func:`ulam_kernels.moments`."""
# mypy: disable-error-code="assignment, no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ulam_kernels.triton.launch import elements_per_chain, on_device
from ulam_kernels.triton.sums import shape_of, sum_of_lanes


@triton.jit(do_not_specialize=["n"], do_not_specialize_on_alignment=["out"])
def moments_chain(x, y, out, n, ALIGNED: tl.constexpr, TILE: tl.constexpr, UNROLL: tl.constexpr):
    """Grid (chains)."""
    if ALIGNED:
        n = n // 8 * 8
    b = tl.program_id(0).to(tl.int64)
    sum_x = tl.zeros([TILE], tl.float64)
    sum_y = tl.zeros([TILE], tl.float64)
    sum_xx = tl.zeros([TILE], tl.float64)
    sum_xy = tl.zeros([TILE], tl.float64)
    sum_yy = tl.zeros([TILE], tl.float64)
    for first in range(0, n, TILE):
        i = first + tl.arange(0, TILE)
        p = tl.load(x + b * n + i, mask=i < n, other=0.0).to(tl.float64)
        q = tl.load(y + b * n + i, mask=i < n, other=0.0).to(tl.float64)
        sum_x += p
        sum_y += q
        sum_xx += p * p
        sum_xy += p * q
        sum_yy += q * q
    tl.store(out + 5 * b, sum_of_lanes(sum_x, TILE))
    tl.store(out + 5 * b + 1, sum_of_lanes(sum_y, TILE))
    tl.store(out + 5 * b + 2, sum_of_lanes(sum_xx, TILE))
    tl.store(out + 5 * b + 3, sum_of_lanes(sum_xy, TILE))
    tl.store(out + 5 * b + 4, sum_of_lanes(sum_yy, TILE))


def moments(x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> None:
    """The five sums of every chain."""
    n = elements_per_chain(x)
    with on_device(x):
        moments_chain[(len(x),)](x, y, out, n, **shape_of(n))
