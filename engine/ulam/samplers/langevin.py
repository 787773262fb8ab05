"""Annealed Langevin dynamics and predictor-corrector samplers [Song & Ermon 2019; Song 2021b]."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ulam_kernels.arguments import described

from ..programs.builder import ProgramBuilder
from ..programs.program import Program
from ..schedules import Array, Schedule, VariancePreserving, posterior
from .arguments import check_choice, check_flag, check_number, check_whole
from .grid import Grid, GridSampler

PREDICTORS = ("reverse_diffusion", "ancestral", "none")
CORRECTORS = ("langevin", "none")
NORMS = ("expected", "chain")


@dataclass(frozen=True)
class AnnealedLangevin(GridSampler):
    """x <- x + a_i / 2 s(x) + sqrt(a_i) z, `steps_per_level` times a level, a_i = step sigma_i^2 / sigma_L^2.

    NCSN's sampler [Song & Ermon 2019, alg. 1] on the score s = -eps / sigma_i of each level i = 1..L in turn, for any
    schedule. The state is kept from level to level. denoise: end with D, one step of Tweedie's formula at the last
    level [Jolicoeur-Martineau 2021].

    levels: their number L, or a list as `sigmas` has it. step: the paper's epsilon; None is 0.2 sigma_L^2, the paper's
    2e-5 at its sigma_L = 0.01 (the published code's step_lr is step / 2). Below 4 sigma_L^2 it is stable whatever the
    data. spacing, timesteps, sigmas: see `GridSampler`; on VP schedules sigmas="exponential" gives the paper's
    geometric levels. Order 0: the law has a bias of order step that more levels do not remove. NFE/level
    steps_per_level, and one to denoise; no register beyond x. For NCSN networks, or to spend a large budget on mixing.
    Raises ValueError naming the argument.
    """

    steps: int | None = field(default=None, init=False, repr=False)
    final: str | float = field(default="zero", init=False, repr=False)
    levels: int | tuple[float, ...] | None = None
    steps_per_level: int = 100
    step: float | None = None
    denoise: bool = True

    convention: ClassVar[str] = "index"
    section: ClassVar[str] = "Langevin dynamics"
    use: ClassVar[str] = "NCSN networks, or a large budget to spend on mixing."

    def __post_init__(self) -> None:
        if self.levels is None and self.timesteps is None and self.sigmas is None:
            raise ValueError("levels: got None, expected a number of levels (or timesteps or sigmas)")
        if self.levels is not None and np.ndim(self.levels) > 0:
            if self.sigmas is not None:
                raise ValueError(f"levels: got {described(self.levels)}, expected a number where sigmas are given")
            self._set(sigmas=self.levels)
        elif self.levels is not None:
            self._set(steps=check_whole("levels", self.levels, 1))
        super().__post_init__()
        if self.step is not None and not check_number("step", self.step, 0) > 0:
            raise ValueError(f"step: got {self.step!r}, expected a number above 0")
        self._set(
            levels=self.steps,
            steps_per_level=check_whole("steps_per_level", self.steps_per_level, 1),
            step=None if self.step is None else float(self.step),
            denoise=check_flag("denoise", self.denoise),
        )

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        alpha, sigma = grid.alphas[:-1], grid.sigmas[:-1]
        step = 0.2 * sigma[-1] ** 2 if self.step is None else self.step
        root = np.sqrt(step) / sigma[-1]  # sqrt(a_i) = root sigma_i, so a_i / 2 s = -root^2 sigma_i / 2 eps

        def often(values: Array) -> Array:
            return np.repeat(values, self.steps_per_level)

        builder = ProgramBuilder(schedule, predicts)
        builder.rows(
            often(grid.times),
            levels=(often(alpha), often(sigma)),
            x={"x": 1.0, "eps": often(-(root**2) * sigma / 2), "z": often(root * sigma)},
        )
        if self.denoise:
            builder.rows(grid.times[-1], levels=(alpha[-1], sigma[-1]), x={"D": 1.0})
        return builder.program(sampler=repr(self), order=0)


@dataclass(frozen=True)
class PredictorCorrector(GridSampler):
    """`corrector_steps` Langevin steps at each level, then the predictor to the next [Song 2021b, sec. 4.2, app. G].

    With s = -eps / sigma_t the score, a = alpha_t / alpha_s and v = Var[x_t | x_s] = sigma_t^2 - a^2 sigma_s^2, from t
    to the next time s of the grid, on any schedule:

    | part | row |
    |---|---|
    | langevin [alg. 4, 5] | x <- x + h s + sqrt(2 h) z, h = 2 (a snr norm(z) / norm(s))^2 |
    | reverse_diffusion [eq. 46; alg. 2, 3] | x_s = (2 - a) x_t + v s + sqrt(v) z |
    | ancestral [Ho 2020, eq. 11; Song 2021b, eq. 47] | x_s = (x_t + v s) / a + std z |

    a is 1 on VE, and a^2 the paper's 1 - beta on every step of a VP schedule. std^2 is v on VP schedules (DDPM's beta)
    and v sigma_s^2 / sigma_t^2 elsewhere, as in the paper's code; so is the order of the parts. denoise: the last
    predictor row adds no noise, and gives D where it ends at the data (reverse_diffusion, but on VE, leaves noise there
    in a long step). predictor="none" stays at each level without moving the state, and ends at the last level.

    reverse_diffusion, and on VP schedules ancestral, suppose short steps: the state holds up to sigma_t alpha_s /
    (sigma_s alpha_t) times the noise that the network is told. With few steps use `DDIM(eta=1)`.

    norms="expected" takes the norms that are expected of n elements: norm(z) = sqrt(n) and norm(s) = sqrt(n) / sigma_t,
    that of -eps / sigma_t, the score of x_t given x_0, on any schedule (the score itself, its mean, is no longer). So
    h = 2 (a snr sigma_t)^2, a number of the row: on Gaussian data of any dimension the corrector leaves 1 / (1 - h /
    (2 P)) of the true variance P, which is at least sigma_t^2. (The paper's code averages norms over the batch, which
    comes to nearly the same but lets chains see one another.)

    norms="chain" measures the norms of each chain alone. On Gaussian data norm(s)^2 is then chi^2_n / P, the mean of
    its inverse P / (n - 2), and the variance that the corrector leaves (1 + (a snr)^2) (n + 2) / (n - 2) P: 2 / (n - 2)
    too large in standard deviation, without bound for n = 1 and 2. `ulam.sample` and `Engine.submit` refuse n below 3,
    and warn below 202, where that is more than 1%.

    steps, spacing, timesteps, sigmas, final: see `GridSampler`. Order 1 without a corrector; with one 0, because its
    bias, of order snr^2, does not vanish with more steps. NFE/step corrector_steps + 1 (less one for "none"); no
    register beyond x; norms="chain" needs reductions. For score networks trained on VE, VP or sub-VP SDEs and hundreds
    of steps; snr 0.16 suits VE, 0.01 to 0.1 the others. Raises ValueError naming the argument.
    """

    predictor: str = "reverse_diffusion"
    corrector: str = "langevin"
    corrector_steps: int = 1
    snr: float = 0.16
    denoise: bool = True
    norms: str = "expected"

    convention: ClassVar[str] = "index"
    section: ClassVar[str] = "Langevin dynamics"
    use: ClassVar[str] = "score networks trained on VE, VP or sub-VP SDEs, hundreds of steps."
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"norms": "chain"},)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("predictor", self.predictor, PREDICTORS)
        check_choice("corrector", self.corrector, CORRECTORS)
        check_choice("norms", self.norms, NORMS)
        if self.predictor == self.corrector == "none":
            raise ValueError("predictor, corrector: got 'none' for both, expected one at least")
        self._set(
            corrector_steps=check_whole("corrector_steps", self.corrector_steps, 1),
            snr=check_number("snr", self.snr, 0),
            denoise=check_flag("denoise", self.denoise),
        )

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        alpha, sigma = grid.alphas[:-1], grid.sigmas[:-1]
        reach = alpha / grid.alphas[1:] * self.snr  # a snr
        by_chain = self.norms == "chain"
        predict = self._predictor(grid, isinstance(schedule, VariancePreserving))
        builder = ProgramBuilder(schedule, predicts)
        for i, time in enumerate(grid.times):
            levels, r = (alpha[i], sigma[i]), reach[i]
            if self.corrector == "langevin":
                step = {"D": 2 * r**2, "z": 2 * r}  # of the score and z, both scaled by the chain's norms
                if not by_chain:
                    step = {"eps": -2 * r**2 * sigma[i], "z": 2 * r * sigma[i]}
                times = np.full(self.corrector_steps, time)
                builder.rows(times, levels=levels, normalise=by_chain, x={"x": 1.0, **step})
            if predict:
                to_data = self.denoise and grid.sigmas[i + 1] == 0
                row = {"D": 1.0} if to_data else {term: values[i] for term, values in predict.items()}
                builder.rows(time, levels=levels, x=row)
        return builder.program(sampler=repr(self), order=int(self.corrector == "none"))

    def _predictor(self, grid: Grid, preserving: bool) -> dict[str, Array]:
        """The predictor's terms, [n] each; none for predictor="none"."""
        alpha, sigma = grid.alphas[:-1], grid.sigmas[:-1]
        on_x, on_D, fresh = posterior(alpha, sigma, grid.alphas[1:], grid.sigmas[1:])
        std = sigma * np.sqrt(fresh)
        if self.predictor == "none":
            return {}
        if self.predictor == "reverse_diffusion":
            step = {"x": 2 - alpha / grid.alphas[1:], "eps": -sigma * fresh, "z": std}
        else:
            step = {"x": on_x, "D": on_D, "z": std if preserving else grid.sigmas[1:] * np.sqrt(fresh)}
        if self.denoise:
            step["z"] = np.append(step["z"][:-1], 0.0)
        return step
