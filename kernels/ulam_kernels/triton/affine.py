"""``out = a x + b m`` with one pair of coefficients a chain, in Triton."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ulam_kernels.triton.launch import LONGEST_SHORT, TILE, elements_per_chain, long_grid, long_options, on_device
from ulam_kernels.triton.row import add_term, empty_sum

# Read one number at a time: slices of them, at whatever address, must not compile the kernel again.
PER_CHAIN = ["a", "b"]


@triton.jit
def combine(x, m, a, b, out, at, mask, LONG: tl.constexpr):
    """``fma(b, m, mul(a, x))`` at the offsets ``at``; what a zero coefficient belongs to has no influence."""
    if LONG:
        u = tl.load(x + at, mask=mask & (a != 0)).to(tl.float32)
        v = tl.load(m + at, mask=mask & (b != 0)).to(tl.float32)
    else:  # a mask that changes within 16 bytes would make the accesses narrow
        u = tl.load(x + at, mask=mask).to(tl.float32)
        v = tl.load(m + at, mask=mask).to(tl.float32)
    t = empty_sum((a != 0) | (b != 0), u)
    t = add_term(t, a, u, LONG)
    t = add_term(t, b, v, LONG)
    tl.store(out + at, t.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["chains", "n"], do_not_specialize_on_alignment=PER_CHAIN)
def affine_long(x, m, a, b, out, chains, n, ALIGNED: tl.constexpr, TILE: tl.constexpr):
    """Grid of :func:`ulam_kernels.triton.launch.long_grid`."""
    if ALIGNED:
        n = n // 8 * 8  # says to the compiler that 16-byte accesses are aligned
    chain = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    exists = chain < chains
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    a = tl.load(a + chain, mask=exists, other=0.0)
    b = tl.load(b + chain, mask=exists, other=0.0)
    combine(x, m, a, b, out, chain.to(tl.int64) * n + i, exists & (i < n), True)


@triton.jit(do_not_specialize=["size", "n"], do_not_specialize_on_alignment=PER_CHAIN)
def affine_short(x, m, a, b, out, size, n, ALIGNED: tl.constexpr, TILE: tl.constexpr):
    """Grid (tiles of the whole batch of ``size`` elements), which are taken as they lie, whatever chain they are of."""
    if ALIGNED:
        size = size // 8 * 8
    first = tl.program_id(0).to(tl.int64) * TILE
    i = tl.arange(0, TILE)
    chain = first // n + ((first % n).to(tl.int32) + i) // n
    mask = first + i < size
    a = tl.load(a + chain, mask=mask, other=0.0)
    b = tl.load(b + chain, mask=mask, other=0.0)
    combine(x + first, m + first, a, b, out + first, i, mask, False)


def affine(x: torch.Tensor, m: torch.Tensor, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """``out = fma(b, m, mul(a, x))``: see :func:`ulam_kernels.affine`."""
    n = elements_per_chain(x)
    if n == 0:
        return
    chains = x.shape[0]
    with on_device(x):
        if n > LONGEST_SHORT:
            affine_long[long_grid(chains, n)](
                x, m, a, b, out, chains, n, ALIGNED=n % 8 == 0, TILE=TILE, **long_options()
            )
        else:
            size = x.numel()
            affine_short[(-(-size // TILE),)](
                x, m, a, b, out, size, n, ALIGNED=size % 8 == 0, TILE=TILE, **long_options()
            )
