"""Chains of NUTS on a GPU (see gpu_stand_in): the CPU's bits, and one wait of the host in eight leaps."""

from __future__ import annotations

import torch

from ulam import mcmc
from ulam.mcmc import live_rows
from ulam.mcmc.trees import LOOK

pytest_plugins = "gpu_stand_in"


def test_the_host_waits_once_in_some_leaps_and_the_bits_are_those_of_the_cpu(gpu, monkeypatch):
    def score(x):
        calls.append(len(x))
        return -x

    monkeypatch.setattr(live_rows, "MULTIPLE", 1)  # of the rows that are left
    calls: list[int] = []
    target = mcmc.Energy(lambda x: x.square().sum(1) / 2, score)
    options = {"chains": 9, "shape": (3,), "steps": 5, "warmup": 3, "thin": 2, "adapt": 0.8, "seed": 3}
    there = mcmc.run(target, mcmc.NUTS(0.4), device="cuda:0", progress=False, **options)
    shrunk = len({*calls}) - 1
    leaps = len(calls) - 1 - shrunk  # once where chains begin, and each time that rows leave
    assert leaps > 3 * LOOK and sum(calls) - 9 == there.report["gradients"] and min(calls) < 9
    for where, most in (
        ("nuts.py", 0),
        ("rows.py", 0),
        ("kept.py", 0),
        ("live_rows.py", shrunk),  # each time that rows leave
        ("trees.py", leaps // LOOK + 2),
    ):  # 2: the report
        assert len([wait for wait in gpu.waits if wait.where.startswith(where)]) <= most, gpu.waits
    here = mcmc.run(target, mcmc.NUTS(0.4), progress=False, **options)
    for name in ("draws", "energies", "tree_depth", "leapfrogs", "step", "acceptance"):
        assert torch.equal(getattr(there, name).cpu(), getattr(here, name)), name
