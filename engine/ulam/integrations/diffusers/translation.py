"""From a diffusers scheduler to ulam's terms: its noise levels as a grid, its options as arguments, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ...programs.builder import ProgramBuilder
from ...programs.clip import Clip, DynamicThreshold
from ...programs.program import Flags, Program
from ...samplers.grid import Grid
from ...schedules import Array, FlowMatching, Schedule, VariancePreserving, from_alphas_cumprod
from .call_table import padded
from .trained_schedule import PREDICTS


def numbers(values: Any) -> Array:
    """A tensor or an array as float64."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def vp_schedule(scheduler: Any) -> VariancePreserving:
    """The schedule that a scheduler's own alphas_cumprod are, as far as they decrease above 0 (or to a last 0).

    Rows take their levels from the grid, so that a schedule which ends early serves the others: where diffusers has
    2^-24 in the place of a last 0, that may lie above the one before, and alphas_cumprod may underflow.
    """
    abar = numbers(scheduler.alphas_cumprod)
    falls = np.append(True, abar[1:] < abar[:-1]) & ((abar > 0) | (np.arange(len(abar)) == len(abar) - 1))
    return from_alphas_cumprod(abar[: len(abar) if falls.all() else int(np.argmin(falls))])


def vp_levels(scheduler: Any, times: Array, final: float) -> tuple[Array, Array]:
    """(alphas, sigmas) [n + 1] at training indices, the last where alphas_cumprod is `final`."""
    known, at = numbers(scheduler.alphas_cumprod), times.astype(np.int64)
    if not (at < len(known)).all():
        raise ValueError(f"timesteps must be below num_train_timesteps={len(known)}, got {at.max()}")
    if not (at >= 0).all():
        raise ValueError(f"timesteps must be at least 0, got {at.min()}")
    abar = np.append(known[at], final)
    if not ((abar >= 0) & (abar <= 1)).all():
        raise ValueError(f"alphas_cumprod must lie in [0, 1], got {abar.min():g} to {abar.max():g}: use smaller betas")
    return np.sqrt(abar), np.sqrt(1 - abar)


def at_sigmas(schedule: Schedule, sigmas: Array) -> tuple[Array, Array]:
    """(alphas, sigmas) shaped like diffusers' `sigmas`: sigma / alpha, on flow schedules sigma itself."""
    if isinstance(schedule, FlowMatching):
        return 1 - sigmas, sigmas
    if isinstance(schedule, VariancePreserving):
        alphas = 1 / np.hypot(1, sigmas)
        return alphas, sigmas * alphas
    return np.ones_like(sigmas), sigmas


# By how much of the level before the last may lie above it. diffusers takes Karras' levels in float32: the smallest,
# a power rho of a difference, is off by rho (sigma_max / sigma_min)^(1 / rho) roundings, and sigma_min itself follows.
LAST_RISE = 1e-3


def grid_of(times: Array, levels: tuple[Array, Array]) -> Grid:
    """The grid. Where diffusers ends on the level before, the last step is made one of relative size 1e-9.

    Some of its grids repeat their last level (up to rounding, see `LAST_RISE`), so that the last call changes nothing;
    a `Grid` must decrease.
    """
    alphas, sigmas = (np.array(level) for level in levels)
    before, last = sigmas[-2] * alphas[-1], sigmas[-1] * alphas[-2]
    if -1e-6 * before < last - before < LAST_RISE * before:
        alphas[-1], sigmas[-1] = alphas[-2], sigmas[-2] * (1 - 1e-9)
    return Grid(times, alphas, sigmas)


def falling(times: Array, levels: tuple[Array, Array]) -> Grid:
    """The grid for steps with fresh noise only: levels that repeat fall by a relative 1e-9 there."""
    alphas, sigmas = (np.array(level) for level in levels)
    for i in np.flatnonzero(_repeats(levels)):
        alphas[i + 1], sigmas[i + 1] = alphas[i], sigmas[i] * (1 - 1e-9)
    return grid_of(times, (alphas, sigmas))


def _repeats(levels: tuple[Array, Array]) -> Flags:
    """[n] whether the next level is the same, up to rounding."""
    alphas, sigmas = levels
    now, then = sigmas[:-1] * alphas[1:], sigmas[1:] * alphas[:-1]
    same: Flags = (then >= now * (1 - 1e-12)) & (then <= now * (1 + 1e-6))
    return same


