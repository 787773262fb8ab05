"""The chains of one batch while they run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch

import ulam_kernels

from ..noise import DRAWS_PER_ROW
from .targets import Evaluate

Columns: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(eq=False)
class State:
    """B chains: their states, energies and scores, and where they stand in the noise.

    ``x``, ``score`` ``[B, *shape]``, ``v`` whitened velocities likewise or None; ``energy`` ``[B]`` float64, None where
    nobody asked for it; ``seed``, ``chain``, ``draw`` ``[B]`` int64. ``record``: energies are wanted after the step
    under way. ``accepted`` ``[B]`` bool: of the last step.
    """

    x: torch.Tensor
    evaluate: Evaluate
    seed: torch.Tensor
    chain: torch.Tensor
    draw: torch.Tensor
    scale: torch.Tensor | None
    backend: str | None
    v: torch.Tensor | None = None
    energy: torch.Tensor | None = None
    record: bool = True
    accepted: torch.Tensor | None = None

    def __post_init__(self) -> None:
        self.spare = torch.empty_like(self.x)
        self.score = torch.empty_like(self.x)

    def look(self, energy: bool) -> None:
        """Evaluate energy and score where the chains are."""
        self.energy, self.score = self.evaluate(self.x, energy)

    def advance(self, steps: int = 1) -> None:
        """Go on by so many steps in the noise."""
        self.draw += DRAWS_PER_ROW * steps

    def ids(self, stage: int = 0) -> dict[str, torch.Tensor]:
        """What an operation draws its noise by."""
        return {"seed": self.seed, "chain": self.chain, "draw": self.draw + stage if stage else self.draw}

    def normals(self, tag: int = 0, stage: int = 0) -> torch.Tensor:
        """Standard normal noise like x."""
        out = torch.empty(self.x.shape, dtype=torch.float32, device=self.x.device)
        ids = self.ids(stage)
        ulam_kernels.fill_normal(
            out, seed=ids["seed"], chain=ids["chain"], draw=ids["draw"], tag=tag, backend=self.backend
        )
        return out.to(self.x.dtype)
