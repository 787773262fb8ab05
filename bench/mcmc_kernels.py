"""Langevin and Metropolis kernels against plain torch and torchebm: `python -m bench.mcmc_kernels`.

Whole chains: 4,096 chains of 32 dimensions, ULA on a double well, a step of each candidate in turn in one process.
Step by step: MALA on a 100-dimensional Gaussian whose energy is torch's. Prints tables and writes
bench/results/mcmc-kernels-DATE.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from bench.timing import Timing, interleaved, table, write

from ulam_kernels import densities, mcmc

STEP = 0.01


def ids(chains: int) -> dict[str, torch.Tensor]:
    chain = torch.arange(chains)
    return {"seed": torch.zeros_like(chain), "chain": chain, "draw": torch.zeros_like(chain)}


def whole_chains(chains: int, d: int, steps: int) -> dict[str, Timing]:
    """Seconds a step of ULA on sum_i (x_i^2 - 1)^2: launches of `steps` for us, 20 steps for the others."""
    start = torch.randn(chains, d, generator=torch.Generator().manual_seed(0))
    few = 20

    def launch(sampler: str, coef: list[float], states: bool = False) -> Callable[[], object]:
        density, who = densities.double_well(d), ids(chains)
        x, rows = start.clone(), torch.tensor(coef).expand(chains, 4).contiguous()
        v = {"v": torch.randn(chains, d)} if sampler == "baoab" else {}
        out = {"draws": torch.empty(chains, steps // 10, d), "thin": 10} if states else {}
        return lambda: mcmc.run(density, x, sampler, rows, steps, **who, **v, **out)  # type: ignore[arg-type]

    root = (2 * STEP) ** 0.5
    ours = {
        "ulam, one launch": launch("ula", [STEP, root, 0, 0]),
        "ulam, every 10th state kept": launch("ula", [STEP, root, 0, 0], True),
        "ulam MALA, one launch": launch("mala", [STEP, root, 1, 0]),
        "ulam BAOAB, one launch": launch("baoab", [STEP, STEP, 0.9, 0.4]),
        "ulam HMC (1 leapfrog), one launch": launch("hmc", [STEP, 0, 1, 1]),
    }

    def plain() -> None:
        x = start
        for _ in range(few):
            x = x - STEP * 4 * x * (x**2 - 1) + root * torch.randn_like(x)

    others: dict[str, Callable[[], object]] = {"plain torch, analytic": plain}
    try:
        from torchebm.core import DoubleWellModel
        from torchebm.samplers import LangevinDynamics
    except ImportError:
        print("torchebm is not installed: not timed")
    else:
        dynamics = LangevinDynamics(DoubleWellModel(barrier_height=1.0), step_size=STEP)
        others["torchebm LangevinDynamics"] = lambda: dynamics.sample(x=start, n_steps=few)
    timings = interleaved(ours | others, seconds=20.0, least=5)
    return {name: _each(t, few if name in others else steps) for name, t in timings.items()}


def mala_step_by_step(chains: int, d: int) -> dict[str, Timing]:
    """One MALA step on N(0, diag) with the energy and its gradient by torch, in both."""
    generator = torch.Generator().manual_seed(0)
    precision = torch.linspace(0.5, 2.0, d)
    h, root = 0.1, 0.2**0.5

    def target(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        score = -precision * x
        return -0.5 * torch.linalg.vecdot(x, score), score

    who, step, noise = ids(chains), torch.full((chains,), h), torch.full((chains,), root)
    x = torch.randn(chains, d, generator=generator)
    energy, score = target(x)
    energy, proposal = energy.double(), torch.empty_like(x)

    def fused() -> None:
        mcmc.langevin(x, score, step, noise, out=proposal, **who)
        new_energy, new_score = target(proposal)
        mcmc.mala_accept(x, proposal, score, new_score, energy, new_energy.double(), step, **who)
        who["draw"] += 16

    state = {"x": x.clone(), "energy": energy.float(), "score": score.clone()}

    def plain(gradient: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]) -> None:
        x, energy, score = state["x"], state["energy"], state["score"]
        y = x + h * score + root * torch.randn_like(x)
        new_energy, new_score = gradient(y)
        forward = ((y - x - h * score) ** 2).sum(1)
        backward = ((x - y - h * new_score) ** 2).sum(1)
        accepted = torch.rand(chains).log() < energy - new_energy + (forward - backward) / (4 * h)
        where = accepted[:, None]
        state["x"], state["score"] = torch.where(where, y, x), torch.where(where, new_score, score)
        state["energy"] = torch.where(accepted, new_energy, energy)

    def by_autograd(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.detach().requires_grad_()
        energy = 0.5 * (precision * x**2).sum(1)
        return energy.detach(), -torch.autograd.grad(energy.sum(), x)[0]

    candidates: dict[str, Callable[[], object]] = {
        "ulam langevin + mala_accept": fused,
        "of which torch's energy and score": lambda: target(proposal),
        "plain torch, the same energy": lambda: plain(target),
        "plain torch, energy by autograd": lambda: plain(by_autograd),
    }
    return interleaved(candidates, seconds=10.0)


def _each(t: Timing, steps: int) -> Timing:
    return Timing(t.median / steps, t.lower_quartile / steps, t.upper_quartile / steps, t.best / steps, t.runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures: dict[str, dict[str, Timing]] = {}
    for title, timings in (
        ("a step, double well, 4096 chains x 32", whole_chains(4096, 32, options.steps)),
        ("a MALA step, Gaussian, 4096 chains x 100", mala_step_by_step(4096, 100)),
    ):
        figures[title] = timings
        print(table(title, timings, ours=next(iter(timings))), flush=True)
    print(f"wrote {write('mcmc-kernels', figures)}")


if __name__ == "__main__":
    main()
