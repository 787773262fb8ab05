"""Loops of other libraries that do a work of `ulam.throughput`, for `python -m bench.report`.

azula (`pip install --no-deps azula einops`): its DDIM sampler on a VP schedule, with as many evaluations. What
is missing, or does something else, is left out and says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ulam.conditioning import arguments_of
from ulam.samplers import DDIM
from ulam.schedules import VariancePreserving
from ulam.throughput import Work
from ulam.throughput.plain_loop import Unlike


def azula(work: Work, evaluations: int) -> Callable[[], torch.Tensor]:
    """azula's DDIMSampler: sigma_s / sigma_t (x - alpha_t D) + alpha_s D, from times on the training steps."""
    denoiser, schedule = work.denoiser, work.denoiser.schedule
    sampler = work.sampler
    if not isinstance(sampler, DDIM) or sampler.eta or sampler.clip is not None or work.guidance is not None:
        raise Unlike(f"no sampler that does what {work.program.sampler} does")
    if not isinstance(schedule, VariancePreserving) or denoiser.predicts != "eps":
        raise Unlike("its denoiser is written here for predictions of eps on VP schedules")
    from azula.denoise import Denoiser, DiracPosterior
    from azula.sample import DDIMSampler

    alphas = torch.tensor(schedule.alphas_cumprod).sqrt().float().to(work.device)
    sigmas = torch.tensor(schedule.variances).sqrt().float().to(work.device)
    last, cond = len(alphas) - 1, arguments_of(work.cond, torch.device(work.device))

    def levels(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        at = (t * last).round().long()
        return alphas[at], sigmas[at]

    class OfIndex(Denoiser):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.schedule = levels

        def forward(self, x_t: torch.Tensor, t: torch.Tensor, **_: Any) -> Any:
            alpha, sigma = levels(t)
            index = (t * last).round().to(denoiser.time_dtype).expand(len(x_t))
            return DiracPosterior(mean=(x_t - sigma * denoiser.network(x_t, index, **cond)) / alpha)

    made = DDIMSampler(OfIndex(), steps=work.program.nfe, silent=True, device=torch.device(work.device))
    pairs = made.timesteps.unfold(0, 2, 1)[:evaluations].unbind()

    def run() -> torch.Tensor:
        with torch.inference_mode():
            x = torch.randn(work.batch, device=work.device)
            for t, s in pairs:
                x = made.step(x, t, s)
        work.wait()
        return x

    return run


PEERS = {"azula": azula}
