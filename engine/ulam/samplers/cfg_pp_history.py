"""CFG++ with a history: Euler's step of CFG++, a quarter of the way to Adams-Bashforth's [ComfyUI, cfgpp_ud10_ab]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..programs.builder import ProgramBuilder
from ..programs.program import Program
from ..schedules import Schedule
from .arguments import check_flag, check_number
from .euler import Coordinates
from .exponential import combined
from .grid import Grid, GridSampler


@dataclass(frozen=True)
class CFGPPHistory(GridSampler):
    """From t_i to t_{i+1}, with D of the guided output and eps_u of the unguided one:

        E = alpha_{i+1} D_i + sigma_{i+1} (eps_u,i + b (h_i / h_{i-1}) (eps_u,i - eps_u,i-1))
        w_{i+1} = E + a (h_i / (2 h_{i-1})) h_i (d_i - d_{i-1}),    d_i = (E - w_i) / h_i

    in the coordinates (w, u) of `Coordinates` (w = x / alpha, u = sigma / alpha; on flow schedules w = x, u = t), with
    h_i = u_{i+1} - u_i, a = history and b = unguided_history; the first row gives E without its last term. E alone is
    CFG++'s step [Chung 2024]; a = 1 is Adams-Bashforth's of order 2 on d. There is no paper of the rest.

    A last row that ends at the data gives, with extrapolated=True, the line through the last two D at sigma = 0, D_i +
    (D_i - D_{i-1}) u_i / (u_{i-1} - u_i), else D_i. Guidance weights lie in [0, 1], or a little above.

    Order 0, and 1 with unguided_history=0: the term in b adds b sigma d eps_u / du to the slope however small the
    steps, so that without guidance the end is not the probability flow's. One evaluation a step; three registers
    beyond x (d, the last eps_u and the unguided output). steps, spacing, timesteps, sigmas, final: see
    `GridSampler`. Raises ValueError naming the argument.
    """

    history: float = 0.25
    unguided_history: float = 0.1
    extrapolated: bool = True

    section: ClassVar[str] = "Solvers of the probability flow"
    use: ClassVar[str] = "recipes that name it, under guidance as CFG++ takes it."
    elsewhere: ClassVar[tuple[str, ...]] = ("cfgpp_ud10_ab",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("extrapolated", self.extrapolated)
        for name in ("history", "unguided_history"):
            self._set(**{name: check_number(name, getattr(self, name), 0)})

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        line, n = Coordinates.of(grid, schedule, predicts), len(grid)
        levels = grid.alphas, grid.sigmas
        u, scale = line.u(levels), line.scale(levels)
        remembers = self.unguided_history > 0 and bool((grid.sigmas[2:] > 0).any())
        builder = ProgramBuilder(schedule, predicts, registers=1 if n == 1 else 2 + remembers, unguided=True)
        for i in range(n):
            level = grid.alphas[i], grid.sigmas[i]
            to_data = grid.sigmas[i + 1] == 0
            if to_data and i and self.extrapolated:
                ahead = grid.alphas[i + 1] * u[i] / (u[i - 1] - u[i])
                x: dict[str, Any] = {"D": grid.alphas[i + 1] + ahead, "r1": -ahead}
                builder.rows(grid.times[i], levels=level, x=x)
                continue
            h, past = u[i + 1] - u[i], (u[i + 1] - u[i]) / (u[i] - u[i - 1]) if i else 0.0
            more = self.unguided_history * past
            E: dict[str, Any] = {"D": grid.alphas[i + 1], "eps_u": grid.sigmas[i + 1] * (1 + more)}
            if more and not to_data:
                E["r2"] = -grid.sigmas[i + 1] * more
            half = self.history * past / 2
            x = E
            if half:
                x = combined((1 + half, E), (-half * scale[i + 1], {"x": 1 / scale[i], "r1": h}))
            builder.rows(grid.times[i], levels=level, x=x, **self._kept(grid, i, E, h, (scale[i], scale[i + 1])))
        return builder.program(sampler=repr(self), order=0 if self.unguided_history else 1)

    def _kept(self, grid: Grid, i: int, E: dict[str, Any], h: float, scale: tuple[float, float]) -> dict[str, Any]:
        """What the next row needs of row i: D where it extrapolates, else d and eps_u; all with the row's old x."""
        if i + 1 == len(grid):
            return {}
        to_data = grid.sigmas[i + 2] == 0
        if to_data and self.extrapolated:
            return {"r1": {"D": 1.0}}
        d = combined((1 / (h * scale[1]), E), (-1 / (h * scale[0]), {"x": 1.0}))
        return {"r1": d} if to_data or not self.unguided_history else {"r1": d, "r2": {"eps_u": 1.0}}
