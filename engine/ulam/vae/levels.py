"""The latents of a hierarchy: their networks, and draws of all of them from q, from the top down or the bottom up."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch

from ulam_kernels.arguments import described
from ulam_kernels.ops import MAX_ELEMENTS

from ..arguments import check_shape
from ..noise import POSTERIOR, row_for_examples, sample_row
from .gaussians import Moments, moments

Network: TypeAlias = Callable[..., torch.Tensor]
INFERENCES = ("top-down", "bottom-up")


@dataclass(frozen=True)
class Level:
    """One latent variable z_k of shape ``shape``.

    prior: from z_{k+1} ``[B, ...]`` to mean and log standard deviation of p(z_k | z_{k+1}), ``[B, 2 C, ...]`` for a
    shape (C, ...); None at the top, where p is standard normal. posterior: to those of q, needed only for the bound:
    for top-down inference of q(z_k | z_{k+1}, x) from (x, z_{k+1}), at the top from x alone; for bottom-up inference of
    q(z_k | z_{k-1}) from z_{k-1}, at the lowest level from x. Raises TypeError or ValueError naming the argument.
    """

    shape: tuple[int, ...]
    prior: Network | None = None
    posterior: Network | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", check_shape(self.shape, least=1))
        for name, network in (("prior", self.prior), ("posterior", self.posterior)):
            if network is not None and not callable(network):
                raise TypeError(f"{name}: got {described(network)}, expected a network, or None")


class Latent(NamedTuple):
    """A draw of z_k = mean + exp(log_std) eps from q, given those it depends on."""

    q: Moments
    eps: torch.Tensor
    z: torch.Tensor


def check_levels(levels: object) -> tuple[Level, ...]:
    """Levels with every prior that they need. Raises TypeError or ValueError naming what is missing."""
    if not isinstance(levels, Sequence) or not levels or not all(isinstance(level, Level) for level in levels):
        raise TypeError(f"levels: got {described(levels)}, expected a sequence of ulam.vae.Level, not empty")
    if levels[0].prior is not None:
        raise ValueError("levels[0].prior: got a network, expected None: the top latent is standard normal")
    for k, level in enumerate(levels):
        if k and level.prior is None:
            raise TypeError(f"levels[{k}].prior: got None, expected a network of the latent above")
    if (total := sum(map(elements, levels))) > MAX_ELEMENTS:
        raise ValueError(f"levels: got {total} elements in all, expected at most 2^30")
    return tuple(levels)


def elements(level: Level) -> int:
    return math.prod(level.shape)


def posterior_noise(
    levels: Sequence[Level], x: torch.Tensor, seed: int, step: int, sample: int, chains: torch.Tensor | None
) -> list[torch.Tensor]:
    """eps of every level: one draw of noise-v1 an example for each (step, sample), its elements dealt to the levels."""
    sizes, row = [elements(level) for level in levels], sample_row(step, sample)
    shape = levels[0].shape if len(levels) == 1 else (sum(sizes),)
    flat = row_for_examples(x, shape, seed=seed, row=row, chains=chains, purpose=POSTERIOR)
    if len(levels) == 1:
        return [flat]
    return [part.reshape(-1, *level.shape) for part, level in zip(torch.split(flat, sizes, 1), levels, strict=True)]


def infer(levels: Sequence[Level], inference: str, x: torch.Tensor, noise: Sequence[torch.Tensor]) -> list[Latent]:
    """z_L, ..., z_1 from q, top first whichever way they are inferred."""
    found: dict[int, Latent] = {}
    given: tuple[torch.Tensor, ...] = (x,)
    for k in range(len(levels)) if inference == "top-down" else reversed(range(len(levels))):
        posterior = levels[k].posterior
        assert posterior is not None, "HierarchicalVAE checks it"
        q = moments(posterior(*given), (x.shape[0], *levels[k].shape), f"levels[{k}].posterior")
        z = q.mean + q.log_std.exp() * noise[k]
        z = z if z.dtype == x.dtype else z.to(x.dtype)
        found[k] = Latent(q, noise[k], z)
        given = (x, z) if inference == "top-down" else (z,)
    return [found[k] for k in range(len(levels))]


def priors(levels: Sequence[Level], latents: Sequence[Latent]) -> list[Moments | None]:
    """p(z_k | z_{k+1}) of every level at the latents drawn; None at the top, where it is standard normal."""
    found: list[Moments | None] = [None]
    for k in range(1, len(levels)):
        prior = levels[k].prior
        assert prior is not None, "check_levels"
        found.append(moments(prior(latents[k - 1].z), latents[k].z.shape, f"levels[{k}].prior"))
    return found
