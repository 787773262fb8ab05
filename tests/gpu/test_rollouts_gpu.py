"""Recorded steps and trajectories on a GPU against the CPU's bits. Skipped where torch sees none."""

from __future__ import annotations

import pytest
import torch

import ulam
import ulam_kernels
from ulam import rollouts
from ulam.samplers import DDPM, DPMSolverPP

SCHEDULE = ulam.schedules.vp_linear(1000)
BACKENDS = ulam_kernels.backends()
USABLE = [name for name in ("cuda", "triton") if BACKENDS[name] == "usable"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not USABLE, reason=f"no GPU: cuda {BACKENDS['cuda']}, triton {BACKENDS['triton']}"),
]


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Of products alone, which are rounded alike everywhere."""
    return 0.75 * x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1,), (3,), (5,), (14,), (33,), (1000,), (3, 32, 32), (3, 64, 64), (1, 70001)])
@pytest.mark.parametrize("backend", USABLE)
def test_squares_of_the_noise_are_the_cpus(backend: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    chains, table = 37, DDPM(steps=9).program(SCHEDULE, "eps").table()
    x, m = torch.randn(1, chains, *shape, dtype=dtype), torch.randn(chains, *shape, dtype=dtype)
    ids = {name: torch.arange(chains) + first for name, first in (("seed", 5), ("chain", 0), ("draw", 1))}
    row = torch.arange(chains) % 9

    def stepped(device: str, backend: str | None, layout: torch.memory_format) -> tuple[torch.Tensor, torch.Tensor]:
        states, squares = x.clone().to(device), torch.zeros(chains, dtype=torch.int64, device=device)
        moved = type(table)(table.coef.to(device), table.flags.to(device), table.registers)
        ulam_kernels.step(
            states, moved, row.to(device), model=m.to(device).contiguous(memory_format=layout), squares=squares,
            backend=backend, **{name: value.to(device) for name, value in ids.items()},
        )  # fmt: skip
        return states.cpu(), squares.cpu()

    wanted = stepped("cpu", None, torch.contiguous_format)
    layouts = [torch.contiguous_format, *([torch.channels_last] if len(shape) == 3 else [])]
    for layout in layouts:
        assert all(map(torch.equal, stepped("cuda", backend, layout), wanted))


@pytest.mark.parametrize("sampler", [DDPM(steps=9), DPMSolverPP(steps=8, sde=True)], ids=repr)
@pytest.mark.parametrize("backend", USABLE)
def test_trajectories_are_the_cpus(backend: str, sampler: ulam.samplers.DDPM) -> None:
    denoiser = ulam.Denoiser(network, SCHEDULE)
    ours = rollouts.sample(denoiser, sampler, (3, 8, 8), 12, 5, slots=5, outputs=True)
    for host in (False, True):
        there = rollouts.sample(
            denoiser, sampler, (3, 8, 8), 12, 5, slots=5, outputs=True, device="cuda", backend=backend, host=host
        )
        for name in ("states", "squares", "outputs", "x"):
            assert torch.equal(getattr(there, name).cpu(), getattr(ours, name))
        found = rollouts.log_prob(denoiser, there).cpu()
        assert (found - ours.log_prob[:, ours.stochastic]).abs().max() < 1e-6 * 192
