"""Underdamped Langevin dynamics by the BAOAB splitting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

import ulam_kernels.mcmc as ops

from .chain_sampler import ChainSampler, PerChain, Preconditioner, check_numbers, select_rows
from .chain_state import ChainState, Columns


@dataclass(frozen=True, eq=False)
class BAOAB(ChainSampler):
    """Underdamped Langevin dynamics dx = v dt, dv = s dt - friction v dt + sqrt(2 friction T) dW.

    A step of length h is v += h/2 s; x += h/2 v; v <- e^(-friction h) v + sqrt(T (1 - e^(-2 friction h))) z;
    x += h/2 v; v += h/2 s' [Leimkuhler & Matthews 2013]. On a Gaussian of frequency omega the positions are exact and
    the velocities have variance T (1 - h^2 omega^2 / 4); stable below h = 2 / omega.

    step: h, a time. friction: at least 0; inf draws fresh velocities at every step. P is the inverse mass, and
    velocities start from N(0, T). Other arguments: see `ChainSampler`. Raises TypeError or ValueError naming the
    argument.
    """

    step: PerChain
    friction: PerChain = 1.0
    temperature: PerChain = 1.0
    preconditioner: Preconditioner = None

    per_chain: ClassVar[tuple[str, ...]] = ("step", "temperature", "friction")
    kernel: ClassVar[str | None] = "baoab"
    has_velocity: ClassVar[bool] = True
    step_is_a_time: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers("friction", self.friction, least=0, finite=False)

    def coefficients(self, step: torch.Tensor, temperature: torch.Tensor, rows: torch.Tensor, index: int) -> Columns:
        rate = select_rows("friction", self.friction, rows) * step
        return step / 2, step / 2, (-rate).exp(), (temperature * -torch.expm1(-2 * rate)).sqrt()

    def transition(self, state: ChainState, c: Columns) -> torch.Tensor | None:
        kick, drift, keep, noise_scale = c
        assert state.v is not None
        ops.kick_drift(
            state.x, state.v, state.score, kick, drift,
            keep=keep, noise_scale=noise_scale, scale=state.scale, **state.ids(), backend=state.backend,
        )  # fmt: skip
        state.energy, state.score = state.evaluate(state.x, state.wants_energy)
        ops.kick_drift(state.x, state.v, state.score, kick, None, scale=state.scale, backend=state.backend)
        state.v = state.without_center(state.v)
        return None
