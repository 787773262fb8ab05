"""Metropolis-adjusted Langevin trajectories: underdamped paths with one test at their end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

import ulam_kernels.mcmc as ops
from ulam_kernels.ops import MAX_ELEMENTS

from ...arguments import per_chain
from ...noise import MALT_PATH
from .chain_sampler import PerChain, Preconditioner, check_numbers, select_rows
from .chain_state import ChainState, Columns
from .paths import LEAPFROG, MOST_LEAPS, Path, PathSampler, follow, leapfrog_step, refreshed


@dataclass(frozen=True, eq=False)
class MALT(PathSampler):
    """A path of underdamped Langevin dynamics, and a Metropolis test of its end [Riou-Durand & Vogrinc 2022].

    From a fresh momentum v ~ N(0, T), ``leapfrog`` leapfrog steps of length ``step``, and between two of them
    v <- k v + sqrt(T (1 - k^2)) z with k = e^(-friction step): the paper's OBABO steps, whose neighbouring O are one,
    and whose first and last O do nothing. The log ratio is (E - E' + sum (|v|^2 - |v'|^2) / 2) / T, the sum over the
    leapfrog steps alone, each from v to v'. Friction takes the place of HMC's paths of random length.

    step: a time. friction: at least 0, 0 is HMC with paths of one length. leapfrog: from 1 to 2^26. ``adapt`` of
    :func:`ulam.mcmc.run` changes the step and keeps the path, as for `HMC`. P is the inverse mass. Other arguments: see
    `ChainSampler`. Raises TypeError or ValueError naming the argument.
    """

    step: PerChain | None = None
    leapfrog: int | None = LEAPFROG
    friction: PerChain = 1.0
    temperature: PerChain = 1.0
    preconditioner: Preconditioner = None

    per_chain: ClassVar[tuple[str, ...]] = ("step", "temperature", "friction")
    kernel: ClassVar[str | None] = "malt"
    rate: ClassVar[float | None] = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers("friction", self.friction, least=0, finite=False)

    def check_states(self, shape: Sequence[int], v: torch.Tensor | None = None) -> None:
        most = MAX_ELEMENTS // (MOST_LEAPS * math.prod(shape))  # of a transition's noise, after adaptation too
        if self.leaps > most:
            raise ValueError(
                f"leapfrog: got {self.leapfrog} for states of {math.prod(shape)} elements, expected at most {most}"
            )

    def coefficients(self, step: torch.Tensor, temperature: torch.Tensor, rows: torch.Tensor, index: int) -> Columns:
        keep = (-select_rows("friction", self.friction, rows) * step).exp()
        return step, keep, 1 / temperature, temperature.sqrt()

    def transition(self, state: ChainState, c: Columns) -> torch.Tensor | None:
        step, keep, inverse_temperature, momentum_scale = c
        elements = state.x[0].numel()

        def leap(at: Path, number: int, wanted: bool) -> Path:
            if number:
                z = state.normals(MALT_PATH, (number - 1) * elements)
                at = at._replace(v=refreshed(at.v, keep, momentum_scale, z))
            return leapfrog_step(state, at, step, wanted)

        assert state.energy is not None
        end = follow(state, state.normals().mul_(per_chain(momentum_scale, state.x)), self.leaps, leap)
        log_ratio = (state.energy - end.energy + end.lost) * inverse_temperature.double()
        pairs = [(state.x, end.x), (state.score, end.score), (state.energy, end.energy)]
        state.accepted = ops.accept(log_ratio, pairs, **state.ids(), backend=state.backend)
        return log_ratio
