"""The noise levels that a sampler goes through, and the arguments that choose them.

Conventions differ between families of samplers and follow diffusers' schedulers of the same names:

| convention | `spacing` on n steps of T training steps |
|---|---|
| index | whole indices. leading: i (T // n); linspace: T - 1 to 0; trailing: T - 1 down by T / n |
| fractional | as index, but linspace is not rounded |
| endless | as index with n + 1 steps, the last left out; trailing as index |

"log-snr" is n + 1 levels uniform in log(alpha / sigma), the last left out (final="sigma_min" then ends on it). A single
step is at T - 1 for every spacing (diffusers: 0 for leading and linspace, or T / 2).

| `sigmas` | n levels between the schedule's largest and smallest, or the first and last of `spacing` |
|---|---|
| karras | uniform in sigma^(1/7) [Karras 2022, eq. 5] |
| exponential, polyexponential | uniform in log sigma (and so in log-SNR: the grid of Lu 2022a, sec. 3.3) |
| beta | sigma at the quantiles 1, ..., 0 of the Beta(0.6, 0.6) distribution, as in diffusers |

The others are ComfyUI's, or whose they are said to be, on n levels; T is the number of training steps, 1000 where a
schedule has none:

| `sigmas` | levels |
|---|---|
| normal, sgm_uniform | uniform in time, log-linear in between; sgm_uniform is one more, the last left out |
| simple | the indices T - 1 - floor(i T / n) |
| ddim_uniform | every (T // n)-th index from 1 on: more than n levels where n does not divide T |
| beta-time | time at the quantiles 1, 1 - 1/n, ..., 1/n of Beta(0.6, 0.6), whole indices on VP [Lee 2024] |
| linear_quadratic | sigma_max (1 - 0.025 i / m - b max(i - m, 0)^2), m = n // 2, b such that the n-th is 0 |
| kl_optimal | uniform in arctan(sigma), sigma_max to sigma_min [Sabour 2024] |
| laplace | log sigma at the quantiles of the Laplace distribution of scale 1/2, within sigma_max and sigma_min |
| vp | those of the VP SDE at n uniform times from 1 to 1e-3, for networks of that SDE [Song 2021b] |
| ays_sd1, ays_sdxl, ays_svd | Align Your Steps, the 10 levels of Stable Diffusion 1, XL and Video; log-linear else |
| ays_11_sd1, ays_11_sdxl | A1111's Align Your Steps: the end of that table is the n-th level |
| ays_32_sd1, ays_32_sdxl | Forge's Align Your Steps 32, levels to 0.015, in the same way |
| gits_sd1, gits_sdxl | Forge's Align Your Steps GITS, levels to 0.029, in the same way |
| turbo | Forge's: the indices i T / n - 1 for i = n, ..., 1, rounded |

On flow schedules a level is sigma = t: normal and sgm_uniform are uniform before the shift, down to the smallest of T
levels. The two betas differ widely, since sigma is not linear in time. Where two levels are the same, ComfyUI takes
fewer steps (beta-time) or a step that does nothing (laplace); here that is an error. ComfyUI's laplace ends at its n-th
level: here that is n - 1 steps with drop_last=True and final="sigma_min". A single step is at the largest level.

Where sigmas are named, index and endless samplers tell a VP network the nearest whole index, as diffusers does for
karras; for exponential and beta diffusers' multistep schedulers truncate the fraction instead. A list of sigmas, and
log-snr, are told exactly.

A denoiser with time="index" or predicts="mean" can only be told whole training indices: where the grids above fall
between them (fractional samplers, log-snr), their times are rounded, and the levels are those of the rounded times.
Lists are not rounded.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import numpy as np

from ulam_kernels.reprs import short_repr

from ..programs.builder import compiled
from ..programs.predictions import told_steps
from ..programs.program import Program
from ..schedules import Array, Continuous, FlowMatching, Schedule, VariancePreserving, check_schedule
from .arguments import check_flag, grid_arguments
from .noise_levels import coordinate, levels_at, network_times, sigma_min, spaced
from .sigmas import AT_TRAINING_STEPS, BETWEEN, named_levels, sigma_grid, training_times

ROUNDING = 1e-6  # of a training step: a time this close to a whole one is that one


@dataclass(frozen=True)
class Grid:
    """Row i goes from (alphas[i], sigmas[i]) to (alphas[i + 1], sigmas[i + 1]), the network being told times[i].

    times: [n]; alphas, sigmas: [n + 1] with sigma / alpha strictly decreasing, above 0 but for the last; alpha = 0 is
    allowed at the first (zero terminal SNR). Raises ValueError otherwise.
    """

    times: Array
    alphas: Array
    sigmas: Array

    __repr__ = short_repr

    def __post_init__(self) -> None:
        for name in ("sigmas", "alphas", "times"):
            values = getattr(self, name)
            if not np.isfinite(values).all():
                at = int(np.argmin(np.isfinite(values)))
                raise ValueError(f"{name}: got {values[at]!s} at level {at}, expected finite numbers")
        ratios = self.ratios
        if not (ratios[:-1] > 0).all():
            raise ValueError(
                f"timesteps: got {self.times[~(ratios[:-1] > 0)][0]:g} with sigma 0, expected sigma above 0"
            )
        falls = ratios[1:] < ratios[:-1] * (1 - 1e-12)  # by more than rounding
        if not falls.all():
            at = int(np.argmin(falls))
            if at == len(self) - 1:
                raise ValueError(
                    f"final: got sigma/alpha {ratios[at + 1]:g}, expected a level below the last one, {ratios[at]:g}: "
                    "use another spacing or final='zero'"
                )
            raise ValueError(
                f"steps: got sigma/alpha {ratios[at]:g} before {ratios[at + 1]:g}, expected strictly decreasing noise "
                "levels: use fewer steps or another spacing"
            )

    def __len__(self) -> int:
        return len(self.times)

    @property
    def ratios(self) -> Array:
        """sigma / alpha [n + 1]; inf at zero terminal SNR."""
        with np.errstate(divide="ignore"):
            return self.sigmas / self.alphas

    @property
    def log_snr(self) -> Array:
        """lambda = log(alpha / sigma) [n + 1]; inf where sigma is 0, -inf where alpha is 0."""
        with np.errstate(divide="ignore"):
            return np.log(self.alphas) - np.log(self.sigmas)


@dataclass(frozen=True)
class GridSampler:
    """What all samplers on a grid of noise levels share. A subclass states its rows in `on(grid, schedule, predicts)`.

    steps: the number of noise levels. spacing: how they are placed, see the table above, default `default_spacing`
    (on schedules without training steps: the schedule's own grid). timesteps: explicit times, strictly decreasing.
    sigmas: a name such as "karras", see the tables there; or an explicit list, strictly decreasing, of sigma/alpha (on
    flow schedules of sigma itself). A last sigma of 0 is the end, and so is the last of either list where it has one
    more than `steps`. drop_last: whether sigmas by name are those of one step more, the last left out, as ComfyUI's
    KSampler has them for some samplers. final: otherwise, the level that the last row ends at: "zero" (the data),
    "sigma_min" (the schedule's smallest) or a number like those in `sigmas`. Raises ValueError naming the argument.
    """

    steps: int | None = None
    spacing: str | None = field(default=None, kw_only=True)
    timesteps: tuple[float, ...] | None = field(default=None, kw_only=True)
    sigmas: str | tuple[float, ...] | None = field(default=None, kw_only=True)
    drop_last: bool = field(default=False, kw_only=True)
    final: str | float = field(default="zero", kw_only=True)

    convention: ClassVar[str] = "fractional"
    default_spacing: ClassVar[str] = "linspace"
    every_step: ClassVar[bool] = False  # whether steps=None means every training step
    # On the page of all samplers: its section, when to use it, and options shown beside the defaults.
    section: ClassVar[str] = "Others"
    use: ClassVar[str] = ""
    variants: ClassVar[tuple[dict[str, Any], ...]] = ()
    elsewhere: ClassVar[tuple[str, ...]] = ()  # its names in ComfyUI, k-diffusion and diffusers

    def __init_subclass__(cls) -> None:
        cls.__repr__ = GridSampler.__repr__  # type: ignore[method-assign]  # a dataclass would bring its own

    def __repr__(self) -> str:
        """The call that makes this sampler, defaults left out."""
        given = ((f.name, getattr(self, f.name), f.default) for f in fields(self) if f.repr)
        return f"{type(self).__name__}({', '.join(f'{n}={v!r}' for n, v, default in given if v != default)})"

    def __post_init__(self) -> None:
        """Checks the arguments, and replaces them by their checked forms."""
        own = type(self)
        checked = grid_arguments(
            self.steps, self.spacing, self.timesteps, self.sigmas, self.final, own.final, own.every_step
        )
        if check_flag("drop_last", self.drop_last) and not isinstance(checked["sigmas"], str):
            raise ValueError("drop_last: got True without sigmas by name, expected a name such as sigmas='karras'")
        self._set(**checked)

    def _set(self, **values: object) -> None:
        """Replace arguments by their checked forms."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @compiled
    def program(self, schedule: Schedule, predicts: str = "eps") -> Program:
        """The rows on `schedule` for a network that predicts `predicts`."""
        return self.on(self.grid(schedule), schedule, predicts)

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        """The rows on given noise levels."""
        raise NotImplementedError

    @compiled
    def index_program(self, schedule: Schedule, predicts: str = "eps") -> Program:
        """`program` for a network that is told whole training indices only, with time="index" or predicts="mean".

        Where the grid falls between training steps its times are rounded, and its levels are those of the rounded
        times. Raises ValueError where they are given in a list, and where two of them fall on one training step.
        """
        # A mean is known at the levels of training steps alone, so those of the grid are never left as they are.
        program = None if predicts == "mean" else self.program(schedule, predicts)
        if program is None or (program.time % 1 > 0).any():
            program = self.on_indices(self._on_training_steps(schedule, predicts), schedule, predicts)
            whole = program.time.round()
            program = replace(program, time=np.where(abs(program.time - whole) <= ROUNDING, whole, program.time))
        between = program.time[program.time % 1 > 0]
        if len(between):
            raise ValueError(not_an_index(predicts, "timesteps", float(between[0]), "spacing='leading'"))
        return program

    def on_indices(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        """`on` a grid of whole training indices, which evaluates nowhere else."""
        return self.on(grid, schedule, predicts)

    def _on_training_steps(self, schedule: Schedule, predicts: str) -> Grid:
        grid = self.grid(schedule)
        times = grid.times.round()
        off = abs(grid.times - times) > ROUNDING
        if off.any() and self.timesteps is not None:
            raise ValueError(not_an_index(predicts, "timesteps", float(grid.times[off][0]), f"{times[off][0]:g}"))
        if off.any() and isinstance(self.sigmas, tuple):
            nearest = float(coordinate(schedule, times[off])[0])
            way = f"{nearest:.10g}, the nearest level of one"
            raise ValueError(not_an_index(predicts, "sigmas", float(grid.times[off][0]), way))
        if (repeats := times[1:] >= times[:-1]).any():
            at = times[1:][repeats][0]
            raise ValueError(
                f"steps: got {len(grid)} under {told_steps(predicts)}, two of them at training step {at:g}, expected "
                "fewer steps or another spacing"
            )
        alphas, sigmas = schedule.levels(times)
        return Grid(times, np.append(alphas, grid.alphas[-1]), np.append(sigmas, grid.sigmas[-1]))

    def grid(self, schedule: Schedule) -> Grid:
        """The noise levels on `schedule`. Raises ValueError for arguments that it does not allow."""
        check_schedule(schedule)
        if self.timesteps is not None:
            times = np.array(self.timesteps)
            try:
                alphas, sigmas = schedule.levels(times)
            except ValueError as error:
                raise ValueError(f"timesteps: {_said(error)}") from None
            if len(times) == self.steps:
                return self._ended(schedule, times, alphas, sigmas)
            return Grid(times[:-1], alphas, sigmas)
        if isinstance(self.sigmas, tuple):
            return self._at(schedule, np.array(self.sigmas))
        if isinstance(self.sigmas, str) and self.sigmas not in BETWEEN:
            return self._by_name(schedule, self.sigmas)
        if self.spacing == "log-snr":
            return self._at(schedule, self._log_snr(schedule))
        times = self._times(schedule)
        if self.sigmas is None:
            return self._ended(schedule, times, *schedule.levels(times))
        ends = np.asarray(coordinate(schedule, times))
        if isinstance(schedule, VariancePreserving) and (self.convention == "endless" or self.spacing is None):
            ends = schedule.ratios[::-1]
        if not np.isfinite(ends).all():
            raise ValueError(
                f"sigmas: got {self.sigmas!r} on {schedule!r}, expected a schedule whose largest sigma is finite"
            )
        levels = sigma_grid(self.sigmas, float(ends[0]), float(ends[-1]), len(times) + self.drop_last)
        return self._at(schedule, levels[: len(times)])

    def _by_name(self, schedule: Schedule, name: str) -> Grid:
        steps = self._count(schedule) + self.drop_last
        if name in AT_TRAINING_STEPS:
            times = training_times(name, schedule, steps)
            times = times[: len(times) - self.drop_last]
            return self._ended(schedule, times, *schedule.levels(times))
        levels = named_levels(name, schedule, steps)
        return self._at(schedule, levels[: len(levels) - self.drop_last])

    def _count(self, schedule: Schedule) -> int:
        """The number of noise levels."""
        steps = schedule.steps if self.steps is None else self.steps
        if steps is None:
            raise ValueError(f"steps: got None on {schedule!r}, expected a number: it has no training steps")
        return steps

    def _times(self, schedule: Schedule) -> Array:
        steps = self._count(schedule)
        if isinstance(schedule, Continuous):
            if self.spacing is not None:
                raise ValueError(
                    f"spacing: got {self.spacing!r} on {schedule!r}, expected None or log-snr: it has no training steps"
                )
            return schedule.grid(steps)
        assert schedule.steps is not None
        if steps > schedule.steps:
            raise ValueError(
                f"steps: got {steps}, expected at most the {schedule.steps} training steps of the schedule"
            )
        return spaced(schedule.steps, steps, self.spacing or self.default_spacing, self.convention)

    def _log_snr(self, schedule: Schedule) -> Array:
        assert self.steps is not None
        first = schedule.grid(1)[0] if isinstance(schedule, Continuous) else schedule.steps - 1.0  # type: ignore[operator]
        smallest = sigma_min(schedule)
        with np.errstate(divide="ignore"):
            largest = float(schedule.sigma(first) / schedule.alpha(first))
        if isinstance(schedule, FlowMatching):
            largest = 1 / smallest  # its first level is infinite
        if not np.isfinite(largest):
            raise ValueError(
                f"spacing: got 'log-snr' on {schedule!r}, expected a schedule whose largest sigma is finite"
            )
        ratios: Array = np.geomspace(largest, smallest, self.steps + 1)[:-1]
        return ratios / (1 + ratios) if isinstance(schedule, FlowMatching) else ratios

    def _at(self, schedule: Schedule, values: Array) -> Grid:
        try:
            alphas, sigmas = levels_at(schedule, values)
        except ValueError as error:
            raise ValueError(f"sigmas: {_said(error)}") from None
        if isinstance(self.sigmas, tuple) and len(self.sigmas) > (self.steps or 0):
            return Grid(network_times(schedule, alphas[:-1], sigmas[:-1]), alphas, sigmas)
        times = network_times(schedule, alphas, sigmas)
        # the families that keep to whole indices; given levels are told exactly
        rounds = self.convention != "fractional" and isinstance(self.sigmas, str)
        if rounds and isinstance(schedule, VariancePreserving):
            times = times.round()
        return self._ended(schedule, times, alphas, sigmas)

    def _ended(self, schedule: Schedule, times: Array, alphas: Array, sigmas: Array) -> Grid:
        alpha: Array | float = 1.0
        sigma: Array | float = 0.0
        if self.final == "sigma_min":
            ratio = sigma_min(schedule)
            alpha, sigma = levels_at(schedule, ratio / (1 + ratio) if isinstance(schedule, FlowMatching) else ratio)
        elif not isinstance(self.final, str):
            try:
                alpha, sigma = levels_at(schedule, self.final)
            except ValueError as error:
                raise ValueError(f"final: {_said(error)}") from None
        return Grid(times, np.append(alphas, alpha), np.append(sigmas, sigma))


def _said(error: ValueError) -> str:
    """A schedule's message without the name of its own argument."""
    return str(error).partition(": ")[2]


def not_an_index(predicts: str, name: str, time: float, way: str) -> str:
    """The message for a time between training steps where the network can only be told whole ones."""
    return f"{name}: got t = {time:.10g} under {told_steps(predicts)}, expected whole training steps: use {way}"


def to_the_data(times: Array, alphas: Array, sigmas: Array) -> Grid:
    """The grid of these rows that ends at the data."""
    return Grid(times, np.append(alphas, 1.0), np.append(sigmas, 0.0))


def at_sigma_min(schedule: Schedule, alphas: Array, sigmas: Array) -> bool:
    """Whether the last level is already the schedule's smallest, or below it."""
    return bool(sigmas[-1] <= alphas[-1] * sigma_min(schedule) * (1 + 1e-9))
