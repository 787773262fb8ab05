"""Random reductions: tables whose rows need quantiles or norms, and the tensors that go with them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

import ulam_kernels
from ulam_kernels import Table

LEVELS = (1.0, 0.995, 0.5, 0.9, 1e-3)


def table_of(kinds: list[str], registers: int = 1, p: Any = 0.9, cap: Any = math.inf, kx: Any = 1.25, km: Any = -0.75,
             dtype: torch.dtype = torch.float32) -> Table:  # fmt: skip
    """Rows of the kinds "threshold", "normalise", "clip", "plain" or "idle"; p, cap, kx, km: one for all or each."""
    rows = len(kinds)
    each = lambda value: np.broadcast_to(np.asarray(value, dtype=np.float64), (rows,))  # noqa: E731
    kind = {name: np.array([name == k for k in kinds]) for name in ("threshold", "normalise", "clip", "plain", "idle")}
    matrix = np.zeros((rows, registers, registers + 3))
    matrix[:, 0, 0], matrix[:, 0, registers], matrix[:, 0, -2:] = 0.5, 0.375, (-0.125, 0.25)
    matrix[kind["plain"], 0, registers] = 0
    writes = np.zeros((rows, registers), dtype=bool)
    writes[:, 0] = ~kind["idle"]
    lo = np.where(kind["threshold"], each(p), np.where(kind["clip"], -0.75, -np.inf))
    hi = np.where(kind["threshold"], each(cap), np.where(kind["clip"], 0.75, np.inf))
    zero, none = np.zeros(rows), np.zeros(rows, dtype=bool)
    flagged = {name: kind[name] for name in ("threshold", "normalise")}
    return Table.pack(each(kx), each(km), lo, hi, zero, zero, zero + 2, matrix, writes, none, dtype=dtype, **flagged)


MIXED = ["idle", "plain", "clip", *("threshold",) * 5, "normalise", "normalise", "threshold", "normalise"]


def mixed_table(registers: int = 1) -> Table:
    """Every kind of row: several levels, a cap that acts, absent terms of D."""
    rows = len(MIXED)
    p, cap = np.full(rows, 0.9), np.full(rows, np.inf)
    p[3:8], cap[4] = LEVELS, 1.125
    kx, km = np.full(rows, 1.25), np.full(rows, -0.75)
    kx[[6, 9]], km[[7, 10, 11]] = 0, 0
    kx[11] = 0  # D = 0
    return table_of(MIXED, registers, p, cap, kx, km)


def random_inputs(rng: np.random.Generator, shape: tuple[int, ...], dtype: torch.dtype, chains: int,
                  guided: bool, explicit: bool) -> dict[str, torch.Tensor]:  # fmt: skip
    normal = lambda *size: torch.from_numpy(rng.normal(size=size).astype(np.float32))  # noqa: E731
    inputs = {name: torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, chains)) for name in ("seed", "chain", "draw")}
    inputs["model"] = normal(chains, *shape).to(dtype)
    if guided:
        inputs["uncond"] = normal(chains, *shape).to(dtype)
        inputs["guidance"] = torch.from_numpy(rng.choice([0.0, 1.0, 2.5, -1.0], size=chains).astype(np.float32))
    if explicit:
        inputs["noise"] = normal(chains, *shape)
    return inputs


def reduced(state: torch.Tensor, table: Table, row: torch.Tensor, **given: Any) -> torch.Tensor:
    out = torch.full((state.shape[1], 4), math.nan, dtype=table.coef.dtype)
    assert ulam_kernels.reduce(state, table, row, out=out, **given) is out
    return out
