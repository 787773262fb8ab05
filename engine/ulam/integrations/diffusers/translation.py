"""A diffusers scheduler in ulam's terms: its noise levels as a grid, its options as arguments of samplers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ...programs.builder import ProgramBuilder
from ...programs.clip import Clip, DynamicThreshold
from ...programs.program import Flags, Program
from ...samplers.grid import Grid
from ...schedules import Array, FlowMatching, Schedule, VariancePreserving, from_alphas_cumprod
from .configuration import unsupported
from .program_edits import rows_among
from .trained_schedule import PREDICTS

# How far the last level may lie above the one before it, as a part of that one. diffusers takes Karras' levels in
# float32: the smallest, a power rho of a difference, is off by rho (sigma_max / sigma_min)^(1 / rho) roundings, and
# sigma_min itself follows.
LAST_RISE = 1e-3


def numbers(values: Any) -> Array:
    """A tensor or an array as float64."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().resolve_neg().numpy()
    return np.asarray(values, dtype=np.float64)


def vp_schedule(scheduler: Any) -> VariancePreserving:
    """The schedule of a scheduler's own alphas_cumprod, up to where they stop decreasing above 0 (or end at 0).

    Rows take their levels from the grid, so a schedule that ends early is enough: where diffusers puts 2^-24 for a last
    0, that may lie above the value before, and alphas_cumprod may underflow.
    """
    abar = numbers(scheduler.alphas_cumprod)
    falls = np.append(True, abar[1:] < abar[:-1]) & ((abar > 0) | (np.arange(len(abar)) == len(abar) - 1))
    return from_alphas_cumprod(abar[: len(abar) if falls.all() else int(np.argmin(falls))])


def vp_levels(scheduler: Any, times: Array, final: float) -> tuple[Array, Array]:
    """(alphas, sigmas) [n + 1] at training indices, the last where alphas_cumprod is `final`."""
    known, at = numbers(scheduler.alphas_cumprod), times.astype(np.int64)
    if not (at < len(known)).all():
        raise ValueError(f"timesteps: got {at.max()}, expected values below num_train_timesteps={len(known)}")
    if not (at >= 0).all():
        raise ValueError(f"timesteps: got {at.min()}, expected values of at least 0")
    abar = np.append(known[at], final)
    if not ((abar >= 0) & (abar <= 1)).all():
        came = f"{abar.min():g} to {abar.max():g}"
        raise ValueError(f"alphas_cumprod: got {came}, expected values in [0, 1]: use smaller betas")
    return np.sqrt(abar), np.sqrt(1 - abar)


def at_sigmas(schedule: Schedule, sigmas: Array) -> tuple[Array, Array]:
    """(alphas, sigmas), each like `sigmas`, which diffusers gives as sigma / alpha, on flow schedules as sigma."""
    if isinstance(schedule, FlowMatching):
        return 1 - sigmas, sigmas
    if isinstance(schedule, VariancePreserving):
        alphas = 1 / np.hypot(1, sigmas)
        return alphas, sigmas * alphas
    return np.ones_like(sigmas), sigmas


def grid_of(times: Array, levels: tuple[Array, Array]) -> Grid:
    """The grid of times [n] and levels [n + 1] each. Where the last level repeats, the last step falls by 1e-9 of it.

    Some grids of diffusers do that (up to rounding, see `LAST_RISE`), so that the last call changes nothing; a `Grid`
    must decrease.
    """
    alphas, sigmas = (np.array(level) for level in levels)
    before, last = sigmas[-2] * alphas[-1], sigmas[-1] * alphas[-2]
    if -1e-6 * before < last - before < LAST_RISE * before:
        alphas[-1], sigmas[-1] = alphas[-2], sigmas[-2] * (1 - 1e-9)
    return Grid(times, alphas, sigmas)


def falling(times: Array, levels: tuple[Array, Array]) -> Grid:
    """The grid for steps with fresh noise only: a level that repeats falls by 1e-9 of itself."""
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
class MovingSteps:
    """The steps on a grid where levels may repeat, compiled without those that go nowhere.

    times [n], levels ([n + 1], [n + 1]): as in `grid_of`, not rising. moves: [n] whether a step goes anywhere.
    Where the network sees the same sample at the same level again it returns the same, so that a solver's history, and
    its result, are those of the grid without the repetition: the limit of a vanishing step.
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

    def program(
        self, compile: Callable[[Grid], Program], network_times: Array, schedule: Schedule, predicts: str
    ) -> Program:
        """The rows of all calls, one or two a step; those of steps that go nowhere change nothing.

        compile: makes the rows of the steps that move. network_times: what the network is told, a time a call.
        """
        calls = np.repeat(self.moves, -(-len(network_times) // len(self.moves)))[: len(network_times)]
        if calls.all():
            return compile(self.grid)
        builder = ProgramBuilder(schedule, predicts)
        builder.rows(network_times, levels=(1.0, 1.0))
        nothing = builder.program(sampler="nothing", init_scale=1.0)
        return rows_among(compile(self.grid), nothing, calls) if calls.any() else nothing


def predicts_of(config: Any, *names: str) -> str:
    """What the network predicts. Raises ValueError unless `prediction_type` is one of `names`."""
    if config.prediction_type not in names:
        raise unsupported("prediction_type", config.prediction_type, f"one of {', '.join(names)}")
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
            raise unsupported("dynamic_thresholding_ratio", ratio, "one in (0, 1]")
        return DynamicThreshold(ratio, most), 1.0
    if config.get("clip_sample"):
        return (-config.clip_sample_range, config.clip_sample_range), 1.0
    return None, 1.0
