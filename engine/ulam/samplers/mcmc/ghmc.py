"""Generalised Hamiltonian Monte Carlo: momenta that persist from transition to transition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

import ulam_kernels.mcmc as ops

from .chain_sampler import ChainSampler, PerChain, Preconditioner, check_numbers, select_rows
from .chain_state import ChainState, Columns
from .paths import Path, check_leapfrog, follow, leapfrog_step, refreshed

FRICTION = 1.0  # beside a step


@dataclass(frozen=True, eq=False)
class GHMC(ChainSampler):
    """HMC whose momentum is refreshed in part, and reversed where a path is refused [Horowitz 1991; Neal 2011, 5.3].

    v <- k v + sqrt(T (1 - k^2)) z with k = e^(-friction leapfrog step); ``leapfrog`` leapfrog steps of length ``step``
    from (x, v) to (x', v'); the Metropolis test with the log ratio (E - E' + (|v|^2 - |v'|^2) / 2) / T; (x', v') where
    it accepts, (x, -v) where it refuses. exp(-(E(x) + |v|^2 / 2) / T) stays stationary. A refusal turns the chain back,
    so small friction pays where acceptance is high, above 0.9 or so.

    step: a time. friction: at least 0; inf draws fresh momenta, as HMC does, and 0 none at all; 1 beside a step. A
    warm-up of all chains together finds those that are not given, by MEADS [Hoffman & Sountsov 2022]. leapfrog: from 1
    to 2^26; ``adapt`` of :func:`ulam.mcmc.run` leaves it as it is. P is the inverse mass, and velocities start from
    N(0, T). Other arguments: see `ChainSampler`. Raises TypeError or ValueError naming the argument.
    """

    step: PerChain | None = None
    leapfrog: int = 1
    friction: PerChain | None = None
    temperature: PerChain = 1.0
    preconditioner: Preconditioner = None

    per_chain: ClassVar[tuple[str, ...]] = ("step", "temperature", "friction")
    kernel: ClassVar[str | None] = "ghmc"
    adjusted: ClassVar[bool] = True
    rate: ClassVar[float | None] = 0.9
    has_velocity: ClassVar[bool] = True
    step_is_a_time: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_leapfrog(self.leapfrog)
        if self.friction is not None:
            check_numbers("friction", self.friction, least=0, finite=False)
        elif self.step is not None:
            object.__setattr__(self, "friction", FRICTION)

    @property
    def leaps(self) -> int:
        return self.leapfrog

    def coefficients(self, step: torch.Tensor, temperature: torch.Tensor, rows: torch.Tensor, index: int) -> Columns:
        assert self.friction is not None
        keep = (-select_rows("friction", self.friction, rows) * self.leapfrog * step).exp()
        return step, keep, 1 / temperature, temperature.sqrt()

    def transition(self, state: ChainState, c: Columns) -> torch.Tensor | None:
        step, keep, inverse_temperature, momentum_scale = c
        assert state.v is not None and state.energy is not None
        v = refreshed(state.v, keep, momentum_scale, state.normals())
        state.v = -v

        def leap(at: Path, number: int, wanted: bool) -> Path:
            return leapfrog_step(state, at, step, wanted)

        end = follow(state, v, self.leapfrog, leap)
        log_ratio = (state.energy - end.energy + end.lost) * inverse_temperature.double()
        pairs = [(state.x, end.x), (state.v, end.v), (state.score, end.score), (state.energy, end.energy)]
        state.accepted = ops.accept(log_ratio, pairs, **state.ids(), backend=state.backend)
        return log_ratio
