"""DPM-Solver++ SDE: two stages a step, on one Brownian path [k-diffusion]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..programs.builder import ProgramBuilder
from ..programs.program import Program
from ..schedules import FlowMatching, Schedule
from .arguments import check_number
from .euler import ancestral
from .grid import Grid, GridSampler
from .stages import data_stages, nodes_between


@dataclass(frozen=True)
class DPMSolverPPSDE(GridSampler):
    """Ancestral DPM-Solver++ of two stages, the middle at lambda_m = lambda_s + r h, h = lambda_t - lambda_s:

        x_m = alpha_m (D_s + down_m eps_s + s_noise up_m z_m)
        x_t = alpha_t (D_s + down_t eps_s + (1 - down_t / u_s) (D_m - D_s) / (2 r) + s_noise up_t z_t)

    [k-diffusion, sample_dpmpp_sde], D_m being evaluated at x_m, u = sigma / alpha, and from u_s to u = u_m or u_t

        up = min(u, eta u sqrt(1 - (u / u_s)^2)),    down = sqrt(u^2 - up^2)

    k-diffusion takes z_m and z_t from one Brownian path W(u), each as an increment over the square root of its time. So
    they are standard normal with correlation rho = sqrt((u_s - u_m) / (u_s - u_t)), which is that of z_m and
    rho z_m + sqrt(1 - rho^2) z with a fresh z: the second row adds the fresh part, and no tree is needed. (On flow
    schedules ComfyUI's path runs in t instead of u.) The reverse SDE's own noise has nearly this correlation, and in
    `SEEDS` exactly its own; independent noises would leave the weak order at 1.

    Order 2 (weak) at eta = 1 and eta = 0, else 1: other eta compose to other laws than one step has, as in
    `EulerAncestral`. Two evaluations a step, one in a first step from alpha = 0 and in a last one to the data; one
    register beyond x. Where a network is told whole training indices alone, middles are at the nearest below the
    start, with their own r. s_noise other than 1 changes the marginals.
    r: in [0.01, 1]. steps, spacing, timesteps, sigmas, final: see `GridSampler`. Raises ValueError naming the argument.
    """

    eta: float = 1.0
    s_noise: float = 1.0
    r: float = 0.5

    section: ClassVar[str] = "Stochastic"
    use: ClassVar[str] = "recipes that name it, 10 to 25 steps (counted in levels, each two evaluations)."
    elsewhere: ClassVar[tuple[str, ...]] = ("dpmpp_sde",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(
            eta=check_number("eta", self.eta, 0),
            s_noise=check_number("s_noise", self.s_noise, 0),
            r=check_number("r", self.r, 0.01, 1),
        )

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        return self._rows(grid, schedule, predicts, whole=False)

    def on_indices(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        return self._rows(grid, schedule, predicts, whole=True)

    def _rows(self, grid: Grid, schedule: Schedule, predicts: str, whole: bool) -> Program:
        builder = ProgramBuilder(schedule, predicts, registers=2)
        down, up = ancestral(grid, self.eta)
        for i, time in enumerate(grid.times):
            nodes = nodes_between(schedule, grid, i, [self.r], whole)
            if nodes is None:
                alpha_t, sigma_t = grid.alphas[i + 1], grid.sigmas[i + 1]
                x = {"D": alpha_t, "eps": sigma_t * down[i], "z": self.s_noise * sigma_t * up[i]}
                builder.rows(time, levels=(grid.alphas[i], grid.sigmas[i]), x=x)
                continue
            start_to_middle = Grid(nodes.times[:1], nodes.alphas[:2], nodes.sigmas[:2])
            fall, rise = np.append(ancestral(start_to_middle, self.eta), [[down[i]], [up[i]]], axis=1)
            r = (nodes.log_snr[1] - nodes.log_snr[0]) / (nodes.log_snr[2] - nodes.log_snr[0])
            v = np.zeros((2, 2))
            v[1, 1] = (1 - fall[1] * nodes.ratios[2] / nodes.ratios[0]) / (2 * r)
            path = nodes.sigmas if isinstance(schedule, FlowMatching) else nodes.ratios
            shared = min((path[0] - path[1]) / (path[0] - path[2]), 1.0)  # rho^2
            noise = np.array([[1.0, 0.0], [np.sqrt(shared), np.sqrt(1 - shared)]])
            std = self.s_noise * nodes.sigmas[1:] * rise
            data_stages(builder, nodes, nodes.sigmas[1:] * fall, v, std[:, None] * noise)
        order = 2 if self.eta in (0, 1) else 1
        return builder.program(sampler=repr(self), order=order)
