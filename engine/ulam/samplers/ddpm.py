"""DDPM: ancestral sampling [Ho 2020; Nichol & Dhariwal 2021; Bao 2022]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np

from ulam_kernels.arguments import as_float, described, is_real

from ..programs.builder import ProgramBuilder
from ..programs.clip import Clip
from ..programs.program import Program
from ..schedules import Array, Schedule, posterior
from .arguments import check_choice, check_clip
from .grid import ROUNDING, Grid, GridSampler

VARIANCES = ("posterior", "beta", "optimal", "learned", "learned_range")
MEASURE = "those of bounds.x0_variances(denoiser, x_0, timesteps=...)"


@dataclass(frozen=True)
class DDPM(GridSampler):
    """Ancestral sampling: x_s ~ N(mu~(x_t, D), std^2) from t to the next time s of the grid.

    With q = alpha_t sigma_s / (alpha_s sigma_t), any schedule [Ho 2020, eq. 6-7; Kingma 2021, eq. 26-29]:

        mu~ = (sigma_s / sigma_t) q x_t + alpha_s (1 - q^2) D

    On a VP schedule with the eps prediction this is (x_t - beta / sigma_t eps) / sqrt(a) with a = abar_t /
    abar_s and beta = 1 - a [Ho 2020, eq. 11]: a respaced grid keeps abar and recomputes beta [Nichol &
    Dhariwal 2021, sec. 4].

    | variance | std^2 |
    |---|---|
    | posterior | sigma_s^2 (1 - q^2) (beta~) |
    | beta | sigma_t^2 (1 - q^2) (beta) |
    | optimal | beta~ + (alpha_s (1 - q^2))^2 e_t, the least KL to q(x_s given x_t) [Bao 2022, theorem 1] |
    | learned | exp(v), v the second half of the network's 2C channels |
    | learned_range | exp(f log beta + (1 - f) log beta~), f = (v + 1) / 2 [Nichol & Dhariwal 2021, eq. 15] |

    x0_variances: e_t at every time t of the grid but the last, {t: e_t}, the mean posterior variance of an element of
    x_0 given x_t, from `ulam.bounds.x0_variances`: of the data, so variance="optimal" needs them. They belong to t
    alone, so one measurement at all times serves every grid.
    A last row that ends at the data gives D itself, without noise [Ho 2020, algorithm 2], so beta~ = 0 never meets a
    logarithm.
    steps: None is every training step; spacing, timesteps, sigmas: see `GridSampler`. clip: (lo, hi) for D, or a
    `DynamicThreshold`. Order 1. Raises ValueError naming the argument.
    """

    variance: str = "posterior"
    clip: Clip = None
    x0_variances: Mapping[float, float] | tuple[tuple[float, float], ...] | None = None

    convention: ClassVar[str] = "index"
    default_spacing: ClassVar[str] = "leading"
    every_step: ClassVar[bool] = True
    section: ClassVar[str] = "Ancestral and marginal-preserving steps"
    use: ClassVar[str] = "hundreds of steps, networks with learned variances, the papers' own figures."
    elsewhere: ClassVar[tuple[str, ...]] = ("ddpm", "DDPMScheduler")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("variance", self.variance, VARIANCES)
        self._set(clip=check_clip(self.clip), x0_variances=check_x0_variances(self.x0_variances, self.variance))
        if self.variance == "optimal" and self.x0_variances is None:
            raise ValueError(f"x0_variances: got None under variance='optimal', expected {MEASURE}")

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        alpha, sigma = grid.alphas[:-1], grid.sigmas[:-1]
        on_x, on_D, fresh = posterior(alpha, sigma, grid.alphas[1:], grid.sigmas[1:])
        noisy = slice(0, len(grid) - int(grid.sigmas[-1] == 0))  # the data themselves get no noise
        builder = ProgramBuilder(schedule, predicts, clip=self.clip)
        small, large = grid.sigmas[1:] * np.sqrt(fresh), sigma * np.sqrt(fresh)  # sqrt of beta~ and of beta
        log_scale: tuple[Array | float, Array | float] | None = None
        std = {"posterior": small, "beta": large}.get(self.variance, np.ones(len(grid)))[noisy]
        if self.variance == "learned":
            log_scale = 0.5, 0.0
        elif self.variance == "learned_range":
            with np.errstate(divide="ignore"):
                log_scale = (np.log(large) - np.log(small))[noisy] / 2, (np.log(large) + np.log(small))[noisy] / 2
        elif self.variance == "optimal":
            std = np.hypot(small[noisy], on_D[noisy] * np.sqrt(at_times(self.x0_variances, grid.times[noisy])))
        builder.rows(
            grid.times[noisy],
            levels=(alpha[noisy], sigma[noisy]),
            x={"x": on_x[noisy], "D": on_D[noisy], "z": std},
            log_scale=log_scale,
        )
        if grid.sigmas[-1] == 0:
            builder.rows(grid.times[-1], levels=(alpha[-1], sigma[-1]), x={"D": 1.0})
        return builder.program(sampler=repr(self))


def check_x0_variances(given: object, variance: str) -> tuple[tuple[float, float], ...] | None:
    """`given`, {t: e_t} or pairs (t, e_t), as pairs by increasing t. Raises ValueError for others, or where unused."""
    if given is None:
        return None
    if variance != "optimal":
        raise ValueError(f"x0_variances: got some under variance={variance!r}, expected None, or variance='optimal'")
    pairs = list(given.items()) if isinstance(given, Mapping) else given
    if not isinstance(pairs, Sequence) or isinstance(pairs, str) or not pairs:
        raise ValueError(f"x0_variances: got {described(given)}, expected {MEASURE}")
    for pair in pairs:
        if not isinstance(pair, Sequence) or len(pair) != 2 or not all(map(is_real, pair)):
            raise ValueError(f"x0_variances: got {described(pair)}, expected pairs of a time and a number, {MEASURE}")
        t, e = map(as_float, pair)
        if not (np.isfinite(t) and 0 <= e < np.inf):
            raise ValueError(f"x0_variances: got {e:g} at t = {t:g}, expected finite numbers of at least 0")
    found = sorted((as_float(t), as_float(e)) for t, e in pairs)
    for (t, _), (after, _) in pairwise(found):
        if t == after:
            raise ValueError(f"x0_variances: got t = {t:g} twice, expected one number for every time")
    return tuple(found)


def at_times(pairs: object, times: Array) -> Array:
    """e_t at these times, from pairs that were checked. Raises ValueError for a time that is not among them."""
    known, values = np.array(pairs, dtype=np.float64).T
    after = np.searchsorted(known, times).clip(1, len(known) - 1) if len(known) > 1 else np.zeros(len(times), int)
    nearest = np.where(abs(known[after - 1] - times) < abs(known[after] - times), after - 1, after)
    off = abs(known[nearest] - times) > ROUNDING * np.maximum(1, abs(times))
    if off.any():
        raise ValueError(f"x0_variances: got none at t = {times[off][0]:.10g}, expected {MEASURE} with that time")
    return np.asarray(values[nearest])
