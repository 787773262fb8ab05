"""The CPU's fused step, noise and whole sampling runs against PyTorch, diffusers and the memory: `python -m bench.cpu`.

Prints tables and writes bench/results/cpu-DATE.json. Every ratio is measured in one process, the candidates in turn.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from bench.naive import NaiveDDPM, PreallocatedDDPM
from bench.timing import Timing, interleaved, table, write

import ulam
import ulam_kernels
from ulam.jobs.models import load_model
from ulam_kernels import _cpu

SIZES = [(64, 3, 32, 32), (64, 3, 256, 256)]
ROW = 500  # of the 1000-row DDPM program: a row with noise


def step_candidates(shape: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """One DDPM reverse step at t = 499 for every chain."""
    generator = torch.Generator().manual_seed(0)
    x, eps = (torch.randn(shape, generator=generator) for _ in range(2))
    t = torch.full((shape[0],), 999 - ROW)
    naive, preallocated = NaiveDDPM(), PreallocatedDDPM(shape)
    program = ulam.samplers.DDPM().program(ulam.schedules.vp_linear(1000))
    rows, state, ids = program.table(), x[None].clone(), torch.arange(shape[0])
    row, seed = torch.full_like(ids, ROW), torch.zeros_like(ids)

    def fused() -> None:
        ulam_kernels.step(state, rows, row, model=eps, seed=seed, chain=ids, draw=row)

    squares = torch.zeros_like(ids)

    def recording() -> None:
        ulam_kernels.step(state, rows, row, model=eps, seed=seed, chain=ids, draw=row, squares=squares)

    compiled = torch.compile(naive.step)
    in_place = x.clone()
    return {
        "ulam fused step": fused,
        "ulam fused step, squares of noise": recording,
        "eager, the paper's code": lambda: naive.step(x, eps, t),
        "eager, fewest operations": lambda: naive.algorithm_2(x, eps, t),
        "eager, preallocated outputs": lambda: preallocated.step(in_place, eps, t),
        "torch.compile of the paper's code": lambda: compiled(x, eps, t),
        "diffusers DDPMScheduler.step": diffusers_step(x, eps, 999 - ROW),
        "limit: 2 reads, 1 write": lambda: torch.add(in_place, eps, out=in_place),
    }


def diffusers_step(x: torch.Tensor, eps: torch.Tensor, t: int) -> Callable[[], object]:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(clip_sample=False)
    scheduler.set_timesteps(1000)
    return lambda: scheduler.step(eps, t, x).prev_sample


def tick_candidates(chains: int = 256) -> dict[str, Callable[[], object]]:
    """What a tick does around the network and the step: look up times, see that the output is finite, count on."""
    cursor, now = torch.zeros(6, chains, dtype=torch.int64), torch.zeros(2, chains, dtype=torch.int64)
    m, times, t = torch.zeros(chains, 2), torch.arange(1000.0), torch.empty(chains)

    def ours() -> None:
        ulam_kernels.look_up(times, cursor[0], t)
        ulam_kernels.advance(cursor, now, model=m)

    def eager() -> None:
        torch.index_select(times, 0, cursor[0], out=t)
        bool(torch.isfinite(m.sum()))
        cursor[:2].add_(cursor[2:4])

    return {"ulam look_up and advance": ours, "eager, the fewest operations": eager}


def noise_per_core() -> dict[str, Timing]:
    """2^22 normals on one thread."""
    threads = torch.get_num_threads()
    out, ids = torch.empty(64, 1 << 16), torch.arange(64)
    zeros = torch.zeros_like(ids)
    rng = np.random.Generator(np.random.SFC64(0))
    buffer = np.empty(out.numel(), dtype=np.float32)
    candidates: dict[str, Callable[[], object]] = {}
    for name in _cpu.instruction_sets():

        def fill(name: str = name) -> None:
            _cpu.use_instruction_set(name)
            ulam_kernels.fill_normal(out, seed=zeros, chain=ids, draw=zeros)

        candidates[f"ulam noise-v1, {name}"] = fill

    def torch_normal() -> None:
        _cpu.use_instruction_set(_cpu.instruction_sets()[0])
        ulam_kernels.torch_normal(out)

    candidates["ulam torch_normal"] = torch_normal
    candidates["torch.randn"] = lambda: torch.randn(out.shape)
    candidates["torch normal_, in place"] = out.normal_
    candidates["numpy SFC64"] = lambda: rng.standard_normal(out=buffer, dtype=np.float32)
    torch.set_num_threads(1)
    try:
        return interleaved(candidates)
    finally:
        torch.set_num_threads(threads)
        _cpu.use_instruction_set(_cpu.instruction_sets()[0])


def whole_runs(shape: tuple[int, ...], steps: int = 100) -> dict[str, Timing]:
    """`steps` DDPM steps with a network that costs nothing: all that is not the network."""
    eps = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    naive = NaiveDDPM()
    denoiser = ulam.Denoiser(lambda x, t: eps, ulam.schedules.vp_linear(1000))
    sampler = ulam.samplers.DDPM(timesteps=tuple(range(steps - 1, -1, -1)))
    candidates: dict[str, Callable[[], object]] = {
        "ulam.sample": lambda: ulam.sample(denoiser, sampler, shape[1:], shape[0], progress=False),
        "the naive loop": lambda: naive.sample(lambda x, t: eps, shape, steps),
    }
    return interleaved(candidates, seconds=6.0, least=3)


def conversion_candidates(shape: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """Noise prediction to posterior mean, one timestep a chain."""
    generator = torch.Generator().manual_seed(0)
    x, eps = (torch.randn(shape, generator=generator) for _ in range(2))
    t, schedule, naive = torch.arange(1, shape[0] + 1), ulam.schedules.vp_linear(1000), NaiveDDPM()
    return {
        "ulam.ops.posterior_mean": lambda: ulam.ops.posterior_mean(x, eps, t, schedule),
        "eager": lambda: naive.mean(x, eps, t),
    }


def digits_overhead(chains: int = 64, steps: int = 10) -> dict[str, float]:
    """Seconds of a guided digits run that are not the network's, as a share of the network's."""
    model = load_model("digits")
    labels = torch.arange(chains) % 10
    engine = ulam.Engine(model.denoiser, model.shape, slots=chains)
    null = torch.full_like(labels, model.null_class or 0)
    engine.submit(ulam.samplers.DDIM(steps=steps), chains, cond={"y": labels}, guidance=2.0, uncond={"y": null})
    engine.run()
    network = engine.report.network_seconds
    return {"network": network, "rest": engine.report.seconds - network, "share": engine.report.seconds / network - 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    figures: dict[str, dict[str, Timing]] = {}

    def show(title: str, timings: dict[str, Timing]) -> None:
        figures[title] = timings
        print(table(title, timings, ours=next(iter(timings))), flush=True)

    for shape in SIZES:
        show(f"DDPM step, {_size(shape)} fp32", interleaved(step_candidates(shape)))
    show("around the step of a tick, 256 chains of 2", interleaved(tick_candidates()))
    show(f"eps to posterior mean, {_size(SIZES[-1])} fp32", interleaved(conversion_candidates(SIZES[-1])))
    show("noise, 2^22 normals, one thread", noise_per_core())
    for shape in SIZES:
        show(f"100 DDPM steps, free network, {_size(shape)}", whole_runs(shape))
    overhead = digits_overhead()
    print(f"digits run, guided: {overhead['network']:.2f} s in the network, {overhead['share']:.2%} beside it")
    print(f"wrote {write('cpu', figures, digits_overhead=overhead)}")


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


if __name__ == "__main__":
    main()
