"""Hamiltonian Monte Carlo: leapfrog paths of random length, and the Metropolis test of their ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

import ulam_kernels.mcmc as ops

from ...arguments import per_chain
from .chain_sampler import PerChain, Preconditioner
from .chain_state import ChainState, Columns, Proposal
from .paths import PathSampler, check_jitter, selected


@dataclass(frozen=True, eq=False)
class HMC(PathSampler):
    """``leapfrog`` leapfrog steps of length ``step`` from a fresh momentum N(0, T), and a Metropolis test [Neal 2011].

    The step of a transition, and so the length of its path, is step (1 + jitter u), u uniform on [-1, 1] from the
    chain's own noise. Paths of one length return to where they began in directions whose period divides that length,
    and the chain never mixes there [Neal 2011, section 3.2]. u does not depend on the state, so p stays stationary.

    ``adapt`` of :func:`ulam.mcmc.run` changes the step and keeps the path: a chain with the step h takes
    ceil(leapfrog step / h) leapfrog steps, but at most ten times ``leapfrog``. Where no step reaches the acceptance on
    so long a path, as at a hard wall, the path shrinks with the step.

    In d dimensions the best step falls as d^(-1/4), with an acceptance of 0.651 [Beskos 2013].
    step, leapfrog: of which a warm-up of all chains together finds those that are not given: the step, and with it
    the path length, by ChEES [Hoffman, Radul & Sountsov 2021]. leapfrog: from 1 to 2^26; 10 beside a step. jitter: in
    [0, 1), rounded to the precision of the states; 0 for paths of one length. P is the inverse mass. Other arguments:
    see `ChainSampler`. Raises TypeError or ValueError naming the argument.
    """

    step: PerChain | None = None
    leapfrog: int | None = None
    temperature: PerChain = 1.0
    preconditioner: Preconditioner = None
    jitter: float = 0.5

    kernel: ClassVar[str | None] = "hmc"
    rate: ClassVar[float | None] = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_jitter(self.jitter)

    def coefficients(self, step: torch.Tensor, temperature: torch.Tensor, rows: torch.Tensor, index: int) -> Columns:
        return step, torch.full_like(step, self.jitter), 1 / temperature, temperature.sqrt()

    def transition(self, state: ChainState, c: Columns) -> torch.Tensor | None:
        """One path and its Metropolis test, ``ops.accept``; built-in densities do both in one launch, ``ops.run``."""
        step, jitter, inverse_temperature, momentum_scale = c
        if self.jitter:
            step = (step.double() * (1 + jitter.double() * state.uniforms())).to(step.dtype)
        assert state.energy is not None
        v = state.normals().mul_(per_chain(momentum_scale, state.x))
        kinetic, energy = ops.squared_norm(v, backend=state.backend), state.energy
        x, v, score, found = self._path(state, step, v)
        state.proposal = Proposal(x, v, step * max(state.ends, default=self.leaps))
        difference = energy - found + 0.5 * (kinetic - ops.squared_norm(v, backend=state.backend))
        log_ratio = difference * inverse_temperature.double()
        pairs = [(state.x, x), (state.score, score), (energy, found)]
        state.accepted = ops.accept(log_ratio, pairs, **state.ids(), backend=state.backend)
        return log_ratio

    def _path(self, state: ChainState, step: torch.Tensor, v: torch.Tensor) -> _PathEnd:
        """Where the paths of all chains end. v is overwritten; chains whose path has ended are carried along unused."""
        half, x, score = 0.5 * step, state.spare.copy_(state.x), state.score
        ends = state.ends or {self.leaps: None}
        last, end = max(ends), None
        for leap in range(1, last + 1):
            ops.kick_drift(x, v, score, half if leap == 1 else step, step, scale=state.scale, backend=state.backend)
            found, score = state.evaluate(x, leap in ends)
            if leap in ends:
                assert found is not None
                final = v if leap == last else v.clone()
                ops.kick_drift(x, final, score, half, None, scale=state.scale, backend=state.backend)
                end = selected(ends[leap], _PathEnd(x, final, score, found), end)
        assert end is not None
        return end


class _PathEnd(NamedTuple):
    """Where the paths of all chains end: x, v, score ``[B, *shape]`` and energy ``[B]`` float64."""

    x: torch.Tensor
    v: torch.Tensor
    score: torch.Tensor
    energy: torch.Tensor
