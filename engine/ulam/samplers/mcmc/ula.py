"""The unadjusted Langevin algorithm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .chain_sampler import (
    ChainSampler,
    PerChain,
    Preconditioner,
    check_clip_box,
    check_numbers,
    langevin_step,
    select_rows,
)
from .chain_state import ChainState, Columns


@dataclass(frozen=True, eq=False)
class ULA(ChainSampler):
    """x' = x + step P s(x) + sqrt(2 step T P) z: the unadjusted Langevin algorithm [Roberts & Tweedie 1996].

    Stationary law: off by order step. On a Gaussian of precision a (T = P = 1) its variance is
    1 / (a (1 - step a / 2)), stable below step = 2 / a.

    step, temperature, preconditioner: see `ChainSampler`; at temperature 0 this is gradient descent.
    noise_scale: replaces sqrt(2 step T) in front of sqrt(P) z, as energy-based models are often sampled.
    clip: (lo, hi), the box to which the state is clipped after every step.
    Raises TypeError or ValueError naming the argument.
    """

    step: PerChain
    temperature: PerChain = 1.0
    preconditioner: Preconditioner = None
    noise_scale: PerChain | None = None
    clip: tuple[float, float] | None = None

    per_chain: ClassVar[tuple[str, ...]] = ("step", "temperature", "noise_scale")
    kernel: ClassVar[str | None] = "ula"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise_scale is not None:
            check_numbers("noise_scale", self.noise_scale, least=0)
        check_clip_box(self.clip)
        if self.clip is not None and self.center_of_mass == "fixed":
            raise ValueError("center_of_mass: got 'fixed' beside clip, expected 'free': clipping moves the centre")

    @property
    def bounds(self) -> tuple[float, float]:
        return super().bounds if self.clip is None else self.clip

    def coefficients(self, step: torch.Tensor, temperature: torch.Tensor, rows: torch.Tensor, index: int) -> Columns:
        if self.noise_scale is None:
            return step, (2 * step * temperature).sqrt(), torch.zeros_like(step), torch.zeros_like(step)
        return step, select_rows("noise_scale", self.noise_scale, rows), torch.zeros_like(step), torch.zeros_like(step)

    def transition(self, state: ChainState, c: Columns) -> torch.Tensor | None:
        langevin_step(state, c, self.bounds, state.x)
        state.energy, state.score = state.evaluate(state.x, state.wants_energy)
        return None
