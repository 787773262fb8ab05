"""Langevin and Metropolis chains against torchebm, plain torch loops and blackjax: `python -m bench.mcmc`.

Prints tables and writes bench/results/mcmc-DATE.json. Times are per step of all chains, measured in one process with
the candidates in turn; steps a call are few enough for every candidate to be timed often. The others' rows need
`pip install -c constraints.txt 'ulam[mcmc,rivals]'`; a missing package leaves its row out, and says so.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from bench.timing import Timing, interleaved, table, write

from ulam import mcmc

STEPS = {"launch": 1000, "steps": 200}  # a timed call
Candidates = dict[str, tuple[Callable[[], object], int]]  # a function, and the steps that it takes


def double_well(x: torch.Tensor) -> torch.Tensor:
    return (x.square() - 1).square().sum(1)


def well_score(x: torch.Tensor) -> torch.Tensor:
    return -4 * x * (x.square() - 1)


def autograd_score(energy: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    leaf = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(energy(leaf).sum(), leaf)
    return -gradient


def plain_ula(score: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, step: float, steps: int) -> torch.Tensor:
    """Langevin steps as people write them."""
    for _ in range(steps):
        x = x + step * score(x) + math.sqrt(2 * step) * torch.randn_like(x)
    return x


def plain_mala(
    evaluate: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]], x: torch.Tensor, step: float, steps: int
) -> torch.Tensor:
    """MALA as people write it: ``evaluate`` gives energy and score, which are kept from step to step."""
    energy, score = evaluate(x)
    for _ in range(steps):
        proposal = x + step * score + math.sqrt(2 * step) * torch.randn_like(x)
        new_energy, new_score = evaluate(proposal)
        forward = (proposal - x - step * score).square().sum(1) / (4 * step)
        backward = (x - proposal - step * new_score).square().sum(1) / (4 * step)
        accept = torch.rand(len(x), device=x.device).log() < energy - new_energy + forward - backward
        x = torch.where(accept[:, None], proposal, x)
        score = torch.where(accept[:, None], new_score, score)
        energy = torch.where(accept, new_energy, energy)
    return x


def with_autograd(energy: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    def evaluate(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = x.detach().requires_grad_()
        values = energy(leaf)
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
        return values.detach(), -gradient

    return evaluate


def ula_candidates(chains: int = 4096, dimension: int = 32, step: float = 0.01) -> Candidates:
    """ULA on a double well; no candidate keeps draws."""
    x = torch.randn(chains, dimension, generator=torch.Generator().manual_seed(0))
    options = {"chains": chains, "x_init": x, "store": False, "progress": False}
    own = mcmc.Energy(double_well)
    few, many = STEPS["steps"], STEPS["launch"]

    def ulam(target: Any, steps: int) -> Callable[[], object]:
        # One state is kept, at the end.
        return lambda: mcmc.run(target, mcmc.ULA(step), steps=steps, thin=steps, **options)

    found: Candidates = {
        "ulam, whole chains in a launch": (ulam(mcmc.DoubleWell(dimension), many), many),
        "ulam, step by step, torch energy": (ulam(own, few), few),
        "plain loop, autograd": (lambda: plain_ula(lambda at: autograd_score(double_well, at), x, step, few), few),
        "plain loop, score by hand": (lambda: plain_ula(well_score, x, step, few), few),
    }
    try:
        from torchebm.core import DoubleWellModel
        from torchebm.samplers import LangevinDynamics

        sampler = LangevinDynamics(DoubleWellModel(barrier_height=1.0), step_size=step)
        found["torchebm LangevinDynamics"] = (lambda: sampler.sample(x=x, n_steps=few), few)
    except ImportError as error:
        print(f"torchebm: left out ({error})")
    return found


def mala_candidates(chains: int = 4096, dimension: int = 100, step: float = 0.1) -> Candidates:
    """MALA on a Gaussian of variances 1/2 to 2."""
    variances = torch.linspace(0.5, 2.0, dimension)
    target = mcmc.Gaussian(torch.zeros(dimension), variances)
    precision, few = 1 / variances, STEPS["steps"]
    x = target.sample(chains).float()
    options = {"chains": chains, "x_init": x, "store": False, "progress": False, "steps": few, "thin": few}

    def energy(at: torch.Tensor) -> torch.Tensor:
        return 0.5 * (at.square() * precision).sum(1)

    def by_hand(at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        score = -at * precision
        return -0.5 * (at * score).sum(1), score

    return {
        "ulam, built-in Gaussian": (lambda: mcmc.run(target, mcmc.MALA(step), **options), few),
        "ulam, torch energy": (lambda: mcmc.run(mcmc.Energy(energy), mcmc.MALA(step), **options), few),
        "plain MALA, autograd": (lambda: plain_mala(with_autograd(energy), x, step, few), few),
        "plain MALA, score by hand": (lambda: plain_mala(by_hand, x, step, few), few),
    }


def per_step(candidates: Candidates, seconds: float) -> dict[str, Timing]:
    """Timings divided by the steps of a call."""
    times = interleaved({name: function for name, (function, _) in candidates.items()}, seconds)
    scaled = {}
    for name, timing in times.items():
        steps = candidates[name][1]
        numbers = ("median", "lower_quartile", "upper_quartile", "best")
        scaled[name] = replace(timing, **{field: getattr(timing, field) / steps for field in numbers})
    return scaled


def ess_per_second(chains: int = 64, dimension: int = 32, steps: int = 2000, runs: int = 3) -> dict[str, Any]:
    """The least bulk ESS over the coordinates a second of sampling; steps tuned by hand, compilation not counted."""
    import arviz

    variances = torch.linspace(0.25, 4.0, dimension, dtype=torch.float64)
    target = mcmc.Gaussian(torch.zeros(dimension), variances)
    start = target.sample(chains).float()
    samplers = {"mala": mcmc.MALA(0.12), "hmc": mcmc.HMC(0.55, leapfrog=5, jitter=0)}  # one launch a run
    found: dict[str, Any] = {}

    def ess(draws: Any) -> float:
        return float(arviz.ess(arviz.from_dict(posterior={"x": draws}))["x"].min())

    for name, sampler in samplers.items():
        times = []
        for run in range(runs):
            chained = mcmc.run(target, sampler, chains=chains, steps=steps, x_init=start, seed=run, progress=False)
            times.append(chained.report["seconds"])
        assert chained.draws is not None and chained.acceptance is not None
        found[f"ulam {name}"] = _rate(ess(chained.draws.numpy()), min(times), float(chained.acceptance.mean()))
    try:
        found |= _blackjax(variances, start, steps, runs, ess)
    except ImportError as error:
        print(f"blackjax: left out ({error})")
    return found


def _blackjax(
    variances: torch.Tensor, start: torch.Tensor, steps: int, runs: int, ess: Callable[[Any], float]
) -> dict[str, Any]:
    import blackjax
    import jax
    import jax.numpy as jnp
    import numpy as np

    precision = jnp.asarray(1 / variances.numpy(), jnp.float32)

    def log_density(x: Any) -> Any:
        return -0.5 * jnp.sum(x * x * precision)

    samplers = {
        "mala": blackjax.mala(log_density, 0.12),
        "hmc": blackjax.hmc(log_density, 0.55, inverse_mass_matrix=jnp.ones(len(variances)), num_integration_steps=5),
    }
    found = {}
    for name, sampler in samplers.items():

        def chain(x: Any, key: Any, sampler: Any = sampler) -> Any:
            def step(state: Any, key: Any) -> Any:
                state, told = sampler.step(key, state)
                return state, (state.position, told.acceptance_rate)

            return jax.lax.scan(step, sampler.init(x), jax.random.split(key, steps))[1]

        compiled, times = jax.jit(jax.vmap(chain)), []
        for run in range(runs + 1):
            keys = jax.random.split(jax.random.key(run), len(start))
            begin = time.perf_counter()
            draws, rates = jax.block_until_ready(compiled(jnp.asarray(start.numpy()), keys))
            times.append(time.perf_counter() - begin)
        found[f"blackjax {name}"] = _rate(ess(np.asarray(draws)), min(times[1:]), float(np.mean(rates)))
    return found


def _rate(ess: float, seconds: float, acceptance: float) -> dict[str, float]:
    return {"ess": ess, "seconds": seconds, "ess_per_second": ess / seconds, "acceptance": acceptance}


def main() -> None:
    """Time everything, print and write."""
    parser = argparse.ArgumentParser(prog="python -m bench.mcmc", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="of each table (default 20)")
    parser.add_argument("--threads", type=int, default=2, help="default 2")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ula = per_step(ula_candidates(), options.seconds)
    print(table("ULA, double well, 4096 chains x 32, per step", ula, "ulam, whole chains in a launch"))
    stepwise = {name: timing for name, timing in ula.items() if name != "ulam, whole chains in a launch"}
    print(table("the same, against single steps", stepwise, "ulam, step by step, torch energy"))
    mala = per_step(mala_candidates(), options.seconds)
    print(table("MALA, Gaussian, 4096 chains x 100, per step", mala, "ulam, built-in Gaussian"))
    ess = ess_per_second()
    print("least bulk ESS a second, Gaussian, 64 chains x 32, 2000 steps")
    for name, numbers in ess.items():
        print(f"  {name:<34}{numbers['ess_per_second']:>14.0f}   acceptance {numbers['acceptance']:.3f}")
    path = write("mcmc", {"ula": ula, "mala": mala}, ess=ess)
    print(json.dumps({"written": str(path)}))


if __name__ == "__main__":
    main()