@dataclass(frozen=True)
class Steps:
    """The steps of levels of which some repeat, compiled without those that go nowhere.

    times, levels: as of a grid, [n] and ([n + 1], [n + 1]), not rising. moves: [n] whether a step goes anywhere.
    Where the network sees the same sample at the same level again it says the same, so that a solver's history, and
    its result, are those of the grid without the repetition: the limit of a step that vanishes.
    """

    times: Array
    levels: tuple[Array, Array]

    @cached_property
    def moves(self) -> Flags:
        moves = ~_repeats(self.levels)
        moves[-1] |= self.levels[1][-1] > 0  # made a small step by `grid_of`
        return moves

    @property
    def grid(self) -> Grid:
        """The grid of the steps that move."""
        alphas, sigmas = (np.append(level[:-1][self.moves], level[-1]) for level in self.levels)
        return grid_of(self.times[self.moves], (alphas, sigmas))

    def program(self, compile: Callable[[Grid], Program], told: Array, schedule: Schedule, predicts: str) -> Program:
        """The calls, one or two a step, at the timesteps `told`: those of steps that go nowhere leave all as it is."""
        calls = np.repeat(self.moves, -(-len(told) // len(self.moves)))[: len(told)]
        if calls.all():
            return compile(self.grid)
        builder = ProgramBuilder(schedule, predicts)
        builder.rows(told, levels=(1.0, 1.0))
        nothing = builder.program(sampler="nothing", init_scale=1.0)
        return _rows_among(compile(self.grid), nothing, calls) if calls.any() else nothing


def _rows_among(program: Program, others: Program, at: Flags) -> Program:
    """`others` with the rows of `program`, in order, in the places `at`, as many. Raises ValueError otherwise."""
    if len(program) != at.sum():
        raise ValueError("sigmas: got 0 before the last level, expected only the last step's two calls to lead there")
    others = padded(others, program.registers)
    arrays: dict[str, Any] = {}
    for name in (f.name for f in fields(Program) if isinstance(getattr(program, f.name), np.ndarray)):
        arrays[name] = np.array(getattr(others, name))
        arrays[name][at] = getattr(program, name)
    return replace(program, **arrays)


def predicts_of(config: Any, *names: str) -> str:
    """What the network predicts. Raises ValueError unless `prediction_type` is one of `names`."""
    if config.prediction_type not in names:
        raise unsupported("prediction_type", config.prediction_type, f"use one of {', '.join(names)}")
    return PREDICTS[config.prediction_type]


def clip_of(config: Any) -> tuple[Clip, float]:
    """(clip, factor): D <- factor clip(D), from thresholding and clip_sample.

    sample_max_value up to 1 is the bound s of every chain: clip(D, -s, s) / s. Raises ValueError for a
    dynamic_thresholding_ratio that is no quantile.
    """
    if config.get("thresholding"):
        ratio, most = config.dynamic_thresholding_ratio, config.sample_max_value
        if most <= 1:
            return (-most, most), 1 / most
        if not 0 < ratio <= 1:
            raise unsupported("dynamic_thresholding_ratio", ratio, "use one in (0, 1]")
        return DynamicThreshold(ratio, most), 1.0
    if config.get("clip_sample"):
        return (-config.clip_sample_range, config.clip_sample_range), 1.0
    return None, 1.0


def with_scaled_D(program: Program, factor: float) -> Program:
    """The same rows with `factor` D in the place of D."""
    if factor == 1:
        return program
    A = program.A.copy()
    A[:, :, program.registers] *= factor
    return replace(program, A=A)


def with_negated_output(program: Program) -> Program:
    """The same rows for a network whose output has the other sign."""
    A = program.A.copy()
    A[:, :, program.registers + 1] *= -1
    return replace(program, A=A, km=-program.km)


def estimates(schedule: Schedule, predicts: str, times: Array, levels: tuple[Array, Array], clip: Clip) -> Program:
    """Rows that give D, the estimate of x_0, at `levels` [n]."""
    builder = ProgramBuilder(schedule, predicts, clip=clip)
    builder.rows(times, levels=levels, x={"D": 1.0})
    return builder.program(sampler="x0")


def reading_scaled(program: Program, scale: Array) -> Program:
    """The same rows on the state x / scale [n], leaving what they left."""
    A = program.A.copy()
    A[:, :, 0] *= scale[:, None]
    return replace(program, A=A, kx=program.kx * scale)


def unsupported(name: str, value: object, rather: str) -> ValueError:
    """The error of an option that has no rows."""
    return ValueError(f"{name}={value!r} of the scheduler is not supported by fuse: {rather}")
