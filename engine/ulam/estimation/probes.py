"""Random directions for traces and divergences, from noise-v1: the same for a chain in any batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ulam_kernels.arguments import described

from .. import noise
from ..arguments import whole_number

MOST_PROBES = 1 << 30
KINDS = ("rademacher", "gaussian")


def probes(
    like: torch.Tensor, count: int, *, seed: int = 0, kind: str = "rademacher", first: int = 0
) -> Iterator[torch.Tensor]:
    """``count`` directions v with E[v v'] = I, each like ``like`` ``[B, *shape]``; row b is chain b.

    rademacher: signs, the least variance for a trace among independent entries [Hutchinson 1990]; gaussian: normal.
    Raises ValueError for another kind or a count below 1.
    """
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {described(kind)}")
    if whole_number("probes", count) < 1:
        raise ValueError(f"probes must be at least 1, got {count}")
    if count > MOST_PROBES:
        raise ValueError(f"probes: got {count}, expected at most 2^30")
    for row in range(first, first + count):
        z = noise.normal_for(noise.PROBE, like.shape[1:], seed=seed, chains=len(like), row=row, device=like.device)
        yield (torch.copysign(torch.ones_like(z), z) if kind == "rademacher" else z).to(like.dtype)


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``[B]``, the inner product of each chain, in float64."""
    return (a.flatten(1).double() * b.flatten(1).double()).sum(1)
