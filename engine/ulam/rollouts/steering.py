"""Steering: sequential Monte Carlo along the rows of a sampler, towards samples of high reward.

Particles of a group follow the sampler; every few evaluations they are weighted by what the reward of their estimate of
x_0 has gained, and drawn again in proportion. Along the whole way the gains add up to r(x) / T, so that weighted
particles are of the law p(x) exp(r(x) / T) / Z, p being the sampler's own, for any number of stages [Del Moral 2004;
Wu 2023, TDS; Singhal 2025, Feynman-Kac steering].
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from ulam_kernels.arguments import described, real
from ulam_kernels.validation import check_real

from ..arguments import whole_number, whole_numbers
from ..conditioning import Cond, Shared, check_cond
from ..denoiser import Denoiser, Sampler
from ..engine.engine import Engine
from ..engine.rollout import Rollout
from ..engine.trajectory import Trajectory
from ..noise import RESAMPLING, normal_for
from ..programs.program import Program
from ..samplers.mcmc.chain_state import uniform

Reward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Steering:
    """How particles are steered.

    reward: maps estimates of x_0 ``[n, *shape]``, and at the end the samples, to numbers ``[n]``, each by itself; the
    rows are groups times particles, in this order. Minus infinity is a weight of 0. It is called without gradients.
    every: evaluations of the network between two weightings.
    temperature: T > 0 of exp(r / T). ess: particles are drawn again where the effective sample size falls below this
    share of their number; 1 (the default) draws at every weighting, 0 never: importance sampling.

    Raises TypeError or ValueError for an invalid argument.
    """

    reward: Reward
    every: int = 5
    temperature: float = 1.0
    ess: float = 1.0

    def __post_init__(self) -> None:
        if not callable(self.reward):
            raise TypeError(f"reward: got {described(self.reward)}, expected a callable reward(x) -> [n]")
        if whole_number("every", self.every) < 1:
            raise ValueError(f"every: got {self.every}, expected at least 1")
        real(self.temperature, "temperature", "a finite number above 0")
        if not self.temperature > 0:
            raise ValueError(f"temperature: got {self.temperature}, expected a number above 0")
        if not 0 <= real(self.ess, "ess") <= 1:
            raise ValueError(f"ess: got {self.ess}, expected a number in [0, 1]")


@dataclass(frozen=True, eq=False)
class Steered:
    """Steered particles of ``groups`` groups.

    Attributes:
        x: ``[groups, particles, *shape]``, NaN for a group that was stopped. rewards: ``[groups, particles]`` float64.
        log_weights: ``[groups, particles]`` float64 of the particles in x, normalised to a mean weight of 1.
        log_normaliser: ``[groups]`` float64, log Z of exp(r / T) under the sampler; its exponential is unbiased.
        ess: ``[stages, groups]``, the effective sample sizes at each weighting, the last one those of x.
        ancestors: ``[groups, particles]`` int64, which first particle each one comes from.
    """

    x: torch.Tensor
    rewards: torch.Tensor
    log_weights: torch.Tensor
    log_normaliser: torch.Tensor
    ess: torch.Tensor
    ancestors: torch.Tensor

    def __repr__(self) -> str:
        groups, particles = self.log_weights.shape
        least = float(self.ess.nan_to_num(nan=math.inf).min())
        return f"Steered({groups} groups of {particles} particles, effective sample sizes from {least:.1f})"

    def mean(self, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """``[groups, ...]`` float64: the weighted mean of ``function(x)`` over each group's particles."""
        found = function(self.x.flatten(0, 1)).double()
        values = found.reshape(*self.log_weights.shape, *found.shape[1:])
        weights = torch.softmax(self.log_weights, 1).to(values.device)
        lost = weights.reshape(*weights.shape, *[1] * (found.dim() - 1)) == 0  # may be NaN
        return torch.einsum("gp,gp...->g...", weights, torch.where(lost, 0.0, values))


