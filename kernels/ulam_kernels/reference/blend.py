"""Mask blending with a known image, exact and readable."""

from __future__ import annotations

import numpy as np
import torch

from ulam_kernels.reference import noise as noise_v1
from ulam_kernels.reference.arithmetic import RealArray, fma, mul, sub
from ulam_kernels.reference.operands import combine, rows_inside, to_uint64, working_dtype


def blend(
    x: torch.Tensor,
    known: torch.Tensor,
    mask: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    seed: torch.Tensor | None,
    chain: torch.Tensor | None,
    draw: torch.Tensor | None,
    noise: torch.Tensor | None,
    net_in: torch.Tensor | None,
    c_next: torch.Tensor | None,
    row: torch.Tensor | None = None,
    stage: int = 0,
) -> None:
    """``x[b]`` becomes the noised known image where the mask is 1: see :func:`ulam_kernels.blend`.

    ``k = fma(b, z, mul(a, known))``, a zero factor's term not read; ``x`` becomes k where mask == 1, stays where
    mask == 0, and is ``fma(mask, sub(k, x), x)`` elsewhere. Then ``net_in = mul(c_next, x)`` of the x just stored.

    Raises:
        IndexError: a row outside the tables.
    """
    if x.numel() == 0:
        return
    working = working_dtype(x)
    index = np.arange(len(x)) if row is None else rows_inside(row, len(a))
    factors = torch.stack([a, b], dim=1).to("cpu", working).numpy()[index]
    ids = [to_uint64(tensor) for tensor in (seed, chain, draw)]
    if ids[2] is not None:
        ids[2] = ids[2] + np.uint64(stage)

    def host(tensor: torch.Tensor) -> RealArray:
        values: RealArray = tensor.to("cpu", working).numpy().reshape(-1)
        return values

    for i, factor in enumerate(factors):
        if not factor.any():
            continue
        r0, weight = host(x[i]), host(mask[i])
        z = None
        if factor[1] != 0 and noise is not None:
            z = host(noise[i])
        elif factor[1] != 0:
            stream = (tensor[i : i + 1] for tensor in ids if tensor is not None)
            z = noise_v1.normals(*stream, tag=0, offset=0, count=r0.size)[0].astype(r0.dtype)
        k = combine(factor, [host(known[i]), z], like=r0)
        blended = np.where(weight == 1, k, np.where(weight == 0, r0, fma(weight, sub(k, r0), r0)))
        x[i] = torch.from_numpy(blended).to(x.dtype).reshape(x[i].shape)
        if net_in is not None and c_next is not None:
            scale = c_next[index[i]].to("cpu", working).numpy()
            net_in[i] = torch.from_numpy(mul(scale, host(x[i]))).to(net_in.dtype).reshape(x[i].shape)
