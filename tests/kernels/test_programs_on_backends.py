"""Every sampler's whole program gives the same bits on the reference, the CPU's instruction sets and Triton.

Triton's kernels run in its interpreter, in a process of its own, with a fused multiply-add that rounds once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch

import ulam
import ulam_kernels
from ulam import Program, samplers
from ulam_kernels import cpu, reference

SHAPE, CHAINS, SEED = (3, 5, 7), 3, 11
SCHEDULE = ulam.schedules.vp_linear(1000)


def programs() -> dict[str, Program]:
    """One of each sampler, and of what rows can do: churn, clips, thresholds, learned variances."""
    cases = {name: getattr(samplers, name) for name in samplers.__all__}
    chosen = [
        case(levels=3, steps_per_level=2) if name == "AnnealedLangevin" else case(6)
        for name, case in cases.items()
        if name not in ("DynamicThreshold", "Grid", "GridSampler")
    ]
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
        if program.needs_reductions:
            backend.reduce(state, table.coef, table.flags, at, **inputs, out=scales)
        backend.step(state, table.coef, table.flags, at, **inputs, net_in=None, scales=scales)
        if program.blends[row]:
            a, b = (torch.full((CHAINS,), float(c[row])) for c in (program.known_a, program.known_b))
            backend.blend(state[0], known, mask, a, b, inputs["seed"], ids, draw + 1, None, None, None)
    return state


@pytest.mark.parametrize("name", programs())
def test_cpu_gives_the_references_bits(name: str) -> None:
    program = programs()[name]
    expected = execute(reference, program)
    assert torch.isfinite(expected[0]).all()
    assert torch.equal(expected.nan_to_num(9.0), execute(cpu, program).nan_to_num(9.0))


INTERPRETED = """
import test_programs_on_backends as t
from ulam_kernels import triton
for name, program in t.programs().items():
    expected, got = t.execute(t.cpu, program), t.execute(triton, program)
    assert t.torch.equal(expected.nan_to_num(9.0), got.nan_to_num(9.0)), name
print("agrees")
"""


def test_interpreted_triton_gives_the_cpus_bits() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    from test_triton_static import EXACT_INTERPRETER

    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
    script = EXACT_INTERPRETER + INTERPRETED
    ran = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert ran.stdout.strip() == "agrees", ran.stderr[-3000:]


def test_a_program_survives_json_and_gives_the_same_table() -> None:
    for program in programs().values():
        again = Program.from_json(program.to_json())
        assert again == program and hash(again) == hash(program)
        table, other = program.table(), again.table()
        assert torch.equal(table.coef, other.coef) and torch.equal(table.flags, other.flags)
        assert str(program).count("\n") == len(program) + 2
    assert "reference" in ulam_kernels.backends()
