"""Small networks on a stand-in device beside the same on the CPU, and jobs of engines that walk their chains."""

from __future__ import annotations

import copy
from typing import Any

import torch

import ulam
from mlp_cases import CASES
from ulam.samplers import DDIM, DDPM, DPMSolverPP, Heun

SCHEDULE = ulam.schedules.vp_linear()
SHAPE = (4, 3)
SEED = 3
SAMPLERS = (DDPM(6), DDIM(5), DPMSolverPP(6), Heun(4))


def on_cpu(name: str = "chunk policy", schedule: Any = SCHEDULE) -> ulam.Denoiser:
    torch.manual_seed(1)
    return ulam.Denoiser(CASES[name].make(), schedule)


def moved(denoiser: ulam.Denoiser, device: str = "cuda:0") -> ulam.Denoiser:
    """The same network on a device."""
    net = denoiser.net
    assert isinstance(net, torch.nn.Module)
    return ulam.Denoiser(copy.deepcopy(net).to(device), denoiser.schedule)


def told(name: str, chains: int, guided: bool = True) -> dict[str, Any]:
    """What a job of so many chains is told, on the host."""
    case = CASES[name]
    torch.manual_seed(2)
    if not case.cond:
        return {}
    shared = {key: ulam.shared(torch.randn(shape)) for key, shape in case.shared.items()}
    given = {"cond": case.conditioning(chains) | shared}
    weights = torch.tensor([1.5, 1.0, 0.0, -1.0]).repeat(chains)[:chains]
    return given | ({"uncond": case.conditioning(chains) | shared, "guidance": weights} if guided else {})


def walked(net: ulam.Denoiser, sampler: Any, shape: tuple[int, ...], chains: Any, kernel: str = "on", **given: Any
           ) -> torch.Tensor:  # fmt: skip
    return ulam.sample(net, sampler, shape, chains, SEED, chain_kernel=kernel, progress=False, **given)


def engine_of(net: ulam.Denoiser, shape: tuple[int, ...] = SHAPE, slots: int = 4, device: str = "cuda:0",
              kernel: str = "on", **options: Any) -> ulam.Engine:  # fmt: skip
    return ulam.Engine(net, shape, slots, device, chain_kernel=kernel, **options)


def ran(engine: ulam.Engine, jobs: list[tuple[Any, Any, dict[str, Any]]]) -> list[torch.Tensor]:
    """The results of jobs (sampler, chains, what they are given), on the host."""
    submitted = [engine.submit(sampler, chains, SEED, **given) for sampler, chains, given in jobs]
    results = engine.run()
    return [results[job].cpu() for job in submitted]
