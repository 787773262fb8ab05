"""RePaint: inpainting with any unconditional model, by jumps back and forth in time [Lugmayr 2022]."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

import numpy as np

from ..programs.builder import ProgramBuilder
from ..programs.clip import Clip
from ..programs.program import Program
from ..schedules import Schedule, posterior
from .arguments import check_clip, check_number, check_whole
from .grid import Grid, GridSampler


@dataclass(frozen=True)
class RePaint(GridSampler):
    """Steps of DDIM(eta) blended with the known image y, and jumps back to higher noise [Lugmayr 2022, alg. 1].

        x_s <- alpha_s D + sqrt(sigma_s^2 - std^2) eps + std z,  std = eta sigma_s sqrt(1 - q^2)
        x_s <- mask (alpha_s y + sigma_s z') + (1 - mask) x_s                                [eq. 8]
        x_t <- alpha_t / alpha_s x_s + sqrt(Var[x_t | x_s]) z       a move back, without the network

    from t to the next time s of the grid, q = alpha_t sigma_s / (alpha_s sigma_t). The mask is 1 where the image is
    known. Every `jump_length` steps the chain goes `jump_length` levels back, `jump_n_sample` - 1 times, so that the
    new part comes to agree with the known one. eta = 1 is the paper's DDPM step; diffusers' default is 0.

    diffusers draws one noise for z and z'; and its moves back, on grids that leave training steps out, add the noise of
    later steps than those they undo. Here z and z' are independent, and moves back have the exact law.

    clip: (lo, hi) for D, or a `DynamicThreshold`; eps stays the network's own. steps, spacing, timesteps, sigmas,
    final: see `GridSampler`. Order 1 (the unconditional law, for any jumps). NFE/step 1, and one for every step that
    is done again: steps + (jump_n_sample - 1) jump_length ((steps - 1) // jump_length) in all, 2410 at the paper's
    250, 10 and 10. No register beyond x. To fill in a masked part without training for it. Raises ValueError naming
    the argument.
    """

    jump_length: int = 10
    jump_n_sample: int = 10
    eta: float = 0.0
    clip: Clip = None

    convention: ClassVar[str] = "index"
    default_spacing: ClassVar[str] = "leading"
    section: ClassVar[str] = "Inpainting"
    use: ClassVar[str] = "filling in a masked part with a network that was not trained for it."
    elsewhere: ClassVar[tuple[str, ...]] = ("RePaintScheduler",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(
            jump_length=check_whole("jump_length", self.jump_length, 1),
            jump_n_sample=check_whole("jump_n_sample", self.jump_n_sample, 1),
            eta=check_number("eta", self.eta, 0, 1),
            clip=check_clip(self.clip),
        )

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        alpha_t, sigma_t = grid.alphas[:-1], grid.sigmas[:-1]
        alpha_s, sigma_s = grid.alphas[1:], grid.sigmas[1:]
        fresh = posterior(alpha_t, sigma_t, alpha_s, sigma_s)[2]
        std = self.eta * sigma_s * np.sqrt(fresh)
        along = sigma_s * np.sqrt(1 - self.eta**2 * fresh)
        back, spread = alpha_t / alpha_s, sigma_t * np.sqrt(fresh)

        builder = ProgramBuilder(schedule, predicts, clip=self.clip)
        for denoises, run in groupby(self._walk(len(grid)), key=lambda move: move[0]):
            at = np.array([level for _, level in run])
            if denoises:
                builder.rows(
                    grid.times[at],
                    levels=(alpha_t[at], sigma_t[at]),
                    known=(alpha_s[at], sigma_s[at]),
                    x={"D": alpha_s[at], "eps": along[at], "z": std[at]},
                )
            else:
                for level in at:
                    builder.moves(x={"x": back[level], "z": spread[level]})
        return builder.program(sampler=repr(self))

    def _walk(self, steps: int) -> list[tuple[bool, int]]:
        """(True, i) goes from level i to i + 1 of the grid, (False, i) back from i + 1 to i [Lugmayr 2022, fig. 9]."""
        length = self.jump_length
        jumps = {steps - left: self.jump_n_sample - 1 for left in range(0, steps - length, length)}
        walk, level = [], 0
        while level < steps:
            walk.append((True, level))
            level += 1
            if jumps.get(level, 0) > 0:
                jumps[level] -= 1
                walk += [(False, level - moved) for moved in range(1, length + 1)]
                level -= length
        return walk
