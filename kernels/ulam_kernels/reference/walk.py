"""Whole chains of a small network, exact and readable: row by row, all chains at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ulam_kernels.networks import Network
from ulam_kernels.reference.arithmetic import RealArray
from ulam_kernels.reference.network import evaluate, values_of
from ulam_kernels.reference.operands import rows_inside
from ulam_kernels.reference.reduce import reduce
from ulam_kernels.reference.step import step
from ulam_kernels.reference.tick import IDLE_ROW, advance
from ulam_kernels.table import COLUMN_NAMES

C_NEXT = COLUMN_NAMES.index("c_next")
WRITES = 0x1F  # of flags: a bit for each register


def walk(
    steps: int,
    states: torch.Tensor,
    coef: torch.Tensor,
    flags: torch.Tensor,
    cursor: torch.Tensor,
    network: Network,
    net_in: torch.Tensor | None,
    seed: torch.Tensor | None,
    chain: torch.Tensor | None,
    row_vectors: torch.Tensor | None,
    chain_vectors: torch.Tensor | None,
    uncond_vectors: torch.Tensor | None,
    guidance: torch.Tensor | None,
    fixed: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> None:
    """``steps`` rows of every chain that is not idle: see :func:`ulam_kernels.walk`.

    Raises:
        IndexError: a row outside the table. ValueError: a row that reads what is not given. Rows before it are done.
    """
    x = states[0] if net_in is None else net_in
    now = torch.zeros_like(cursor[:2])
    for _ in range(steps):
        rows_inside(cursor[0], len(flags))
        there = torch.nonzero(cursor[0] != IDLE_ROW).flatten()
        at, rows = x[there].flatten(1).numpy(), cursor[0, there]
        row = None if row_vectors is None else row_vectors[rows].numpy()
        outputs: list[RealArray | None] = []
        for vectors in (chain_vectors, uncond_vectors):
            own = None if vectors is None else vectors[there].numpy()
            outputs.append(evaluate(network, at, row, own) if vectors is not None or not outputs else None)
        model, uncond = (_spread(output, there, x) for output in outputs)
        advance(cursor, now, model, uncond, guidance)
        there = torch.nonzero(now[0] != IDLE_ROW).flatten()
        if not len(there):
            continue
        m, u, w, s, c = (None if t is None else t[there] for t in (model, uncond, guidance, seed, chain))
        ids, some, following = (now[0, there], now[1, there]), states[:, there], None
        common = (coef, flags, ids[0], m, u, w, s, c, ids[1], None)
        scales = torch.empty(len(there), 4, dtype=states.dtype)
        reduce(some.flatten(2), *common, scales)
        following = None if net_in is None else net_in[there]
        flat = some.flatten(2)
        step(flat, *common, None if following is None else following.flatten(1), scales)
        states[:, there] = flat.view_as(some)
        if net_in is not None and following is not None:
            net_in[there] = following
        if fixed is not None and mask is not None:
            stepped = there[(flags[now[0, there]] & WRITES) != 0]
            where = torch.zeros(states.shape[1:], dtype=torch.bool)
            where[stepped] = mask.expand_as(where)[stepped]
            states[0][where] = fixed[where]
            if net_in is not None:
                scale = coef[now[0], C_NEXT].view(-1, *[1] * (fixed.dim() - 1))
                net_in[where] = (scale * fixed)[where]


def bound_walk(*arguments: Any, **fixed: Any) -> Callable[[int], None]:
    """:func:`walk` of these arguments, as a function of the count of rows, its first."""
    return lambda steps: walk(steps, *arguments, **fixed)


def call_network(
    network: Network,
    x: torch.Tensor,
    row_vector: torch.Tensor | None,
    chain_vectors: torch.Tensor | None,
    out: torch.Tensor,
    energy: torch.Tensor | None,
) -> None:
    """The output at ``x``, and the energy: see :func:`ulam_kernels.evaluate_network`."""
    row = None if row_vector is None else row_vector.expand(len(x), -1).numpy()
    values = values_of(network, x.flatten(1).numpy(), row, None if chain_vectors is None else chain_vectors.numpy())
    out.copy_(torch.from_numpy(np.array(values[network.output])).view_as(out))
    if energy is not None:
        assert network.energy is not None
        energy.copy_(torch.from_numpy(np.array(values[network.energy][:, 0])))


def _spread(output: RealArray | None, there: torch.Tensor, x: torch.Tensor) -> torch.Tensor | None:
    """The outputs of some chains among those of all, zeros for the others."""
    if output is None:
        return None
    spread = torch.zeros(len(x), output.shape[1], dtype=x.dtype)
    spread[there] = torch.from_numpy(np.array(output))
    return spread
