"""Paths of many chains, which may end after different numbers of leaps, and the leapfrog step of Gaussian momenta."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple, TypeAlias, TypeVar

import torch

import ulam_kernels.mcmc as ops
from ulam_kernels.arguments import described
from ulam_kernels.validation import real_numbers

from ...arguments import per_chain, whole_number
from .chain_sampler import ChainSampler
from .chain_state import ChainState

LONGEST_PATH = 1 << 26  # leapfrog steps
LEAPFROG = 10  # steps, by default
MOST_LEAPS = 10  # times the leapfrog steps given: how far adaptation may go


class PathSampler(ChainSampler):
    """Samplers with a Metropolis test after ``leapfrog`` steps, whose path's length adaptation keeps."""

    leapfrog: int | None

    adjusted: ClassVar[bool] = True
    step_is_a_time: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.leapfrog is not None:
            check_leapfrog(self.leapfrog)
        elif self.step is not None:
            object.__setattr__(self, "leapfrog", LEAPFROG)

    @property
    def leaps(self) -> int:
        return LEAPFROG if self.leapfrog is None else self.leapfrog

    def leap_counts(self, given: torch.Tensor, step: torch.Tensor) -> torch.Tensor | None:
        """ceil(leapfrog given / step), at most :data:`MOST_LEAPS` ``leapfrog``."""
        return (self.leaps * (given / step)).ceil().clamp(1, MOST_LEAPS * self.leaps).long()


class Path(NamedTuple):
    """Where the paths of all chains are.

    x, v, score: ``[B, *shape]``. energy: ``[B]`` float64, of the last place where it was wanted. lost: ``[B]`` float64,
    the kinetic energy that the leaps took away: as much as the energy gained where they conserve the sum.
    """

    x: torch.Tensor
    v: torch.Tensor
    score: torch.Tensor
    energy: torch.Tensor
    lost: torch.Tensor


Leap: TypeAlias = Callable[[Path, int, bool], Path]  # from where, its number from 0 on, whether the energy is wanted
Ends = TypeVar("Ends", bound="tuple[torch.Tensor, ...]")  # a named one


def follow(state: ChainState, v: torch.Tensor, leapfrog: int, leap: Leap) -> Path:
    """Where paths from the chains' x and these v ``[B, *shape]`` end, after ``leapfrog`` leaps or ``state.ends``.

    v may be overwritten; chains whose path has ended are carried along unused.
    """
    assert state.energy is not None
    at = Path(state.spare.copy_(state.x), v, state.score, state.energy, torch.zeros_like(state.energy))
    ends, end = state.ends or {int(leapfrog): None}, None
    for number in range(max(ends)):
        wanted = number + 1 in ends
        at = leap(at, number, wanted)
        if wanted:
            end = selected(ends[number + 1], at, end)
    assert end is not None
    return end


def selected(where: torch.Tensor | None, here: Ends, before: Ends | None) -> Ends:
    """``here`` for the chains ``where`` ``[B]``, ``before`` for the others; ``here`` itself where all chains end."""
    if where is None:
        return here
    pairs = zip(here, before or here, strict=True)
    return type(here)(*(torch.where(per_chain(where, new), new, old) for new, old in pairs))


def leapfrog_step(state: ChainState, at: Path, step: torch.Tensor, wanted: bool) -> Path:
    """v += h/2 s; x += h v; v += h/2 s', in place on x and v; h ``[B]``, the step. E + |v|^2 / 2 changes by O(h^3)."""
    before = ops.squared_norm(at.v, backend=state.backend)
    ops.kick_drift(at.x, at.v, at.score, 0.5 * step, step, scale=state.scale, backend=state.backend)
    found, score = state.evaluate(at.x, wanted)
    ops.kick_drift(at.x, at.v, score, 0.5 * step, None, scale=state.scale, backend=state.backend)
    lost = at.lost + 0.5 * (before - ops.squared_norm(at.v, backend=state.backend))
    return Path(at.x, at.v, score, at.energy if found is None else found, lost)


def refreshed(v: torch.Tensor, keep: torch.Tensor, momentum_scale: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """keep v + sqrt(T (1 - keep^2)) z, which leaves N(0, T) as it is; keep and momentum_scale sqrt(T) ``[B]``."""
    share = ((1 - keep) * (1 + keep)).double().sqrt().to(keep.dtype)  # of float32 so rounded once
    fresh = momentum_scale * share
    return per_chain(keep, v) * v + per_chain(fresh, z) * z


def check_leapfrog(leapfrog: object) -> None:
    """Raises TypeError or ValueError unless it is a whole number from 1 to 2^26."""
    if not 1 <= (leaps := whole_number("leapfrog", leapfrog)) <= LONGEST_PATH:
        raise ValueError(f"leapfrog: got {leaps}, expected at least 1" + " and at most 2^26" * (leaps > 1))


def check_jitter(jitter: object) -> None:
    """Raises TypeError or ValueError unless it is a number in [0, 1)."""
    number = real_numbers("jitter", jitter)
    if number.dim() or not 0 <= float(number) < 1:
        raise ValueError(f"jitter: got {described(jitter)}, expected a number in [0, 1)")
