"""Euler's method on the probability flow, deterministic, with churn, and ancestral [Karras 2022; k-diffusion]."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np

from ulam_kernels.arguments import is_real

from ..programs.builder import ProgramBuilder
from ..programs.clip import Clip
from ..programs.predictions import combine, told_steps
from ..programs.program import Program
from ..schedules import Array, FlowMatching, Schedule
from .arguments import check_clip, check_flag, check_number
from .grid import Grid, GridSampler
from .noise_levels import levels_at, network_times

NoiseLevel: TypeAlias = tuple[Array | float, Array | float]  # (alpha, sigma)
Terms: TypeAlias = dict[str, Array | float]


@dataclass(frozen=True)
class Coordinates:
    """Coordinates (w, u) in which the probability flow is dw/du = d:

        w = x / c,    c = alpha + k sigma,    u = sigma / c,    d = eps - k D,    w = D + u d

    k = 0: u = sigma / alpha and d = eps [Song 2021a, eq. 14; Karras 2022, eq. 4 with s = 1].
    k = 1: u lies in [0, 1] and d is the velocity [Lipman 2023]. It is taken on flow schedules, where w = x and u = t,
    and where the first alpha is 0 (zero terminal SNR: sigma / alpha is infinite).
    """

    predicts: str
    schedule: Schedule
    k: int
    clipped: bool

    @classmethod
    def of(cls, grid: Grid, schedule: Schedule, predicts: str, clip: Clip = None) -> Coordinates:
        k = int(isinstance(schedule, FlowMatching) or grid.alphas[0] == 0)
        return cls(predicts, schedule, k, clip is not None)

    def scale(self, level: NoiseLevel) -> Array:
        """c, shaped like the level's alpha and sigma."""
        return np.asarray(level[0] + self.k * level[1])

    def u(self, level: NoiseLevel) -> Array:
        """u, shaped like the level's alpha and sigma."""
        return np.asarray(level[1] / self.scale(level))

    def terms(self, level: NoiseLevel, *, D: Array | float = 0.0, d: Array | float) -> Terms:
        """`D` times the x_0 estimate plus `d` times the derivative, as terms of a row evaluated at `level`.

        They are folded into x and m; where D is clipped, d = (w - D) / u follows the clipped D.
        """
        alpha, sigma = level
        if self.clipped:
            return {"x": d / sigma, "D": D - d * self.scale(level) / sigma}
        about = self.predicts, np.asarray(alpha), np.asarray(sigma), self.schedule
        on_x, on_m = combine(*about, D=D - self.k * d, eps=d)
        return {"x": on_x, "m": on_m}

    def unguided(self, *, D: Array | float = 0.0, d: Array | float = 0.0) -> Terms:
        """As `terms`, of the unguided output [CFG++, Chung 2024]; `terms` itself being of the guided one."""
        return {"D_u": D - self.k * d, "eps_u": d}


def at_ratio(schedule: Schedule, ratio: Array | float) -> tuple[Array, tuple[Array, Array]]:
    """(times, (alphas, sigmas)) where sigma / alpha is `ratio`, finite, shaped like it."""
    ratio = np.asarray(ratio)
    alphas, sigmas = levels_at(schedule, ratio / (1 + ratio) if isinstance(schedule, FlowMatching) else ratio)
    return network_times(schedule, alphas, sigmas), (alphas, sigmas)


def ancestral(grid: Grid, eta: float, rectified: bool = False) -> tuple[Array, Array]:
    """(down, up) [n], fractions of the next level: down^2 + up^2 = 1 and up = min(eta sqrt(1 - q^2), 1).

    q = (sigma / alpha at the next level) / (sigma / alpha at this one) [k-diffusion, get_ancestral_step]. rectified:
    down as in ComfyUI's samplers for rectified flow, linear in s = sigma / (alpha + sigma), which is t there: to s_down
    = s_next (1 - eta + eta s_next / s), so that down is s_down / (1 - s_down) over the next s / (1 - s).
    """
    if rectified:
        s = grid.sigmas / (grid.alphas + grid.sigmas)
        factor = 1 - eta + eta * s[1:] / s[:-1]  # s_down / s_next
        if (factor < 0).any():
            raise ValueError(
                f"eta: got {eta:g} with rectified=True, expected at most {1 / (1 - (s[1:] / s[:-1]).min()):g}"
            )
        down = factor * (1 - s[1:]) / (1 - s[1:] * factor)
        return down, np.sqrt((1 - down) * (1 + down))
    q = grid.ratios[1:] / grid.ratios[:-1]
    # 1 - up^2 without cancellation for eta = 1
    down = np.sqrt(np.maximum(1 - eta**2 + (eta * q) ** 2, 0.0))
    return down, np.minimum(eta * np.sqrt((1 - q) * (1 + q)), 1.0)