def resample(
    log_weights: torch.Tensor, *, seed: int, row: int = 0, groups: Sequence[int] | None = None
) -> torch.Tensor:
    """Systematic resampling [Kitagawa 1996]: ancestors ``[groups, n]`` of particles with these log weights.

    Particle i of a group is drawn floor or ceil of n W_i times, W the normalised weights, by one uniform number of the
    group: noise-v1 of (seed, the group's id, row). Equal on every machine.

    Args:
        log_weights: ``[groups, n]``, of each group at least one above minus infinity. row: of the program, from which
            on the new particles run. groups: ids, by default 0, 1, ...

    Raises:
        TypeError, ValueError: an invalid argument.
    """
    if not isinstance(log_weights, torch.Tensor):
        raise TypeError(f"log_weights: got {described(log_weights)}, expected a tensor [groups, n]")
    check_real(log_weights, "log_weights")
    if groups is not None:
        if not isinstance(groups, Sequence) or isinstance(groups, str):
            raise TypeError(f"groups: got {described(groups)}, expected a sequence of ids, or None")
        groups = whole_numbers(**{f"groups[{place}]": group for place, group in enumerate(groups)})
    if log_weights.dim() != 2 or not log_weights.numel():
        raise ValueError(f"log_weights: got shape {list(log_weights.shape)}, expected [groups, n]")
    if groups is not None and len(groups) != len(log_weights):
        raise ValueError(f"groups: got {len(groups)} ids, expected {len(log_weights)}")
    weights = torch.softmax(log_weights.detach().cpu().double(), 1)
    if not bool(torch.isfinite(weights).all()):
        raise ValueError("log_weights: got NaN, infinity, or a group of minus infinity alone, expected numbers")
    count, n = weights.shape
    ids = range(count) if groups is None else list(groups)
    u = (1 + uniform(normal_for(RESAMPLING, (3,), row=row, seed=seed, chains=ids))) / 2
    points = (torch.arange(n, dtype=torch.float64) + u[:, None]) / n
    ends = weights.cumsum(1)
    return torch.searchsorted(ends / ends[:, -1:], points).clamp(max=n - 1)


