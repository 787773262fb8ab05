"""DDIM: one marginal-preserving step along the noise estimate [Song 2021a]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..programs.builder import ProgramBuilder
from ..programs.clip import Clip
from ..programs.program import Program
from ..schedules import Schedule, correlation
from .arguments import check_clip, check_flag, check_number
from .grid import Grid, GridSampler


@dataclass(frozen=True)
class DDIM(GridSampler):
    """x_s = alpha_s D + sqrt(sigma_s^2 - std^2) eps + std z, from t to the next time s of the grid.

    std = eta sigma_s sqrt(1 - q^2) with q = alpha_t sigma_s / (alpha_s sigma_t), any schedule [Song 2021a,
    eq. 12 and 16]: eta = 0 is deterministic (the exponential Euler step of the probability-flow ODE, order
    1), eta = 1 has DDPM's posterior variance. An eta above 1 is limited to std = sigma_s, which keeps the
    marginals. A last row that ends at the data gives D.

    clip: (lo, hi) for D. The step then follows the network's own eps (as diffusers does), or, with
    `rederive_eps=True`, eps = (x_t - alpha_t D) / sigma_t of the clipped D (as guided-diffusion does).
    cfg_pp: eps_u of the unguided output in the place of eps, D being the guided one's [CFG++, Chung 2024];
    guidance weights lie in [0, 1] then, or a little above.
    steps, spacing, timesteps, sigmas, final: see `GridSampler`. Order 1. Raises ValueError naming the argument.
    """

    eta: float = 0.0
    clip: Clip = None
    rederive_eps: bool = False
    cfg_pp: bool = False

    convention: ClassVar[str] = "index"
    default_spacing: ClassVar[str] = "leading"
    section: ClassVar[str] = "Ancestral and marginal-preserving steps"
    use: ClassVar[str] = "the plain choice at 20 to 100 steps; eta = 0 maps noise to data smoothly, eta = 1 is DDPM."
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"eta": 1.0}, {"cfg_pp": True})
    elsewhere: ClassVar[tuple[str, ...]] = ("ddim", "DDIMScheduler")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("rederive_eps", self.rederive_eps)
        if check_flag("cfg_pp", self.cfg_pp) and self.rederive_eps:
            raise ValueError("rederive_eps, cfg_pp: got both, expected at most one of them: each says which eps it is")
        self._set(clip=check_clip(self.clip), eta=check_number("eta", self.eta, 0))

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        alpha_t, sigma_t = grid.alphas[:-1], grid.sigmas[:-1]
        alpha_s, sigma_s = grid.alphas[1:], grid.sigmas[1:]
        q = correlation(alpha_t, sigma_t, alpha_s, sigma_s)
        std = sigma_s * np.minimum(self.eta * np.sqrt((1 - q) * (1 + q)), 1.0)
        # sqrt(sigma_s^2 - std^2), without cancellation for eta = 1
        along = sigma_s * np.sqrt(np.maximum(1 - self.eta**2 + (self.eta * q) ** 2, 0.0))

        if self.clip is not None and self.rederive_eps:
            step = {"x": along / sigma_t, "D": alpha_s - along * alpha_t / sigma_t, "z": std}
        else:
            step = {"D": alpha_s, "eps_u" if self.cfg_pp else "eps": along, "z": std}
        builder = ProgramBuilder(schedule, predicts, clip=self.clip, unguided=self.cfg_pp)
        builder.rows(grid.times, levels=(alpha_t, sigma_t), x=step)
        return builder.program(sampler=repr(self))
