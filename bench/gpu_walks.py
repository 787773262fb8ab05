"""Whole chains of small networks on a GPU, all their rows in one launch, beside naive loops: for bench.gpu_loops.

Predictions: bench.walk_model. Every candidate draws so many batches of samples and waits for the GPU behind the last;
an engine has them in its queue, and a policy, whose calls end with a look at their actions, waits behind each.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from bench.gpu_stage import Function, Stage
from bench.walk_cases import PLANE, POLICY, Chains, Net

import ulam

CASES = ((POLICY, 1), (POLICY, 64), (PLANE, 1_000_000))
STEPS = 100
PRECISIONS = ("float32", "tf32x3", "bf16")


def repeated(draw: Callable[[], object], batches: int, stage: Stage) -> Function:
    def all_of_them() -> None:
        for _ in range(batches):
            draw()
        stage.synchronize()

    return all_of_them


def walk(stage: Stage, case: tuple[tuple[int, ...], int, int], precision: str, batches: int) -> Function:
    """One launch, and what starts it."""
    return repeated(Chains(*case, precision, stage.device).walk, batches, stage)


def engine(stage: Stage, case: tuple[tuple[int, ...], int, int], precision: str, batches: int) -> Function:
    """The same chains as jobs of an engine, one walk each."""
    denoiser, sampler = job(stage, case)
    kernel = "on" if precision == "float32" else precision
    made = ulam.Engine(denoiser, case[0][-1:], case[1], stage.device, chain_kernel=kernel)
    seeds = itertools.count()

    def draw() -> None:
        for _ in range(batches):
            made.submit(sampler, case[1], next(seeds))
        made.run()
        stage.synchronize()

    draw()
    return draw


def policy(stage: Stage, case: tuple[tuple[int, ...], int, int], precision: str, batches: int) -> Function:
    """The same chains as calls of a policy."""
    denoiser, sampler = job(stage, case)
    made = ulam.Policy(denoiser, sampler, case[0][-1:], case[1], precision=precision, device=stage.device)
    return repeated(made, batches, stage)


def job(stage: Stage, case: tuple[tuple[int, ...], int, int]) -> tuple[ulam.Denoiser, ulam.samplers.DDPM]:
    """The network of `Chains`, and a sampler of as many rows."""
    widths, _, steps = case
    torch.manual_seed(0)
    sampler = ulam.samplers.DDPM(steps=steps, spacing="trailing", clip=(-1, 1))
    return ulam.Denoiser(Net(widths).eval().to(stage.device), ulam.schedules.vp_linear(1000)), sampler


def naive(stage: Stage, case: tuple[tuple[int, ...], int, int], batches: int, by: str) -> Function:
    """The loop that people write; its network may be compiled, or the whole loop a CUDA graph."""
    chains = Chains(*case, device=stage.device)
    widths, count, steps = case
    net: Any = stage.compiled(chains.net) if by == "compile" else chains.net
    x = torch.zeros(count, widths[0], device=stage.device)
    times = [torch.full((count,), t, device=stage.device) for t in reversed(range(steps))]

    @torch.no_grad()
    def loop() -> None:
        x.normal_()
        for t in times:
            x.copy_(chains.naive.step(x, net(x, t), t))

    return repeated(stage.captured(loop) if by == "graph" else loop, batches, stage)


def candidates(stage: Stage, widths: tuple[int, ...], chains: int, batches: int) -> dict[str, Callable[[], Function]]:
    case = (widths, chains, stage.count(STEPS))
    walks = {f"ulam walk, {precision}": partial(walk, stage, case, precision, batches) for precision in PRECISIONS}
    for by, name in ((engine, "ulam.Engine"), (policy, "ulam.Policy")):
        walks |= {f"{name}, {precision}": partial(by, stage, case, precision, batches) for precision in PRECISIONS}
    loops = {"eager": "naive eager", "compile": "naive, torch.compile", "graph": "naive, whole loop in a CUDA graph"}
    return {**walks, **{name: partial(naive, stage, case, batches, by) for by, name in loops.items()}}
