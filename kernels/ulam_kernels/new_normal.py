"""noise-v1 as a new tensor: what torch.compile and torch.func take in place of `fill_normal`, which writes to one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ulam_kernels.operator import BACKEND, IDS, library, operator
from ulam_kernels.ops.elementwise import fill_normal
from ulam_kernels.tracing import through_operator


def new_normal(
    shape: Sequence[int],
    *,
    seed: torch.Tensor,
    chain: torch.Tensor,
    draw: torch.Tensor,
    tag: int = 0,
    backend: str | None = None,
) -> torch.Tensor:
    """:func:`ulam_kernels.fill_normal` of a new tensor ``[B, *shape]`` float32, with its arguments and errors.

    Under ``torch.vmap`` each of its calls has the noise of its own names.
    """
    if through_operator("fill_normal", seed, chain, draw, pure=True):
        return torch.ops.ulam.fill_normal_new(seed, chain, draw, shape, tag, backend)  # type: ignore[no-any-return]
    return _fill_normal_new(seed, chain, draw, shape, tag, backend=backend)


def _empty(seed: torch.Tensor, shape: Sequence[int], **_: Any) -> torch.Tensor:
    return torch.empty((seed.shape[0], *shape), dtype=torch.float32, device=seed.device)


@operator(f"fill_normal_new({IDS}, SymInt[] shape, SymInt tag=0, {BACKEND}) -> Tensor", _empty)
def _fill_normal_new(
    seed: torch.Tensor,
    chain: torch.Tensor,
    draw: torch.Tensor,
    shape: Sequence[int],
    tag: int = 0,
    backend: str | None = None,
) -> torch.Tensor:
    return fill_normal(_empty(seed, shape), seed=seed, chain=chain, draw=draw, tag=tag, backend=backend)


def _of_each(
    info: Any, in_dims: tuple[int | None, ...], seed: torch.Tensor, chain: torch.Tensor, draw: torch.Tensor, *given: Any
) -> tuple[torch.Tensor, int]:
    """Under torch.vmap: the names of all calls, as one batch."""
    names = [
        name.expand(info.batch_size, *name.shape) if dim is None else name.movedim(dim, 0)
        for name, dim in zip((seed, chain, draw), in_dims, strict=False)
    ]
    z = torch.ops.ulam.fill_normal_new(*(name.reshape(-1) for name in names), *given)
    return z.unflatten(0, (info.batch_size, -1)), 0


torch.library.register_vmap("ulam::fill_normal_new", _of_each, lib=library)
