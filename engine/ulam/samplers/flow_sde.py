"""Stochastic steps of flows, as reinforcement learning on flow models takes them [Liu 2025; Wang 2025]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..programs.builder import ProgramBuilder
from ..programs.clip import Clip
from ..programs.program import Program
from ..schedules import Schedule
from .arguments import check_choice, check_clip, check_number
from .grid import Grid, GridSampler

FORMS = ("grpo", "cps")


@dataclass(frozen=True)
class FlowSDE(GridSampler):
    """From t to s < t of a flow, with noise in every step, in one of two forms.

    form="grpo", an Euler step of the SDE with the flow's marginals [Liu 2025, Flow-GRPO, eq. 9], v = eps - D:

        x_s = x_t + (s - t) (v + g^2 / (2 t) eps) + g sqrt(t - s) z,    g = eta sqrt(t / (1 - t))

    where t = 1 takes 1 - t of the next level. It adds noise in its last step too, as Flow-GRPO does.
    form="cps", which keeps the marginals' coefficients in any number of steps [Wang 2025, CPS]:

        x_s = (1 - s) D + s cos(eta pi / 2) eps + s sin(eta pi / 2) z

    On other schedules the same in x / (alpha + sigma) and t = sigma / (alpha + sigma), which make a flow of them.
    eta: the strength of the noise, 0 for `Euler`; Flow-GRPO's default is 0.7. clip: (lo, hi) for D, or a
    `DynamicThreshold`. steps, spacing, timesteps, sigmas, final: see `GridSampler`. Order 1 (weak); of cps 0, as its
    noise does not shrink with the step. NFE/step 1, no register beyond x. `ulam.rollouts.mixed` has noise in a window
    of rows alone. Raises ValueError naming the argument.
    """

    eta: float = 0.7
    form: str = "grpo"
    clip: Clip = None

    section: ClassVar[str] = "Stochastic"
    use: ClassVar[str] = "rollouts of flow models, 10 to 40 steps: log-probabilities of its rows, `ulam.rollouts`."
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"form": "cps"},)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("form", self.form, FORMS)
        self._set(eta=check_number("eta", self.eta, 0, 1 if self.form == "cps" else np.inf), clip=check_clip(self.clip))

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        scales = grid.alphas + grid.sigmas
        times = grid.sigmas / scales
        t, s, c_s = times[:-1], times[1:], scales[1:]
        if self.form == "cps":
            angle = self.eta * np.pi / 2
            step = {"D": 1 - s, "eps": s * np.cos(angle), "z": s * np.sin(angle)}
        else:
            g2 = self.eta**2 * t / (1 - np.where(t == 1, s, t))
            step = {"x": 1 / scales[:-1], "D": t - s, "eps": -(t - s) * (1 + g2 / (2 * t)), "z": np.sqrt(g2 * (t - s))}
        builder = ProgramBuilder(schedule, predicts, clip=self.clip)
        builder.rows(
            grid.times, levels=(grid.alphas[:-1], grid.sigmas[:-1]), x={name: c_s * a for name, a in step.items()}
        )
        return builder.program(sampler=repr(self), order=0 if self.form == "cps" and self.eta > 0 else 1)