@dataclass(frozen=True)
class Raised:
    """The levels that the network is evaluated at under churn: times, alphas, sigmas [n].

    gain, std [n + 1]: x <- gain x + std z takes the grid's level i to the raised one; the last are 1 and 0.
    """

    times: Array
    alphas: Array
    sigmas: Array
    gain: Array
    std: Array


@dataclass(frozen=True)
class ChurnSampler(GridSampler, ABC):
    """A sampler with the stochastic churn of Karras 2022, algorithm 2, in units of sigma / alpha (flow: of sigma).

    churn: S_churn; where s_tmin <= sigma <= s_tmax each step first raises sigma to (1 + gamma) sigma with gamma =
    min(churn / n, sqrt(2) - 1), adding noise of standard deviation s_noise sqrt(sigma_hat^2 - sigma^2). The raise
    belongs to the row before it; the first has a row of its own, without the network. clip: (lo, hi) for D, or a
    `DynamicThreshold`; the step then follows (x - alpha D) / sigma of the clipped D.
    """

    churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0
    clip: Clip = None

    def __post_init__(self) -> None:
        super().__post_init__()
        s_tmin = check_number("s_tmin", self.s_tmin, 0)
        endless = is_real(self.s_tmax) and self.s_tmax == math.inf
        s_tmax = math.inf if endless else check_number("s_tmax", self.s_tmax, 0)
        if s_tmin > s_tmax:
            raise ValueError(f"s_tmin, s_tmax: got {s_tmin:g} and {s_tmax:g}, expected s_tmin <= s_tmax")
        self._set(
            churn=check_number("churn", self.churn, 0),
            s_tmin=s_tmin,
            s_tmax=s_tmax,
            s_noise=check_number("s_noise", self.s_noise, 0),
            clip=check_clip(self.clip),
        )

    @abstractmethod
    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        """The rows on noise levels that are given."""

    def on_indices(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        if self.churn:
            raise ValueError(
                f"churn: got {self.churn:g} under {told_steps(predicts)}, expected 0: it raises the noise to levels "
                "between training steps (EulerAncestral adds noise without)"
            )
        return self.on(grid, schedule, predicts)

    def raised(self, grid: Grid, schedule: Schedule) -> Raised:
        """The raised levels. Raises ValueError where a schedule has no levels that high."""
        ratios = grid.ratios[:-1]
        level = grid.sigmas[:-1] if isinstance(schedule, FlowMatching) else ratios
        churned = (self.s_tmin <= level) & (level <= self.s_tmax)
        gamma = np.where(churned, min(self.churn / len(grid), math.sqrt(2) - 1), 0.0)
        times, alphas, sigmas = grid.times.copy(), grid.alphas[:-1].copy(), grid.sigmas[:-1].copy()
        up = (gamma > 0) & np.isfinite(ratios)  # an infinite sigma / alpha stays so
        try:
            times[up], (alphas[up], sigmas[up]) = at_ratio(schedule, (ratios * (1 + gamma))[up])
        except ValueError as error:
            raise ValueError(
                f"churn: got {self.churn:g}, which raises sigma out of range ({error}), expected a smaller s_tmax"
            ) from None
        gain = sigmas / (grid.sigmas[:-1] * (1 + gamma))
        std = self.s_noise * sigmas * np.sqrt(gamma * (2 + gamma)) / (1 + gamma)
        gain[gamma == 0] = 1.0
        return Raised(times, alphas, sigmas, np.append(gain, 1.0), np.append(std, 0.0))

    def builder(
        self, schedule: Schedule, predicts: str, raised: Raised, registers: int, unguided: bool = False
    ) -> ProgramBuilder:
        """A builder that holds the first raise, if there is one."""
        builder = ProgramBuilder(schedule, predicts, registers=registers, clip=self.clip, unguided=unguided)
        if (raised.gain[0], raised.std[0]) != (1, 0):
            builder.moves(x={"x": raised.gain[0], "z": raised.std[0]})
        return builder


@dataclass(frozen=True)
class Euler(ChurnSampler):
    """x_s = alpha_s D + sigma_s eps, from t to the next time s of the grid: Euler's method in sigma / alpha.

    With w = x / alpha and u = sigma / alpha this is w + (u_s - u_t) eps [Karras 2022, algorithm 1 without lines 6-8],
    on flow schedules x + (s - t) (eps - D); both are DDIM's step [Song 2021a, eq. 13]. With churn each step starts
    from a raised level [Karras 2022, algorithm 2 without lines 9-11]: the network sees the raised state, and is told
    its level.

    cfg_pp: x_s = alpha_s D + sigma_s eps_u, with D of the guided output and eps_u of the unguided one [CFG++, Chung
    2024; ComfyUI, sample_euler_cfg_pp]; guidance weights lie in [0, 1] then, or a little above. One register.

    Order 1; one evaluation a step; no register beyond x. churn, s_tmin, s_tmax, s_noise, clip: see `ChurnSampler`;
    steps, spacing, timesteps, sigmas, final: see `GridSampler`. Raises ValueError naming the argument.
    """

    cfg_pp: bool = False

    section: ClassVar[str] = "Solvers of the probability flow"
    use: ClassVar[str] = "checkpoints tuned with it (flow matching, distilled ones); with churn, EDM networks."
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"churn": 10.0}, {"cfg_pp": True})
    elsewhere: ClassVar[tuple[str, ...]] = (
        "euler",
        "euler_cfg_pp",
        "EulerDiscreteScheduler",
        "EDMEulerScheduler",
        "FlowMatchEulerDiscreteScheduler",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("cfg_pp", self.cfg_pp)

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        hat = self.raised(grid, schedule)
        level, gain = (hat.alphas, hat.sigmas), hat.gain[1:]
        line = Coordinates(predicts, schedule, 0, self.clip is not None)
        step = line.terms(level, D=gain * grid.alphas[1:], d=gain * grid.sigmas[1:])
        if self.cfg_pp:
            step = {"D": gain * grid.alphas[1:], "eps_u": gain * grid.sigmas[1:]}
        builder = self.builder(schedule, predicts, hat, registers=1, unguided=self.cfg_pp)
        builder.rows(hat.times, levels=level, x={**step, "z": hat.std[1:]})
        return builder.program(repr(self), init_scale=schedule.init_scale(float(grid.times[0])))


@dataclass(frozen=True)
class EulerAncestral(GridSampler):
    """x_s = alpha_s D + alpha_s down eps + s_noise alpha_s up z: an Euler step to a lower level, and noise back up.

    With u = sigma / alpha [k-diffusion, sample_euler_ancestral]:

        up = min(u_s, eta sqrt(u_s^2 (u_t^2 - u_s^2) / u_t^2)),    down = sqrt(u_s^2 - up^2)

    This is DDIM's step of the same eta [Song 2021a, eq. 12 and 16]; eta = 0 is `Euler`. s_noise other than 1 changes
    the marginals.

    rectified: the lower level of ComfyUI's samplers for rectified flow, see `ancestral`: with s = sigma / (alpha +
    sigma), s_down = s_s (1 - eta + eta s_s / s_t), and down = s_down / (1 - s_down) (1 - s_s) / s_s in the row above.
    cfg_pp: eps_u of the unguided output in the place of eps [CFG++, Chung 2024].

    Order 1 (weak); one evaluation a step; no register beyond x. steps, spacing, timesteps, sigmas, final: see
    `GridSampler`. Raises ValueError naming the argument.
    """

    eta: float = 1.0
    s_noise: float = 1.0
    rectified: bool = False
    cfg_pp: bool = False

    section: ClassVar[str] = "Stochastic"
    use: ClassVar[str] = "recipes that name it, 20 to 40 steps."
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"rectified": True}, {"cfg_pp": True})
    elsewhere: ClassVar[tuple[str, ...]] = (
        "euler_ancestral",
        "euler_ancestral_cfg_pp",
        "EulerAncestralDiscreteScheduler",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("rectified", self.rectified)
        check_flag("cfg_pp", self.cfg_pp)
        self._set(eta=check_number("eta", self.eta, 0), s_noise=check_number("s_noise", self.s_noise, 0))

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        down, up = ancestral(grid, self.eta, self.rectified)
        sigma_s = grid.sigmas[1:]
        builder = ProgramBuilder(schedule, predicts, unguided=self.cfg_pp)
        noise = "eps_u" if self.cfg_pp else "eps"
        builder.rows(
            grid.times,
            levels=(grid.alphas[:-1], grid.sigmas[:-1]),
            x={"D": grid.alphas[1:], noise: sigma_s * down, "z": self.s_noise * sigma_s * up},
        )
        return builder.program(sampler=repr(self))
