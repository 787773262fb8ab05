"""noise-v1 straight into a tensor, and the affine update of two tensors: exact and readable."""

from __future__ import annotations

import numpy as np
import torch

from ulam_kernels.reference import noise as noise_v1
from ulam_kernels.reference.arithmetic import mul
from ulam_kernels.reference.operands import combine, store, to_host


def fill_normal(
    out: torch.Tensor,
    seed: torch.Tensor,
    chain: torch.Tensor,
    draw: torch.Tensor,
    tag: int,
    scale: float,
    offset: int,
) -> None:
    """``out[b, i] = mul(scale, z)`` with z the noise-v1 normal of element ``offset + i`` of chain ``b``.

    ``out`` is ``[B, *shape]`` of any float dtype and layout; ``seed``, ``chain``, ``draw`` are ``[B]`` int64
    read as uint64. The scale is rounded to float32 first, the product to float32 and then to a narrower dtype
    (float64 ``out``: all in float64).
    """
    if out.numel() == 0:
        return
    working = np.float64 if out.dtype == torch.float64 else np.float32
    z = noise_v1.normals(
        *(tensor.cpu().numpy().view(np.uint64) for tensor in (seed, chain, draw)),
        tag=tag,
        offset=offset,
        count=out[0].numel(),
    )
    store(out, mul(np.asarray(scale, dtype=working), z.astype(working)))


def affine(x: torch.Tensor, m: torch.Tensor, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """``out = fma(b, m, mul(a, x))`` with ``a``, ``b`` per chain ``[B]``; a zero factor's term is not read.

    ``x``, ``m``, ``out`` are ``[B, *shape]`` of any float dtype; computed in float64 where one of them is
    float64, else in float32.
    """
    if out.numel() == 0:
        return
    wide = torch.float64 in (x.dtype, m.dtype, out.dtype)
    working = torch.float64 if wide else torch.float32
    batch = len(out)
    terms = [to_host(x, working, batch), to_host(m, working, batch)]
    factors = torch.stack([a, b], dim=1).to("cpu", working).numpy()
    rows = [
        combine(
            factors[i],
            [None if t is None else t[i] for t in terms],
            like=np.zeros(out[0].numel(), factors.dtype),
        )
        for i in range(batch)
    ]
    store(out, np.stack(rows))
