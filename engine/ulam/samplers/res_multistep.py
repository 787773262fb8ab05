"""RES: the refined exponential multistep solver of order 2 [Zhang 2023b], deterministic and ancestral."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..programs.builder import ProgramBuilder
from ..programs.program import Program
from ..schedules import Schedule
from .arguments import check_flag, check_number
from .euler import Coordinates, ancestral
from .exponential import moments
from .grid import Grid, GridSampler


@dataclass(frozen=True)
class RESMultistep(GridSampler):
    """The exponential integrator of D on the last two estimates, in log u, with exact weights.

    In the coordinates (w, u) of `Coordinates` (w = x / alpha, u = sigma / alpha; on flow schedules w = x, u = t), from
    u_i to u, h = log(u_i / u) [Zhang 2023b, arXiv 2308.02157; ComfyUI, sample_res_multistep]:

        w = exp(-h) w_i + (c_0 - v) D_i + v D_{i-1},    v = c_1 / tau,    c_k = int_0^1 h exp(-h (1 - tau)) tau^k dtau

    with tau = -log(u_{i-1} / u_i) / h, where D_{i-1} lies. The first row is D_i + u d_i, a row that ends at the data
    D_i. Off flow schedules this is DPMSolverPP(variant="heun", lower_order_final=False).

    eta > 0: u is a lower level than u_{i+1}, and noise is added back as in `EulerAncestral`, scaled by s_noise
    (sample_res_multistep_ancestral, where eta = 1). As there, tau is then the length of the last step down,
    -log(u_{i-1} / u_down) / h, though D_{i-1} lies nearer. Beside ComfyUI: on flow schedules its noise is that of
    alpha = 1; ours keeps alpha as it should be.

    cfg_pp: the D_u of the unguided output in the history, the guided D on the way [ComfyUI,
    sample_res_multistep_cfg_pp, after Chung 2024]: w = exp(-h) (w_i + D_i - D_u,i) + (c_0 - v) D_u,i + v D_u,i-1, the
    first row D_i + u d_u,i.

    Order 2 (weakly 1 with eta > 0; under cfg_pp without guidance: it moves the state once a step); one evaluation a
    step; one register beyond x, the last estimate, and another under cfg_pp. steps, spacing, timesteps, sigmas, final:
    see `GridSampler`. Raises ValueError naming the argument.
    """

    eta: float = 0.0
    s_noise: float = 1.0
    cfg_pp: bool = False

    section: ClassVar[str] = "Solvers of the probability flow"
    use: ClassVar[str] = "10 to 30 steps; recipes that name it."
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"eta": 1.0}, {"cfg_pp": True})
    elsewhere: ClassVar[tuple[str, ...]] = (
        "res_multistep",
        "res_multistep_ancestral",
        "res_multistep_cfg_pp",
        "res_multistep_ancestral_cfg_pp",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("cfg_pp", self.cfg_pp)
        self._set(eta=check_number("eta", self.eta, 0), s_noise=check_number("s_noise", self.s_noise, 0))

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        line = Coordinates.of(grid, schedule, predicts)
        down, up = ancestral(grid, self.eta)
        noise, registers = self.s_noise * grid.sigmas[1:] * up, min(2, len(grid))
        builder = ProgramBuilder(schedule, predicts, registers=registers, unguided=self.cfg_pp)
        u_before = reached = np.asarray(np.nan)  # the last row's level, and what it stepped down to
        for i, time in enumerate(grid.times):
            level, lower = (grid.alphas[i], grid.sigmas[i]), (1.0, grid.ratios[i + 1] * down[i])
            u, u_lower, scale = line.u(level), line.u(lower), grid.alphas[i + 1] * line.scale(lower)
            v = 0.0
            if i and u_lower > 0 and reached > 0:
                h = np.log(u / u_lower)
                v = moments(float(h), 2)[1] * h / np.log(reached / u_before)
            if self.cfg_pp:
                part = u_lower / u if i and u_lower > 0 else 1.0  # of the guided D; w = D_u + u d_u
                x = line.terms(level, D=scale * part, d=0.0)
                x |= line.unguided(D=scale * (1 - part - v), d=scale * u_lower)
                D = line.unguided(D=1.0)
            else:
                x, D = line.terms(level, D=scale * (1 - v), d=scale * u_lower), line.terms(level, D=1.0, d=0.0)
            kept: dict[str, Any] = {"r1": D} if i + 1 < len(grid) else {}
            past = {"r1": scale * v} if v else {}
            builder.rows(time, levels=level, x={**x, **past, "z": noise[i]}, **kept)
            u_before, reached = u, u_lower
        return builder.program(sampler=repr(self), order=1 if self.eta else 2)
