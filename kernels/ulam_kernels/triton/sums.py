"""Sums over a chain in Triton, in the fixed order: lanes of elements, then halves of the lanes."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from ulam_kernels.triton.launch import EXACT

LANES = 1024  # of a sum of squares; a chain of fewer elements leaves the others at 0
FEW_LANES = 128
UNROLL = 4  # tiles that are loaded before the first is used


@triton.jit
def sum_of_lanes(x, LANES: tl.constexpr):
    """``x[l] += x[l + w]`` for l < w, w = LANES / 2, ... 1: sums of two each, so that their order is no question."""
    if LANES > 2:
        x = tl.sum(tl.reshape(x, [2, LANES // 2]), 0)
        total = sum_of_lanes(x, LANES // 2)
    else:
        total = tl.sum(x, 0)
    return total


@triton.jit
def sum_of_rows(x, CHAINS: tl.constexpr, LANES: tl.constexpr):
    """:func:`sum_of_lanes` of each chain of ``[CHAINS, LANES]``."""
    if LANES > 2:
        x = tl.sum(tl.reshape(x, [CHAINS, 2, LANES // 2]), 1)
        total = sum_of_rows(x, CHAINS, LANES // 2)
    else:
        total = tl.sum(x, 1)
    return total


def shape_of(n: int) -> dict[str, object]:
    """How a program sums over a chain: compile options that depend on its length in few ways."""
    tile, warps = (FEW_LANES, 1) if n <= FEW_LANES else (LANES, 8)
    return {"ALIGNED": n % 8 == 0, "TILE": tile, "UNROLL": UNROLL if n > tile else 1, "num_warps": warps, **EXACT}
