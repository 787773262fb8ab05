"""Random directions for traces and divergences, from noise-v1: a chain's are the same in any batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ulam_kernels.arguments import choice

from .. import noise
from ..arguments import whole_number

MOST_PROBES = 1 << 30
KINDS = ("rademacher", "gaussian")


def probes(
    like: torch.Tensor, samples: int, *, seed: int = 0, kind: str = "rademacher", first: int = 0
) -> Iterator[torch.Tensor]:
    """``samples`` directions v with E[v v'] = I, each like ``like`` ``[B, *shape]``; row b is chain b.

    rademacher: signs, which give a trace the least variance among independent entries [Hutchinson 1990]; gaussian:
    normals. ``first``: the number of the first probe. Raises TypeError or ValueError naming the argument.
    """
    choice(kind, "kind", KINDS)
    if not 1 <= whole_number("samples", samples) <= MOST_PROBES:
        raise ValueError(f"samples: got {samples}, expected 1 to 2^30")
    for row in range(first, first + samples):
        z = noise.normal_for(noise.PROBE, like.shape[1:], seed=seed, chains=len(like), row=row, device=like.device)
        yield (torch.copysign(torch.ones_like(z), z) if kind == "rademacher" else z).to(like.dtype)


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The inner products of the chains of a and b ``[B, *shape]``, ``[B]`` float64."""
    return (a.flatten(1).double() * b.flatten(1).double()).sum(1)
