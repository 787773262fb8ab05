"""A job: chains of one sampler with their seed, conditioning and guidance, as `Engine.submit` returns it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from .conditioning import Shared
from .program import Program

Noise: TypeAlias = Callable[[int, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Job:
    """What an engine was asked for. All that is per chain is ``[chains, ...]`` in the order of ``chains``.

    Attributes:
        program: the compiled sampler. chains: ``[n]`` int64 ids. seed: as an int64.
        cond, uncond: the network's further arguments; uncond is empty where ``guidance`` is None.
        guidance: ``[n]`` float32 weights. x_init: ``[n, *shape]`` first states, or None for noise.
        noise: called as ``noise(row, chains)`` in place of noise-v1, or None.
    """

    program: Program
    chains: torch.Tensor
    seed: int
    cond: dict[str, torch.Tensor | Shared]
    uncond: dict[str, torch.Tensor | Shared]
    guidance: torch.Tensor | None
    x_init: torch.Tensor | None
    noise: Noise | None

    @property
    def ticks(self) -> int:
        """Evaluations of the network a chain."""
        return self.program.nfe
