"""DPM-Solver++: exponential integrators of the data estimate [Lu 2022b]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..programs.builder import ProgramBuilder
from ..programs.program import Program
from ..schedules import Schedule
from .arguments import check_flag
from .dpm_solver import _DPM
from .exponential import Terms, multistep_orders
from .grid import Grid

CFG_PP = "multistep", 2, False, None  # kind, order, sde and clip under cfg_pp


@dataclass(frozen=True)
class DPMSolverPP(_DPM):
    """DPM-Solver++ in the data form: with h = lambda_t - lambda_s and tau = (lambda - lambda_s) / h,

        x_t = (sigma_t / sigma_s) x_s + alpha_t (c_0 D_s + c_1 d_1 + c_2 d_2 / 2),
        c_k = int_0^1 h exp(-h (1 - tau)) tau^k dtau

    [Lu 2022b, sec. 4], d_1 and d_2 standing for the derivatives of D in tau, by divided differences.

    | kind | d_1, d_2 from | rows a step | order | NFE a row | registers beyond x |
    |---|---|---|---|---|---|
    | multistep, order 1 (DDIM) | | 1 | 1 | 1 | 0 |
    | multistep, order 2 (2M) | the last row | 1 | 2 | 1 | 1 |
    | multistep, order 3 (3M) | the last two rows | 1 | 2 | 1 | 2 |
    | singlestep, order 2 (2S) | one stage inside the step | 2 | 2 | 1 | 1 |
    | singlestep, order 3 | two stages inside the step | 3 | 3 | 1 | 2 |

    Multistep rows begin with orders 1 and 2, which leaves 3M with global order 2. So does 3M's c_2 term, which the
    authors' code (and k-diffusion's and diffusers') takes half as large as the expansion above has it; it is kept.

    variant: "midpoint" puts c_0 / 2 in the place of c_1 at order 2 [Lu 2022b, algorithms 1 and 2]; at order 3 of the
    singlestep kind it drops d_2 and takes d_1 from the last stage, which has order 3 where that lies at tau = 2/3.
    "heun" uses c_1, and both stages. These are diffusers' names. "dpmsolver", the name in the authors' code, differs
    from "midpoint" in the second stage of a singlestep row of order 3, where the paper has c_1 [Lu 2022a, algorithm 2]
    and diffusers c_0 / 2. Order 3 of the multistep kind has but one form.
    sde: the reverse SDE with eta times its noise: c_k at (1 + eta) h in the place of h, (sigma_t / sigma_s) exp(-eta h)
    x_s, and noise s_noise sigma_t sqrt(1 - exp(-2 eta h)) z, fresh in every row [SDE-DPM-Solver++, Lu 2022b, eta = 1;
    k-diffusion]; order 1 is DDPM at eta = 1. eta = 0 is the flow; s_noise other than 1 changes the marginals. The weak
    order is that of the table for multistep rows, 1 for the singlestep kind: the noise of its stages is not that of its
    steps (see `DPMSolverPPSDE` and `SEEDS`). k-diffusion's dpmpp_2m_sde is order 2 with lower_order_final=False, its
    solver_type being `variant`; dpmpp_3m_sde is order 3 with variant="heun", which says what its second row is.
    lower_order_final: the last two rows of fewer than 15 have at most orders 2 and 1 (multistep, the default there);
    a last step is broken up into one of order - 1 and one of order 1 (singlestep, the default only where the rows are
    no multiple of `order`). euler_at_final: the last row has order 1; so it has, always, where it ends at the data.
    clip: (lo, hi) for D, or a `DynamicThreshold`; the clipped D goes into the differences.
    cfg_pp: x_t = alpha_t (D_s + v (D_u,r - D_s)) + sigma_t eps_u,s with D_s of the guided output, eps_u,s and D_u,r, of
    the last row, of the unguided one [ComfyUI, sample_dpmpp_2m_cfg_pp, after Chung 2024]; multistep, order 2.

    The defaults are those of diffusers' DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler (kind="singlestep")
    and EDMDPMSolverMultistepScheduler (on an EDM schedule, predicts="raw"). diffusers' order 3 of the SDE adds
    -1/2 for +1/2 in c_2 (k-diffusion has it right), an error that does not vanish with h; ours follows the formula.
    steps (rows, so network evaluations), spacing, timesteps, sigmas, final: see `GridSampler`. Raises ValueError
    naming the argument.
    """

    cfg_pp: bool = False

    data: ClassVar[bool] = True
    section: ClassVar[str] = "Solvers of the probability flow"
    use: ClassVar[str] = (
        "the first choice at 10 to 30 steps, under strong guidance above all; sde=True where noise is "
        "wanted, at 25 steps or more."
    )
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"order": 3},
        {"kind": "singlestep"},
        {"kind": "singlestep", "order": 3},
        {"sde": True},
        {"cfg_pp": True},
        {"sde": True, "order": 3, "variant": "heun"},
    )
    elsewhere: ClassVar[tuple[str, ...]] = (
        "dpmpp_2m",
        "dpmpp_2m_cfg_pp",
        "dpmpp_2m_sde",
        "dpmpp_2m_sde_heun",
        "dpmpp_3m_sde",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "EDMDPMSolverMultistepScheduler",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if check_flag("cfg_pp", self.cfg_pp) and (self.kind, self.order, self.sde, self.clip) != CFG_PP:
            raise ValueError(
                f"cfg_pp: got True in {self!r}, expected kind='multistep', order=2, sde=False and clip=None with it"
            )

    def on(self, grid: Grid, schedule: Schedule, predicts: str) -> Program:
        if not self.cfg_pp:
            return super().on(grid, schedule, predicts)
        lower = self.lower_order_final is None or self.lower_order_final
        orders = multistep_orders(grid, 2, lower, self.euler_at_final)
        builder = ProgramBuilder(schedule, predicts, registers=max(orders), unguided=True)
        for i, order in enumerate(orders):
            x: Terms = {"D": grid.alphas[i + 1], "eps_u": grid.sigmas[i + 1]}
            if order == 2:
                back, h = grid.log_snr[i - 1] - grid.log_snr[i], grid.log_snr[i + 1] - grid.log_snr[i]
                v = grid.alphas[i + 1] * self._target(2, float(h))[0] * h / back
                x |= {"D": grid.alphas[i + 1] - v, "r1": v}
            kept: dict[str, Any] = {"r1": {"D_u": 1.0}} if 2 in orders[i + 1 : i + 2] else {}
            builder.rows(grid.times[i], levels=(grid.alphas[i], grid.sigmas[i]), x=x, **kept)
        return builder.program(sampler=repr(self), order=max(orders))
