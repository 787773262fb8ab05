"""A program of every sampler, and its execution on a backend row by row."""

from __future__ import annotations

from types import ModuleType

import torch

import ulam
from ulam import Program, samplers

SHAPE, CHAINS, SEED = (3, 5, 7), 3, 11
SCHEDULE = ulam.schedules.vp_linear(1000)


def programs() -> dict[str, Program]:
    """One of each sampler, and of what rows can do: churn, clips, thresholds, learned variances."""
    cases = samplers.catalogue().items()
    chosen = [case(levels=3, steps_per_level=2) if name == "AnnealedLangevin" else case(6) for name, case in cases]
    threshold = samplers.DynamicThreshold(0.9, 3.0)
    chosen += [
        samplers.DDPM(6, "learned_range", clip=(-1, 1)),
        samplers.DDIM(6, eta=1.0, clip=threshold),
        samplers.DPMSolverPP(6, order=3, clip=threshold),
        samplers.DPMSolverPP(6, sde=True),
        samplers.Heun(6, churn=3.0),
        samplers.RePaint(6, jump_length=2, jump_n_sample=2, eta=0.5),
    ]
    return {repr(sampler): sampler.program(SCHEDULE, "eps") for sampler in chosen}


def execute(backend: ModuleType, program: Program) -> torch.Tensor:
    """The final registers of a program, row by row, on a network that is the same function of x everywhere."""
    generator = torch.Generator().manual_seed(3)
    state = torch.randn(program.registers, CHAINS, *SHAPE, generator=generator)
    state[1:] = float("nan")  # to be written before it is read
    known, mask = torch.randn(2, CHAINS, *SHAPE, generator=generator)
    mask = (mask > 0).float()
    weights = torch.randn(CHAINS, SHAPE[0] * (2 if program.learned.any() else 1), *SHAPE[1:], generator=generator)
    table = program.table()
    ids, scales = torch.tensor([4, 0, 2**40]), torch.full((CHAINS, 4), float("nan"))
    for row in range(len(program)):
        x = state[0].clone()
        model = weights * torch.cat([x] * (weights.shape[1] // SHAPE[0]), dim=1)
        at, draw = torch.full((CHAINS,), row), torch.full((CHAINS,), 16 * row)
        inputs = {
            "model": model, "uncond": None, "guidance": None, "seed": torch.full((CHAINS,), SEED), "chain": ids,
            "draw": draw, "noise": None,
        }  # fmt: skip
        if register := int(program.unguided[row]):
            state[register] = model
        if program.needs_reductions:
            backend.reduce(state, table.coef, table.flags, at, **inputs, out=scales)
        backend.step(state, table.coef, table.flags, at, **inputs, net_in=None, scales=scales)
        if program.blends[row]:
            a, b = (torch.full((CHAINS,), float(c[row])) for c in (program.known_a, program.known_b))
            backend.blend(state[0], known, mask, a, b, inputs["seed"], ids, draw + 1, None, None, None)
    return state
