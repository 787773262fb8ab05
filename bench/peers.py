"""Loops of other libraries that do a work of `ulam.throughput`, for `python -m bench.report`.

None is needed: what is missing, or has no sampler for the work, is left out and says so. Each does DDIM with the same
network, as many evaluations and float32 states; INSTALL has what each is installed by, beside the torch that is there.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType
from typing import Any

import torch

from ulam.conditioning import arguments_of
from ulam.samplers import DDIM
from ulam.schedules import VariancePreserving
from ulam.throughput import Work
from ulam.throughput.plain_loop import Unlike

Run = Callable[..., torch.Tensor]  # of the first states, or of states that it draws
INSTALL = {
    "azula": "pip install --no-deps azula einops",
    "k-diffusion": "pip install --no-deps k-diffusion torchdiffeq torchsde trampoline torchvision",
    "deepinv": "pip install --no-deps deepinv torchvision torchmetrics lightning-utilities einops h5py natsort",
}


def azula(work: Work, evaluations: int) -> Run:
    """DDIMSampler: sigma_s / sigma_t (x - alpha_t D) + alpha_s D, from times on the training steps."""
    schedule, _ = _ddim(work)
    denoise, sample = _imported("azula", "azula.denoise", "azula.sample")
    denoiser, device = work.denoiser, torch.device(work.device)
    alphas = torch.tensor(schedule.alphas_cumprod).sqrt().float().to(device)
    sigmas = torch.tensor(schedule.variances).sqrt().float().to(device)
    last, cond = len(alphas) - 1, arguments_of(work.cond, device)

    def levels(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        at = (t * last).round().long()
        return alphas[at], sigmas[at]

    class OfIndex(denoise.Denoiser):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.schedule = levels

        def forward(self, x_t: torch.Tensor, t: torch.Tensor, **_: Any) -> Any:
            alpha, sigma = levels(t)
            index = (t * last).round().to(denoiser.time_dtype).expand(len(x_t))
            return denoise.DiracPosterior(mean=(x_t - sigma * denoiser.network(x_t, index, **cond)) / alpha)

    made = sample.DDIMSampler(OfIndex(), steps=work.program.nfe, silent=True, device=device)
    pairs = made.timesteps.unfold(0, 2, 1)[:evaluations].unbind()

    def run(x: torch.Tensor | None = None) -> torch.Tensor:
        with torch.inference_mode():
            x = torch.randn(work.batch, device=device) if x is None else x
            for t, s in pairs:
                x = made.step(x, t, s)
        work.wait()
        return x

    return run


def k_diffusion(work: Work, evaluations: int) -> Run:
    """sample_euler on x / alpha, where it is DDIM: x + (sigma_s - sigma_t) (x - D) / sigma_t."""
    schedule, levels = _ddim(work)
    sampling, external = _imported("k-diffusion", "k_diffusion.sampling", "k_diffusion.external", alone=True)
    denoiser, device = work.denoiser, torch.device(work.device)
    cond, sigmas = arguments_of(work.cond, device), levels[: evaluations + 1].float()

    def network(x: torch.Tensor, t: torch.Tensor, **given: Any) -> torch.Tensor:
        m: torch.Tensor = denoiser.network(x, t.to(denoiser.time_dtype), **given)
        return m

    model = external.DiscreteEpsDDPMDenoiser(network, torch.tensor(schedule.alphas_cumprod), quantize=True)
    model, first = model.float().to(device), float((1 + levels[0] ** 2).sqrt())

    def run(x: torch.Tensor | None = None) -> torch.Tensor:
        with torch.inference_mode():
            x = first * (torch.randn(work.batch, device=device) if x is None else x)
            x = sampling.sample_euler(model, x, sigmas, extra_args=cond, disable=True)
        work.wait()
        return x

    return run


def deepinv(work: Work, evaluations: int) -> Run:
    """DDIMSolver on EDMDiffusionSDE, variance preserving: its step is DDIM's, from the score."""
    schedule, levels = _ddim(work)
    (sampling,) = _imported("deepinv", "deepinv.sampling")
    denoiser, device = work.denoiser, torch.device(work.device)
    cond, grid = arguments_of(work.cond, device), levels.float()
    trained = (torch.tensor(schedule.variances) / torch.tensor(schedule.alphas_cumprod)).sqrt().float().to(device)

    class OfSigma(torch.nn.Module):
        def forward(self, x: torch.Tensor, sigma: torch.Tensor, **given: Any) -> torch.Tensor:
            t = (trained - sigma).abs().argmin().to(denoiser.time_dtype).expand(len(x))
            m: torch.Tensor = denoiser.network(x / (1 + sigma**2).sqrt(), t, **given)
            return x - sigma * m

    solver = sampling.DDIMSolver(timesteps=torch.arange(evaluations + 1))
    sde = sampling.EDMDiffusionSDE(
        sigma_t=lambda t: grid[t.long()], variance_preserving=True, denoiser=OfSigma(), solver=solver,
        minus_one_one=False, dtype=torch.float32, device=device,
    )  # fmt: skip

    def run(x: torch.Tensor | None = None) -> torch.Tensor:
        with torch.inference_mode():
            x = sde.sample(torch.randn(work.batch, device=device) if x is None else x, **cond)
        work.wait()
        return x

    return run


@dataclass(frozen=True)
class Peer:
    """A library's loop: ``run(work, evaluations)``, what it is in words, and the release that is installed, if any."""

    package: str
    run: Callable[[Work, int], Run]

    @property
    def name(self) -> str:
        """With the release, where there is one."""
        try:
            return f"{self.package} {metadata.version(self.package)}"
        except metadata.PackageNotFoundError:
            return self.package

    @property
    def does(self) -> str:
        """The first line of its function's text."""
        return (self.run.__doc__ or "").splitlines()[0]


PEERS = [Peer("azula", azula), Peer("k-diffusion", k_diffusion), Peer("deepinv", deepinv)]


def _ddim(work: Work) -> tuple[VariancePreserving, torch.Tensor]:
    """The schedule of a work that all of these can do, and sigma / alpha of its evaluations, with the 0 that it ends
    at, in float64. Raises Unlike for other works."""
    sampler, schedule = work.sampler, work.denoiser.schedule
    if not isinstance(sampler, DDIM) or sampler.eta or sampler.clip is not None or work.guidance is not None:
        raise Unlike(f"no sampler that does what {work.program.sampler} does")
    if not isinstance(schedule, VariancePreserving) or work.denoiser.predicts != "eps":
        raise Unlike("its denoiser is written here for predictions of eps on VP schedules")
    at = torch.tensor(work.program.time[work.program.evaluating]).round().long()
    kept = torch.tensor(schedule.alphas_cumprod)[at]
    levels = torch.cat([((1 - kept) / kept).sqrt(), torch.zeros(1, dtype=kept.dtype)])
    return schedule, levels.to(work.device)


def _imported(package: str, *names: str, alone: bool = False) -> list[ModuleType]:
    """Modules of a package. alone: without the package's own first lines, which want what only its training needs.

    Raises Unlike where it, or what it needs, is not installed.
    """
    try:
        over = names[0].partition(".")[0]
        if alone and over not in sys.modules:
            spec = importlib.util.find_spec(over)
            if spec is None:
                raise ModuleNotFoundError(f"No module named {over!r}", name=over)
            sys.modules[over] = importlib.util.module_from_spec(spec)
        return [importlib.import_module(name) for name in names]
    except ModuleNotFoundError as error:
        missing = "it" if error.name == names[0].partition(".")[0] else error.name
        raise Unlike(f"{missing} is not installed: {INSTALL[package]}") from None
