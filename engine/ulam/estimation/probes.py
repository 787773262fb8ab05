"""Random directions for traces and divergences, from noise-v1: a chain's are the same in any batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch

from ulam_kernels.arguments import choice

from .. import noise
from ..arguments import checked_seed, whole_number

MOST_PROBES = 1 << 30
Chains: TypeAlias = int | range | torch.Tensor | None
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
        yield (signs(z) if kind == "rademacher" else z).to(like.dtype)


def training_probes(
    like: torch.Tensor, samples: int, *, seed: int, step: int, chains: Chains
) -> Iterator[torch.Tensor]:
    """``samples`` directions of signs for a loss, each like ``like`` ``[B, *shape]``; no two steps share one.

    ``chains``: ids of the examples, by default those of :func:`ulam.noise.examples`. Raises TypeError or ValueError
    naming the argument.
    """
    draws = _of_samples(noise.TRAINING_PROBE, like, like.shape[1:], samples, seed, step, chains)
    return (signs(z).to(like.dtype) for z in draws)


def training_photons(
    like: torch.Tensor, samples: int | None, *, seed: int, step: int, chains: Chains
) -> torch.Tensor | None:
    """``[samples, B]`` uniform numbers float64 for a loss, or None for None; otherwise as :func:`training_probes`."""
    return None if samples is None else _uniform(noise.TRAINING_PHOTON, like, samples, seed, step, chains)


def photons(like: torch.Tensor, samples: int | None, *, seed: int) -> torch.Tensor | None:
    """As :func:`training_photons`, for an estimate: row b is chain b."""
    return None if samples is None else _uniform(noise.PHOTON, like, samples, seed, 0, len(like))


def _uniform(
    purpose: noise.Purpose, like: torch.Tensor, samples: int, seed: int, step: int, chains: Chains
) -> torch.Tensor:
    return torch.stack([uniform(z[:, 0]) for z in _of_samples(purpose, like, (1,), samples, seed, step, chains)])


def _of_samples(
    purpose: noise.Purpose, like: torch.Tensor, shape: Sequence[int], samples: int, seed: int, step: int, chains: Chains
) -> Iterator[torch.Tensor]:
    """Normals ``[B, *shape]`` of every sample of a step, after a check of the arguments."""
    ids, step = noise.example_ids(chains, len(like)), whole_number("step", step)
    checked_seed(seed)
    if whole_number("samples", samples) < 1:
        raise ValueError(f"samples: got {samples}, expected 1 to 2^20")
    noise.sample_row(step, samples - 1)  # raises where there are too many
    rows = (noise.sample_row(step, sample) for sample in range(samples))
    return (noise.normal_for(purpose, shape, seed=seed, chains=ids, row=row, device=like.device) for row in rows)


def signs(z: torch.Tensor) -> torch.Tensor:
    """+1 or -1, by the signs of z."""
    return torch.copysign(torch.ones_like(z), z)


def uniform(z: torch.Tensor) -> torch.Tensor:
    """The normal distribution function of normals: uniform numbers, float64."""
    uniform: torch.Tensor = torch.special.ndtr(z.double())
    return uniform


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The inner products of the chains of a and b ``[B, *shape]``, ``[B]`` float64."""
    return (a.flatten(1).double() * b.flatten(1).double()).sum(1)
