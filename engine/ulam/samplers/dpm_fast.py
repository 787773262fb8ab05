"""DPM-Solver-fast: steps of order 3 on equal pieces of log-SNR, the last of lower order [Lu 2022a]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..programs.builder import ProgramBuilder
from ..programs.program import Program
from ..schedules import Array, Schedule
from .arguments import check_number
from .dpm_solver import DPMSolver, singlestep_blocks
from .euler import at_ratio
from .exponential import Form
from .grid import Grid, GridSampler
from .stages import Nodes


@dataclass(frozen=True)
class DPMFast(GridSampler):
    """DPM-Solver of order 3 in the noise form with `steps` evaluations, on a grid of its own [Lu 2022a].

    steps // 3 + 1 pieces of equal length in log-SNR, of orders 3, ..., 3, 2, 1 where steps is a multiple of 3, else 3,
    ..., 3 and steps % 3 [k-diffusion, sample_dpm_fast]. Pieces of order 3 are evaluated at their start and
    at 1/3 and 2/3 of the way, those of order 2 at their start and half-way. So it is `DPMSolver` with
    kind="singlestep", order=3 and variant="dpmsolver" on these levels.

    The pieces reach from the first level of the grid that spacing, timesteps or sigmas name to its end, or to its last
    level where that end is the data, which log-SNR never reaches: noise of that level is left in the sample, as in
    k-diffusion. A single step goes to the data. A first level of pure noise is left in a piece of its
    own, of order 1, to the second level of that grid. On flow schedules ComfyUI takes log t for log-SNR.

    eta > 0: a piece goes down to a lower level than its end, not below the last, and s_noise times the noise between
    the two is added back, as in `EulerAncestral`; a piece from pure noise adds none. A1111 has eta = 1. Networks with
    time="index" take eta = 0 alone.

    Order 2 (with eta > 0 weakly; 3 where steps % 3 is 2 and eta is 0); two registers beyond x. steps, spacing,
    timesteps, sigmas, final: see `GridSampler`. Raises ValueError naming the argument.
    """

    eta: float = 0.0
    s_noise: float = 1.0

    section: ClassVar[str] = "Solvers of the probability flow"
    use: ClassVar[str] = "recipes that name it."
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"eta": 1.0},)
    elsewhere: ClassVar[tuple[str, ...]] = ("dpm_fast",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(eta=check_number("eta", self.eta, 0), s_noise=check_number("s_noise", self.s_noise, 0))

    def grid(self, schedule: Schedule) -> Grid:
        """Every level at which the network is evaluated, and the end."""
        given = super().grid(schedule)
        ratios = given.ratios[given.ratios > 0]
        pure = int(np.isinf(ratios[0]))
        rows = len(given) - pure
        if rows == 0 or len(ratios) < pure + 2:  # one step, or to the data at once
            return given
        inside = ratios[pure] * np.exp(-pieces(rows) * np.log(ratios[pure] / ratios[-1]))
        times, (alphas, sigmas) = at_ratio(schedule, inside)
        times[0], alphas[0], sigmas[0] = given.times[pure], given.alphas[pure], given.sigmas[pure]
        end = int(np.flatnonzero(given.ratios > 0)[-1])
        return Grid(
            np.append(given.times[:pure], times),
            np.concatenate([given.alphas[:pure], alphas, given.alphas[end : end + 1]]),
            np.concatenate([given.sigmas[:pure], sigmas, given.sigmas[end : end + 1]]),
        )

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        solver = DPMSolver(len(grid), 3, "singlestep", "dpmsolver")
        sizes = singlestep_blocks(grid, 3, lower_order_final=True, euler_at_final=False)
        builder, form, first = ProgramBuilder(schedule, predicts, registers=max(sizes)), Form(data=False), 0
        for size in sizes:
            piece, std = self._piece(grid, schedule, first, size)
            solver.block(builder, piece, form, 0, size, std)
            first += size
        return builder.program(sampler=repr(self), order=3 if len(grid) % 3 == 2 and self.eta == 0 else 2)

    def on_indices(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        if self.eta > 0:
            raise ValueError(f"eta: got {self.eta:g} for a network told whole training indices, expected 0")
        return super().on_indices(grid, schedule, predicts)

    def _piece(self, grid: Grid, schedule: Schedule, first: int, size: int) -> tuple[Grid, float]:
        """The levels of a piece, the last being the lower one that it goes down to, and the noise that it adds."""
        rows = slice(first, first + size)
        times, alphas, sigmas = grid.times[rows], grid.alphas[first : rows.stop + 1], grid.sigmas[first : rows.stop + 1]
        u, u_next = grid.ratios[first], grid.ratios[rows.stop]
        up = min(1.0, self.eta * np.sqrt(1 - (u_next / u) ** 2)) if alphas[0] > 0 else 0.0
        lower = max(u_next * np.sqrt(1 - up**2), grid.ratios[-1])
        if lower < u_next:
            between, inside = at_ratio(schedule, u * (lower / u) ** (np.arange(1, size) / size))
            times = np.append(times[:1], between)
            alphas, sigmas = (
                np.concatenate([own[:1], new, own[-1:]]) for own, new in zip((alphas, sigmas), inside, strict=True)
            )
            sigmas[-1] = alphas[-1] * lower
        std = self.s_noise * alphas[-1] * np.sqrt((u_next - lower) * (u_next + lower))
        return Nodes(times, alphas, sigmas), float(std)


def pieces(rows: int) -> Array:
    """[rows] places in [0, 1) of the evaluations, their share of the way in log-SNR."""
    orders = [3] * (rows // 3) + [rows % 3] * (rows % 3 > 0)
    if rows % 3 == 0:
        orders[-1:] = [2, 1]
    places = [piece + j / order for piece, order in enumerate(orders) for j in range(order)]
    return np.array(places) / len(orders)
