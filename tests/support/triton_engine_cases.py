"""Samples, policies and engines on a stand-in device whose launches Triton's interpreter executes."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch

import ulam
from gpu_chain_cases import SEED, engine_of, moved, on_cpu, ran, told, walked
from gpu_stand_in import standing_in
from mlp_cases import CASES
from ulam.samplers import DDIM, DDPM, DPMSolverPP
from ulam_kernels import dispatch, triton, walks

# As far as results may be from the CPU's, over the largest: float32 has its bits, but for LayerNorm.
TOLERANCES = {"on": 0.0, "tf32x3": 2e-5, "bf16": 5e-2}
NORMED = 2e-5
JOBS: dict[str, tuple[Any, dict[str, Any]]] = {
    "tutorial": (DPMSolverPP(4), {}),
    "chunk policy": (DDPM(4), {"callback": lambda preview: None, "every": 2}),
    "adaptive norm": (DDIM(4), {}),
    "learned variances": (DDPM(4, variance="learned_range", clip=(-1, 1)), {"callback": lambda preview: None}),
}


def by_triton(*arguments: Any, **given: Any) -> torch.Tensor:
    """A sample on the host whose walk is `ulam_kernels.walk(backend="triton")`."""
    with mock.patch.object(walks, "select_for_networks", lambda *_: triton):
        return walked(*arguments, **given)


def check_engines() -> None:
    """The bits of the Triton backend's walk in every way to ask for them; the CPU's within what is stated."""
    assert dispatch.name_of(triton) == "triton"
    for name, (sampler, watched) in JOBS.items():
        shape, given = CASES[name].shape, told(name, 5)
        for kernel, tolerance in TOLERANCES.items() if name == "chunk policy" else [("on", 0.0)]:
            plain, fresh = on_cpu(name), on_cpu(name)  # what a walk was bound to is kept with its denoiser
            expected, cpus = by_triton(plain, sampler, shape, 5, kernel, **given), walked(
                fresh, sampler, shape, 5, "on", **given)  # fmt: skip
            assert expected.isfinite().all()
            with standing_in(rush=False) as gpu:
                there = moved(plain)
                found = [walked(there, sampler, shape, 5, kernel, device="cuda", **given).cpu()]
                engine = engine_of(there, shape, 3, kernel=kernel)
                found += ran(engine, [(sampler, 5, given | watched)])
                assert engine.report.chain_kernel == kernel
                if kernel == "on":
                    policy = ulam.Policy(there, sampler, shape, 5, SEED, device="cuda", **given)
                    found.append(policy().cpu())
                launched = {launch for launch, *_ in gpu.launches}
            assert "triton::walk_tiles" in launched and ("triton::call_tiles" in launched) == bool(watched)
            assert all(torch.equal(one, expected) for one in found), (name, kernel)
            room = max(tolerance, NORMED if name == "adaptive norm" else 0.0) * cpus.abs().max()
            assert (expected - cpus).abs().max() <= room, (name, kernel, (expected - cpus).abs().max() / room)
            assert kernel == "on" or not torch.equal(expected, cpus)
