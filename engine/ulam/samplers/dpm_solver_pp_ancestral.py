"""DPM-Solver++ 2S ancestral: the exponential midpoint method to a lower level, and noise back up [k-diffusion]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..programs.builder import ProgramBuilder
from ..programs.program import Program
from ..schedules import FlowMatching, Schedule
from .arguments import check_flag, check_number
from .euler import Coordinates, Terms, ancestral, at_ratio
from .exponential import combined
from .grid import Grid, GridSampler

NEARLY_NOISE = 0.9999 / 0.0001  # sigma / alpha at t = 0.9999


@dataclass(frozen=True)
class DPMSolverPP2SAncestral(GridSampler):
    """The midpoint method in the data form, with the middle half-way in log-SNR, from t to below the next time s.

    In the coordinates (w, u) of `Coordinates` (w = x / alpha, u = sigma / alpha; on flow schedules w = x, u = t):

        w' = (m / u_t) w + (1 - m / u_t) D(w, u_t),    w_low = (u_low / u_t) w + (1 - u_low / u_t) D(w', m)

    [DPM-Solver++(2S), Lu 2022b, algorithm 1, with its step from u_t to u_low; k-diffusion, sample_dpmpp_2s_ancestral],
    and noise of s_noise is added back up to u_s, as in `EulerAncestral`; eta = 0 is without. sigma / alpha at m is the
    geometric mean of those at both ends, out of pure noise 9999 (elsewhere than on flow schedules log u is halved
    then). A step whose deterministic part ends at sigma = 0 gives D. rectified: u_low as ComfyUI has it on flow
    schedules, see `EulerAncestral`. A network with time="index" is evaluated at the nearest training step below t
    instead, D(w', m) being replaced by (1 - 1 / (2 r)) D(w, u_t) + D(w', m) / (2 r), r = log(m / u_t) / log(u_low /
    u_t).

    cfg_pp: all of this with D of the unguided output; then x_s <- x_s + alpha_s (D(w, u_t) - D_u(w, u_t)), of the
    guided and the unguided [ComfyUI, sample_dpmpp_2s_ancestral_cfg_pp, after Chung 2024; in 2025 it had another form].

    Order 2 (with eta > 0 weakly; under cfg_pp without guidance: it moves the state once a step); two evaluations a
    step, one in a last step to sigma = 0: 2 n - 1; one register beyond x, the step's start, and another under cfg_pp.
    steps, spacing, timesteps, sigmas, final: see `GridSampler`. Raises ValueError naming the argument.
    """

    eta: float = 1.0
    s_noise: float = 1.0
    rectified: bool = False
    cfg_pp: bool = False

    section: ClassVar[str] = "Stochastic"
    use: ClassVar[str] = "recipes that name it, 10 to 30 steps."
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"rectified": True}, {"cfg_pp": True})
    elsewhere: ClassVar[tuple[str, ...]] = ("dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("rectified", self.rectified)
        check_flag("cfg_pp", self.cfg_pp)
        self._set(eta=check_number("eta", self.eta, 0), s_noise=check_number("s_noise", self.s_noise, 0))

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        return self._rows(grid, schedule, predicts, whole=False)

    def on_indices(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        return self._rows(grid, schedule, predicts, whole=True)

    def _rows(self, grid: Grid, schedule: Schedule, predicts: str, whole: bool) -> Program:
        """whole: whether the middles are at whole training indices, as `grid` is."""
        line = Coordinates.of(grid, schedule, predicts)
        down, up = ancestral(grid, self.eta, self.rectified)
        noise = self.s_noise * grid.sigmas[1:] * up
        builder = ProgramBuilder(schedule, predicts, registers=2, unguided=self.cfg_pp)
        for i, time in enumerate(grid.times):
            level, alpha_s = (grid.alphas[i], grid.sigmas[i]), grid.alphas[i + 1]
            lower = (1.0, grid.ratios[i + 1] * down[i])
            u, u_lower, scale = line.u(level), line.u(lower), alpha_s * line.scale(lower)
            added: Terms = {**line.terms(level, D=alpha_s, d=0.0), "D_u": -alpha_s} if self.cfg_pp else {}
            if lower[1] == 0 or (whole and time == 0):  # below index 0 no network is evaluated
                step = self._estimate(line, level, D=scale, d=scale * u_lower)
                builder.rows(time, levels=level, x={**combined((1.0, step), (1.0, added)), "z": noise[i]})
                continue
            middle_time, middle = at_ratio(schedule, self._middle(schedule, grid.ratios[i], lower[1]))
            share = 1.0  # of the middle's D
            if whole:
                middle_time = np.minimum(middle_time.round(), time - 1)
                middle = schedule.levels(middle_time)
                share = float(np.log(u_lower / u) / (2 * np.log(line.u(middle) / u)))
            there, on_D = line.scale(middle), scale * (1 - u_lower / u)
            to_middle = self._estimate(line, level, D=there, d=there * line.u(middle))
            start = self._estimate(line, level, D=scale - share * on_D, d=scale * u_lower)  # w = D + u d
            builder.rows(time, levels=level, x=to_middle, r1=combined((1.0, start), (1.0, added)))
            rest = self._estimate(line, middle, D=share * on_D, d=0.0)
            builder.rows(middle_time, levels=middle, x={**rest, "r1": 1.0, "z": noise[i]})
        return builder.program(sampler=repr(self), order=2)

    def _middle(self, schedule: Schedule, start: float, end: float) -> float:
        """sigma / alpha half-way in log-SNR between two; from pure noise as ComfyUI has it, or half-way in log u."""
        if np.isfinite(start):
            return float(np.sqrt(start * end))
        if isinstance(schedule, FlowMatching):
            return max(NEARLY_NOISE, end)
        u = np.sqrt(end / (1 + end))
        return float(u / (1 - u))

    def _estimate(self, line: Coordinates, level: tuple[Any, Any], D: Any, d: Any) -> Terms:
        """D and d of the output that the solver follows: the unguided one under cfg_pp."""
        return line.unguided(D=D, d=d) if self.cfg_pp else line.terms(level, D=D, d=d)