def steer(
    denoiser: Denoiser,
    sampler: Sampler | Program,
    shape: Sequence[int],
    particles: int,
    steering: Steering,
    seed: int = 0,
    *,
    groups: int = 1,
    cond: Cond | None = None,
    guidance: float | None = None,
    uncond: Cond | None = None,
    slots: int | None = None,
    device: torch.device | str = "cpu",
    backend: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Steered:
    """Sample groups of particles whose law is tilted by a reward, p(x) exp(r(x) / T) / Z.

    Particle j of group i is the chain ``i particles + j`` of the seed: with ``ess=0`` it has the bits of
    :func:`ulam.sample`. Where particles are drawn again, copies go on with the noise of their own places, so rows to
    come must add noise. A particle that turns NaN on its way has a weight of 0. A group whose reward is NaN, or whose
    weights are all 0, stops with a warning, and is NaN; the others go on.

    Args:
        particles: of each group, at least 1. cond, uncond: ``[groups * particles, ...]``, or :func:`ulam.shared`; the
            particles of a group must have the same. Others: as :func:`ulam.sample` has them.

    Raises:
        TypeError, ValueError: an invalid argument, named in the message; a reward of another shape; a sampler without
            noise where particles are to be drawn again.
    """
    if not isinstance(steering, Steering):
        raise TypeError(f"steering: got {described(steering)}, expected an ulam.rollouts.Steering")
    count = whole_number("particles", particles) * whole_number("groups", groups)
    if particles < 1 or groups < 1:
        raise ValueError(f"particles, groups: got {particles} and {groups}, expected at least 1 each")
    engine = Engine(denoiser, shape, min(count, 256) if slots is None else slots, device, backend, dtype)
    program = denoiser.program(sampler)
    particles_of = _Particles(steering, groups, particles, seed)
    stops = _stops(program, steering.every)
    if steering.ess and len(stops) > 1 and not program.A[stops[0] :, 0, -1].any():
        got = f"{program.sampler}, which adds no noise that would part copies"
        raise ValueError(f"sampler: got {got}, expected one that does, or Steering(ess=0)")
    _check_same("cond", cond, groups, particles)
    _check_same("uncond", uncond, groups, particles)
    x_init = history = None
    for begin, end in zip([0, *stops[:-1]], stops, strict=True):
        job = engine.submit(
            program.cut(begin, end), count, seed, cond, guidance, uncond, x_init, first_row=begin, history=history,
            rollout=Rollout(log_prob=False, outputs=True, rows=slice(end - begin - 1, end - begin)),
        )  # fmt: skip
        trajectory = cast(Trajectory, engine.run()[job])
        assert trajectory.states is not None
        last = end == len(program)
        particles_of.weigh(trajectory.x if last else _estimates(trajectory), trajectory.failed)
        at = torch.arange(count) if last else particles_of.draw(end)
        at = at.to(trajectory.states.device)
        x_init = trajectory.states[at, -1]
        history = None if trajectory.history is None else trajectory.history[at, -1]
    return particles_of.result(trajectory.x)


def _check_same(name: str, cond: Cond | None, groups: int, particles: int) -> None:
    """Raises ValueError where the particles of a group are told different things."""
    for key, value in check_cond(name, cond or {}, groups * particles).items():
        if not isinstance(value, Shared):
            each = value.reshape(groups, particles, *value.shape[1:])
            if not torch.equal(each, each[:, :1].expand_as(each)):
                raise ValueError(f"{name}[{key!r}]: got several values within a group, expected one for its particles")


def _stops(program: Program, every: int) -> list[int]:
    """The rows before which particles are weighted, after every so many evaluations, and the end."""
    stops = [row + 1 for row in program.evaluating[every - 1 :: every]]
    return [stop for stop in stops if stop < len(program)] + [len(program)]


def _estimates(trajectory: Trajectory) -> torch.Tensor:
    """D of the last row that ran, clipped as the row has it."""
    program, row = trajectory.program, trajectory.rows.start
    assert trajectory.states is not None and trajectory.outputs is not None
    x, m = trajectory.states[:, 0], trajectory.outputs[:, 0]
    D = float(program.kx[row]) * x + float(program.km[row]) * m
    return D if program.threshold[row] else D.clamp(float(program.lo[row]), float(program.hi[row]))


class _Particles:
    """The weights of all groups' particles, and what is drawn by them."""

    def __init__(self, steering: Steering, groups: int, particles: int, seed: int) -> None:
        self._steering, self._seed = steering, seed
        self._rewards = torch.zeros(groups, particles, dtype=torch.float64)
        self._log_weights = torch.zeros(groups, particles, dtype=torch.float64)
        self._normaliser = torch.zeros(groups, dtype=torch.float64)
        self._ess: list[torch.Tensor] = []
        self._ancestors = torch.arange(particles).repeat(groups, 1)
        self._stopped = torch.zeros(groups, dtype=torch.bool)
        self._lost = torch.zeros(groups, particles, dtype=torch.bool)  # of weight 0, until others take their places

    def weigh(self, x: torch.Tensor, failed: dict[int, int]) -> None:
        """Add what the rewards have gained."""
        shape = self._rewards.shape
        with torch.no_grad():
            found: Any = self._steering.reward(x.clone())
        if not isinstance(found, torch.Tensor) or tuple(found.shape) != (shape.numel(),) or found.is_complex():
            got = described(found)
            raise ValueError(f"reward: got {got}, expected a tensor [{shape.numel()}] of real numbers, one a particle")
        rewards = found.detach().cpu().double().reshape(shape)
        for place in failed:
            self._lost[divmod(place, shape[1])] = True
        self._lost |= rewards == -torch.inf
        wrong = ~torch.isfinite(rewards) & ~self._lost
        for group in torch.nonzero((wrong.any(1) | self._lost.all(1)) & ~self._stopped).flatten().tolist():
            place = int(torch.nonzero(wrong[group] | self._lost[group])[0])
            got = f"{float(rewards[group, place]):g}" if wrong[group].any() else "weights of 0 alone, the first"
            warnings.warn(
                f"reward: got {got} for particle {place} of group {group}, expected finite numbers: the group stops, "
                "and is NaN",
                RuntimeWarning,
                stacklevel=3,
            )
            self._stopped[group] = True
        rewards = torch.where(self._lost | wrong, 0.0, rewards)
        self._log_weights += torch.where(self._lost, -torch.inf, (rewards - self._rewards) / self._steering.temperature)
        self._rewards = rewards
        self._log_weights[self._stopped] = 0.0
        weights = torch.softmax(self._log_weights, 1)
        self._ess.append(torch.where(self._stopped, torch.nan, 1 / weights.square().sum(1)))

    def draw(self, row: int) -> torch.Tensor:
        """Which particle goes on in each place ``[groups * particles]``."""
        groups, n = self._rewards.shape
        at = torch.arange(n).repeat(groups, 1)
        low = (self._ess[-1] <= self._steering.ess * n) & (self._steering.ess > 0) & ~self._stopped
        if low.any():
            ids = torch.nonzero(low).flatten()
            at[ids] = resample(self._log_weights[ids], seed=self._seed, row=row, groups=ids.tolist())
        self._normaliser += torch.where(low, self._mean_weight(), 0.0)
        self._log_weights = torch.where(low[:, None], 0.0, self._log_weights)
        self._rewards, self._lost = self._rewards.gather(1, at), self._lost.gather(1, at)
        self._ancestors = self._ancestors.gather(1, at)
        return (at + n * torch.arange(groups)[:, None]).flatten()

    def _mean_weight(self) -> torch.Tensor:
        return torch.logsumexp(self._log_weights, 1) - math.log(self._log_weights.shape[1])

    def result(self, x: torch.Tensor) -> Steered:
        mean = self._mean_weight()
        stopped = self._stopped
        x = x.reshape(*self._rewards.shape, *x.shape[1:]).clone()
        x[stopped.to(x.device)] = torch.nan
        return Steered(
            x,
            torch.where(stopped[:, None], torch.nan, self._rewards),
            torch.where(stopped[:, None], torch.nan, self._log_weights - mean[:, None]),
            torch.where(stopped, torch.nan, self._normaliser + mean),
            torch.stack(self._ess),
            self._ancestors,
        )
