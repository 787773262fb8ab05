"""Valid arguments of the kernels' operations, by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ulam_kernels import Table

CHAINS, N = 4, 6
Given = dict[str, Any]


def table_of(registers: int = 1) -> Table:
    """One row: r_0 = 0.9 r_0 + 0.3 m + 0.1 z, the other registers the same; with a D that is bounded by scales."""
    zero, one = np.zeros(1), np.ones(1)
    matrix = np.zeros((1, registers, registers + 3))
    matrix[0, :, 0], matrix[0, :, registers:] = 0.9, (0.2, 0.3, 0.1)
    none = zero > 0
    return Table.pack(one, one, one * 0.9, one * np.inf, zero, zero, one * 2, matrix, ~none[None].repeat(registers, 1),
                      none, threshold=~none)  # fmt: skip


def step_arguments() -> Given:
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(CHAINS)
    return {
        "state": torch.randn(1, CHAINS, N, generator=generator), "table": table_of(), "row": torch.zeros_like(ids),
        "model": torch.randn(CHAINS, N, generator=generator), "uncond": torch.randn(CHAINS, N, generator=generator),
        "guidance": torch.tensor([0.0, 1.0, 2.5, -1.0]), "seed": ids, "chain": ids + 3, "draw": 16 * ids,
        "noise": torch.randn(CHAINS, N, generator=generator), "source": torch.randn(CHAINS, N, generator=generator),
        "scales": torch.tensor([[-0.5, 0.5, 2.0, 1.0]]).repeat(CHAINS, 1), "net_in": torch.zeros(CHAINS, N),
        "squares": torch.arange(CHAINS),
    }  # fmt: skip


def reduce_arguments() -> Given:
    return {k: x for k, x in step_arguments().items() if k not in ("scales", "source", "net_in", "squares")} | {
        "out": torch.zeros(CHAINS, 4)
    }


def blend_arguments() -> Given:
    given = step_arguments()
    return {
        "state": given["state"], "known": given["model"], "mask": given["uncond"], "a": given["guidance"],
        "b": given["scales"][:, 1].clone(), "noise": given["noise"], "net_in": given["net_in"],
        "c_next": given["guidance"] + 1, **{name: given[name] for name in ("seed", "chain", "draw")},
    }  # fmt: skip


def fill_arguments() -> Given:
    return {"out": torch.zeros(CHAINS, N)} | {k: step_arguments()[k] for k in ("seed", "chain", "draw")}


def affine_arguments() -> Given:
    given = step_arguments()
    return {"x": given["model"], "m": given["uncond"], "a": given["guidance"], "b": given["guidance"] + 0.5,
            "out": given["net_in"]}  # fmt: skip
