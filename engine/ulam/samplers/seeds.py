"""SEEDS: exponential integrators of the reverse SDE, whose stages share its noise exactly [Gonzalez 2023]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..programs.builder import ProgramBuilder
from ..programs.program import Program
from ..schedules import Array, Schedule
from .arguments import check_choice, check_number, check_whole
from .exponential import Form, moments
from .grid import Grid, GridSampler
from .stages import Nodes, data_stages, nodes_between, one_stage

VARIANTS = ("phi_1", "phi_2")


@dataclass(frozen=True)
class SEEDS(GridSampler):
    """SEEDS-2 and SEEDS-3 in the data form: stages at lambda_k = lambda_s + r_k h, the last r being 1, each

        x_k = (sigma_k / sigma_s) exp(-eta r_k h) x_s + alpha_k (c_0 D_s + b_k (D_{k-1} - D_s)) + sigma_k N_k

    [Gonzalez 2023, in the data form of ComfyUI's seeds_2 and seeds_3], h = lambda_t - lambda_s, c_j = int_0^1 g
    exp(-g (1 - tau)) tau^j dtau with g = (1 + eta) r_k h. D_{k-1} is evaluated at the stage before, and b_k = c_1 r_k /
    r_{k-1}; with solver_type="phi_1" (SEEDS-2 alone) it is c_0 r_k / (2 r_{k-1}).

    N_k is the noise of the reverse SDE with eta times its strength, the same path in all stages of a step:

        N_k = exp(-eta (r_k - r_{k-1}) h) N_{k-1} + s_noise sqrt(1 - exp(-2 eta (r_k - r_{k-1}) h)) z_k,    N_0 = 0

    stages: 2 or 3. r: the middle's place for stages=2; r_1, r_2: those for stages=3. eta = 0 is the flow.
    Order 2 (weak) for both, and for the flow 2 and 3. Evaluations: `stages` a step, one in a first step from alpha = 0
    and in a last one to the data; stages - 1 registers beyond x. Where a network is told whole training indices alone,
    middles are at the nearest below the start. s_noise other than 1 changes the marginals.
    r=1 with solver_type="phi_2" is the exponential trapezoidal rule: ComfyUI's exp_heun_2_x0_sde, with eta=0 its
    exp_heun_2_x0.
    steps, spacing, timesteps, sigmas, final: see `GridSampler`. Raises ValueError naming the argument.
    """

    stages: int = 2
    eta: float = 1.0
    s_noise: float = 1.0
    r: float = 0.5
    r_1: float = 1 / 3
    r_2: float = 2 / 3
    solver_type: str = "phi_1"

    section: ClassVar[str] = "Stochastic"
    use: ClassVar[str] = "noise with few steps, 10 to 30 (counted in levels, each 2 or 3 evaluations)."
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"stages": 3}, {"eta": 0.0, "r": 1.0, "solver_type": "phi_2"})
    elsewhere: ClassVar[tuple[str, ...]] = ("seeds_2", "seeds_3", "exp_heun_2_x0", "exp_heun_2_x0_sde")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("solver_type", self.solver_type, VARIANTS)
        places = {name: check_number(name, getattr(self, name), 0.01, 1) for name in ("r", "r_1", "r_2")}
        if not places["r_1"] < places["r_2"]:
            raise ValueError(f"r_1, r_2: got {places['r_1']:g} and {places['r_2']:g}, expected r_1 < r_2")
        self._set(
            stages=check_whole("stages", self.stages, 2, 3),
            eta=check_number("eta", self.eta, 0),
            s_noise=check_number("s_noise", self.s_noise, 0),
            **places,
        )

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        return self._rows(grid, schedule, predicts, whole=False)

    def on_indices(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        return self._rows(grid, schedule, predicts, whole=True)

    def _rows(self, grid: Grid, schedule: Schedule, predicts: str, whole: bool) -> Program:
        builder = ProgramBuilder(schedule, predicts, registers=self.stages)
        fractions = [self.r] if self.stages == 2 else [self.r_1, self.r_2]
        for i in range(len(grid)):
            nodes = nodes_between(schedule, grid, i, fractions, whole)
            if nodes is None:
                one_stage(builder, grid, Form(data=True, eta=self.eta, s_noise=self.s_noise), i)
                continue
            ways = nodes.log_snr[1:] - nodes.log_snr[0]
            along = nodes.sigmas[1:] * np.exp(-self.eta * ways)
            data_stages(builder, nodes, along, self._weights(ways), self._noise(nodes))
        return builder.program(sampler=repr(self), order=2 if self.eta > 0 else self.stages)

    def _weights(self, ways: Array) -> Array:
        """b_k of the stage before, [stages, stages] as `data_stages` takes them; ways: r_k h [stages]."""
        b = np.zeros((self.stages, self.stages))
        for k in range(1, self.stages):
            c = moments((1 + self.eta) * float(ways[k]), 2)
            slope = c[0] / 2 if self.stages == 2 and self.solver_type == "phi_1" else c[1]
            b[k, k] = slope * ways[k] / ways[k - 1]
        return b

    def _noise(self, nodes: Nodes) -> Array:
        """[stages, stages]: what sigma_k N_k has of the noise of each row."""
        noise = np.zeros((self.stages, self.stages))
        for k, way in enumerate(np.maximum(np.diff(nodes.log_snr), 0.0)):  # a middle may be the end, to rounding
            if k:
                noise[k] = np.exp(-self.eta * way) * noise[k - 1]
            noise[k, k] = self.s_noise * np.sqrt(-np.expm1(-2 * self.eta * way))
        return nodes.sigmas[1:, None] * noise
