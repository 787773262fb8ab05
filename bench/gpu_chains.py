"""Langevin and Metropolis launches and the sums of variational bounds on a GPU, beside plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from bench.gpu_stage import Function, Stage
from bench.likelihood import eager_kl, eager_likelihood, exact_cdf
from bench.mcmc import double_well, plain_mala, plain_ula, well_score

from ulam_kernels import densities, mcmc
from ulam_kernels.likelihood import discretised_log_likelihood, gaussian_kl

STEP = 0.01
LAUNCH, FEW = 1000, 20  # steps of a launch of ours, and of a plain loop
WELLS = ((4096, 32), (1_000_000, 2))
BOUNDS = ((256, 3, 64, 64), (8, 3, 256, 256))


@dataclass
class Task:
    """Something to time: how its candidates are made, and the steps that one call of each takes."""

    name: str
    builders: dict[str, Callable[[], Function]]
    steps: dict[str, int] = field(default_factory=dict)
    bytes: int | None = None
    elements: int | None = None


def ids(chains: int, device: str) -> dict[str, torch.Tensor]:
    chain = torch.arange(chains, device=device)
    return {"seed": torch.zeros_like(chain), "chain": chain, "draw": torch.zeros_like(chain)}


def start(chains: int, d: int, device: str) -> torch.Tensor:
    return torch.randn(chains, d, device=device, generator=torch.Generator(device).manual_seed(0))


COEFFICIENTS = {
    "ula": (STEP, math.sqrt(2 * STEP), 0.0, 0.0),
    "mala": (STEP, math.sqrt(2 * STEP), 1.0, 0.0),
    "hmc": (STEP, 0.0, 1.0, 1.0),
    "baoab": (STEP, STEP, 0.9, 0.4),
}


def launch(sampler: str, chains: int, d: int, steps: int, device: str, backend: str, moments: bool = False) -> Function:
    """Whole chains on sum_i (x_i^2 - 1)^2 in one launch."""
    density, who, x = densities.double_well(d), ids(chains, device), start(chains, d, device)
    coef = torch.tensor(COEFFICIENTS[sampler], device=device).expand(chains, 4).contiguous()
    given: dict[str, Any] = {"v": torch.randn_like(x)} if sampler == "baoab" else {}
    if moments:
        given["moments"] = torch.zeros(chains, 2, d, dtype=torch.float64, device=device)
    return lambda: mcmc.run(density, x, sampler, coef, steps, **who, **given, backend=backend)  # type: ignore[arg-type]


def plain(sampler: str, chains: int, d: int, steps: int, device: str) -> Function:
    """The loop that people write, the score by hand."""
    x = start(chains, d, device)
    if sampler == "ula":
        return lambda: plain_ula(well_score, x, STEP, steps)
    return lambda: plain_mala(lambda at: (double_well(at), well_score(at)), x, STEP, steps)


def metropolis_step(chains: int, d: int, device: str, backend: str) -> Function:
    """A MALA step whose energy and score torch gives: a proposal, the energy there, the test."""
    x, who = start(chains, d, device), ids(chains, device)
    step, noise = (torch.full((chains,), value, device=device) for value in (STEP, math.sqrt(2 * STEP)))
    energy, score, proposal = double_well(x).double(), well_score(x), torch.empty_like(x)

    def call() -> None:
        mcmc.langevin(x, score, step, noise, out=proposal, backend=backend, **who)
        new_energy, new_score = double_well(proposal).double(), well_score(proposal)
        mcmc.mala_accept(x, proposal, score, new_score, energy, new_energy, step, backend=backend, **who)

    return call


def backend_of(absent: dict[str, str]) -> str | None:
    """The backend whose launches are timed: CUDA's, else Triton's, whose whole chains take long to compile."""
    return next((name for name in ("cuda", "triton") if name not in absent), None)


def chain_tasks(stage: Stage, absent: dict[str, str]) -> list[Task]:
    """The launches: every sampler on one size, ULA also on many short chains and with moments kept."""
    tasks, many, few, on = [], stage.count(LAUNCH), stage.count(FEW), stage.device
    name = backend_of(absent)
    backend = name and stage.backend(name)
    for sampler, sizes in (("ula", WELLS), ("mala", WELLS[:1]), ("hmc", WELLS[:1]), ("baoab", WELLS[:1])):
        for size in sizes:
            chains, d = stage.size(*size)
            made: dict[str, Callable[[], Function]] = {}
            if backend:
                made[f"ulam {name}, a launch"] = partial(launch, sampler, chains, d, many, on, backend)
                if sampler == "ula":
                    keeping = partial(launch, sampler, chains, d, many, on, backend, True)
                    made[f"ulam {name}, a launch with moments"] = keeping
            if sampler in ("ula", "mala"):
                loop = partial(plain, sampler, chains, d, few, on)
                made["naive eager"] = loop
                if sampler == "ula":
                    made["naive, CUDA graph"] = lambda loop=loop: stage.captured(loop())  # type: ignore[misc]
            steps = {label: few if label.startswith("naive") else many for label in made}
            title = f"{sampler.upper()} step, double well, {size[0]} chains of {size[1]}"
            tasks.append(Task(title, made, steps, elements=chains * d))
    chains, d = stage.size(4096, 100)
    made = {"naive eager": partial(plain, "mala", chains, d, few, on)}
    if backend:
        made = {f"ulam {name}": partial(metropolis_step, chains, d, on, backend), **made}
    tasks.append(Task("MALA step, a torch energy, 4096 chains of 100", made, {"naive eager": few}))
    return tasks


def bound_tasks(stage: Stage, absent: dict[str, str]) -> list[Task]:
    """The sums of a variational bound: every element with a variance of its own."""
    tasks, name = [], backend_of(absent)
    for size in BOUNDS:
        shape = stage.size(*size)
        generator = torch.Generator(stage.device).manual_seed(0)
        draw = partial(torch.randn, shape, generator=generator, device=stage.device)
        x = (draw() / 2).clamp(-1, 1).mul(127.5).round() / 127.5
        a, b, log_var_a, log_var_b = x + 0.02 * draw(), x + 0.02 * draw(), draw() / 10 - 7, draw() / 10 - 7
        scale = log_var_b / 2
        kl: dict[str, Callable[[], Function]] = {}
        bins: dict[str, Callable[[], Function]] = {}
        if name:
            backend = stage.backend(name)
            kl[f"ulam {name}"] = partial(_call, gaussian_kl, (a, log_var_a, b, log_var_b), backend=backend)
            bins[f"ulam {name}"] = partial(_call, discretised_log_likelihood, (x, b, scale), backend=backend)
        kl["naive eager"] = partial(_call, eager_kl, (a, log_var_a, b, log_var_b))
        bins["naive eager"] = partial(_call, eager_likelihood, (x, b, scale, exact_cdf))
        title, elements = "x".join(map(str, size)), x.numel()
        tasks.append(Task(f"KL of Gaussians, {title}", kl, bytes=16 * elements, elements=elements))
        tasks.append(Task(f"discretised likelihood, {title}", bins, bytes=12 * elements, elements=elements))
    return tasks


def _call(function: Callable[..., object], arguments: tuple[Any, ...], **named: Any) -> Function:
    return partial(function, *arguments, **named)
