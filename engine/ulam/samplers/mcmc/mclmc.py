"""Microcanonical Langevin Monte Carlo."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ...arguments import per_chain
from .chain_sampler import ChainSampler, PerChain, Preconditioner, check_numbers, select_rows
from .chain_state import ChainState, Columns
from .isokinetic import check_turns, isokinetic_step, unit
from .paths import Path
from .weights import rounded_root

FORGOTTEN = 100.0  # 2 step / length, at which nothing is left of a direction in float64


@dataclass(frozen=True, eq=False)
class MCLMC(ChainSampler):
    """Isokinetic leapfrog steps, directions refreshed in part [Robnik, De Luca et al. 2022; Robnik & Seljak 2023].

    dx = u dt, du = (1 - u u') (s / (T (d - 1)) dt + noise), |u| = 1: at every energy the positions have the law
    exp(-E / T). A step of length ``step`` turns u by half a kick, moves x += step u, turns u by half a kick, and takes
    u <- (u + nu z) / |u + nu z| with nu^2 = (exp(2 step / length) - 1) / d, so that u is forgotten over the length
    ``length``. No Metropolis test: the law is off by O(step^2); `MAMS` has none of that bias.

    step: how far x goes in a step; sqrt(d) / 4 of the width of the density is a start. length: above 0, inf keeps the
    direction; None is sqrt(d T). temperature: above 0. P is the inverse mass: x += step sqrt(P) u. States have at least
    two elements. Velocities are kept with length 1: those of v_init, or of N(0, I), give the first directions. Other
    arguments: see `ChainSampler`. Raises TypeError or ValueError naming the argument.
    """

    step: PerChain
    length: PerChain | None = None
    temperature: PerChain = 1.0
    preconditioner: Preconditioner = None

    per_chain: ClassVar[tuple[str, ...]] = ("step", "temperature", "length")
    kernel: ClassVar[str | None] = "mclmc"
    has_velocity: ClassVar[bool] = True
    has_kinetic_energy: ClassVar[bool] = False
    step_is_a_time: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers("temperature", self.temperature, above=0)
        if self.length is not None:
            check_numbers("length", self.length, above=0, finite=False)

    def check_states(self, shape: Sequence[int], v: torch.Tensor | None = None) -> None:
        check_turns("MCLMC", math.prod(shape))
        if v is not None and not bool(v.flatten(1).any(1).all()):
            raise ValueError("v_init: got a velocity of 0, expected one with a direction for MCLMC")

    def at_temperature(self, v: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
        return unit(v.double()).to(v.dtype)

    def coefficients(self, step: torch.Tensor, temperature: torch.Tensor, rows: torch.Tensor, index: int) -> Columns:
        if self.length is None:  # in units of sqrt(d)
            return step, temperature.sqrt(), 1 / temperature, torch.ones_like(step)
        return step, select_rows("length", self.length, rows), 1 / temperature, torch.zeros_like(step)

    def transition(self, state: ChainState, c: Columns) -> torch.Tensor | None:
        step, length, beta, in_roots = (column.double() for column in c)
        assert state.v is not None
        d, none = state.x[0].numel(), torch.zeros_like(step)
        at = Path(state.x, unit(state.v.double()), state.score, none if state.energy is None else state.energy, none)
        end = isokinetic_step(state, at, step, beta, state.wants_energy)
        turns = 2 * step / torch.where(in_roots > 0, length * math.sqrt(d), length)
        kept, lost = state.weights.decay(-turns.clamp(max=FORGOTTEN))
        nu = rounded_root(-lost / kept / d)
        u = unit(end.v + per_chain(nu, end.v) * state.normals().double())
        state.v, state.score, state.energy = u.to(state.x.dtype), end.score, end.energy if state.wants_energy else None
        return None
