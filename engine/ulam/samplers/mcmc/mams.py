"""The Metropolis-adjusted microcanonical sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

import ulam_kernels.mcmc as ops

from ...noise import MAMS_PATH
from .chain_sampler import PerChain, Preconditioner
from .chain_state import ChainState, Columns
from .isokinetic import check_turns, isokinetic_step, unit
from .paths import Path, PathSampler, check_jitter, follow


@dataclass(frozen=True, eq=False)
class MAMS(PathSampler):
    """Isokinetic leapfrog paths from a fresh direction, and a Metropolis test [Robnik, Cohn-Gordon & Seljak 2025].

    From u uniform on the sphere, ``leapfrog`` steps of `MCLMC` without its refreshment. The log ratio is
    (E - E') / T - K, where K sums the growth of the kinetic energy in all kicks (`isokinetic.kick`) and so is minus
    the log of the path's Jacobian: p is exactly stationary. As in `HMC` the step of a transition is step (1 + jitter u)
    with u uniform on [-1, 1], from noise of its own, so that paths differ in length and do not resonate.

    step: how far x goes in a step; leapfrog: from 1 to 2^26, 10 beside a step. A warm-up of all chains together finds
    those that are not given, the path's length by the variances and correlations of the states. ``adapt`` of
    :func:`ulam.mcmc.run` changes the step and keeps the path, as for `HMC`. jitter: in [0, 1). P is the inverse mass.
    States have at least two elements. Other arguments: see `ChainSampler`. Raises TypeError or ValueError naming the
    argument.
    """

    step: PerChain | None = None
    leapfrog: int | None = None
    temperature: PerChain = 1.0
    preconditioner: Preconditioner = None
    jitter: float = 0.5

    kernel: ClassVar[str | None] = "mams"
    rate: ClassVar[float | None] = 0.9
    has_kinetic_energy: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_jitter(self.jitter)

    def check_states(self, shape: Sequence[int], v: torch.Tensor | None = None) -> None:
        check_turns("MAMS", math.prod(shape))

    def coefficients(self, step: torch.Tensor, temperature: torch.Tensor, rows: torch.Tensor, index: int) -> Columns:
        return step, torch.full_like(step, self.jitter), 1 / temperature, torch.zeros_like(step)

    def transition(self, state: ChainState, c: Columns) -> torch.Tensor | None:
        step, jitter, beta, _ = (column.double() for column in c)
        if self.jitter:
            step = step * (1 + jitter * state.uniforms(MAMS_PATH))

        def leap(at: Path, number: int, wanted: bool) -> Path:
            return isokinetic_step(state, at, step, beta, wanted)

        assert state.energy is not None
        end = follow(state, unit(state.normals().double()), self.leaps, leap)
        log_ratio = (state.energy - end.energy) * beta + end.lost
        pairs = [(state.x, end.x), (state.score, end.score), (state.energy, end.energy)]
        state.accepted = ops.accept(log_ratio, pairs, **state.ids(), backend=state.backend)
        return log_ratio
