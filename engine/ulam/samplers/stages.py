"""Steps of several stages: rows that evaluate the network between two levels of the grid, and the noise they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..programs.builder import ProgramBuilder
from ..schedules import Array, Schedule
from .euler import at_ratio
from .exponential import Form, Terms, combined
from .grid import ROUNDING, Grid


def staged(
    builder: ProgramBuilder,
    nodes: Grid,
    known: Sequence[Terms],
    estimates: Sequence[Terms],
    v: Array,
    noise: Array,
) -> None:
    """The rows of one step. Row k evaluates at level k of `nodes` and leaves x at level k + 1, the last at the end:

        x_{k+1} = known_k + sum_{j <= k} v_kj m_j + sum_{j <= k} noise_kj z_j

    known: of x and the network's output at the start; estimates: m_j, in terms of row j; v, noise: [stages, stages],
    lower triangular. z_j is the noise of row j, so that two stages may share it. r1, r2 gather what later rows need.
    """
    for k in range(len(nodes)):
        updates: dict[str, Any] = {}
        for j in range(k, len(nodes)):
            if k == 0:
                before = known[j]
            elif j == k or v[j, k] != 0 or noise[j, k] != 0:
                before = {f"r{j}": 1.0}
            else:
                continue
            updates["x" if j == k else f"r{j}"] = combined(
                (1.0, before), (v[j, k], estimates[k]), (noise[j, k], {"z": 1.0})
            )
        builder.rows(nodes.times[k], levels=(nodes.alphas[k], nodes.sigmas[k]), **updates)


def data_stages(builder: ProgramBuilder, nodes: Grid, along: Array, v: Array, noise: Array) -> None:
    """`staged` rows x_k = alpha_k D_0 + along_k eps_0 + alpha_k sum_{j > 0} v_kj (D_j - D_0) + sum_j noise_kj z_j.

    along: [stages], of the levels behind the first; v and noise as in `staged`, the column v_k0 being left out.
    """
    on_x = along / nodes.sigmas[0]
    v = nodes.alphas[1:, None] * v
    on_D = nodes.alphas[1:] - on_x * nodes.alphas[0] - v.sum(axis=1)
    known: list[Terms] = [{"x": x, "D": D} for x, D in zip(on_x, on_D, strict=True)]
    staged(builder, nodes, known, [{"D": 1.0}] * len(nodes), v, noise)


class Nodes(Grid):
    """Levels that may repeat, such as a middle that is the end."""

    def __post_init__(self) -> None: ...


def nodes_between(schedule: Schedule, grid: Grid, i: int, fractions: Sequence[float], whole: bool) -> Nodes | None:
    """The levels of step i: its start, those at `fractions` of its way in log-SNR, and its end; None for a step of one
    stage, which begins at alpha = 0, ends at the data, or has no training index inside it.

    whole: whether the network is told whole training indices alone: middles are then at the nearest below the start.
    """
    time, (u, u_next) = grid.times[i], grid.ratios[i : i + 2]
    if grid.alphas[i] == 0 or u_next == 0 or (whole and time == 0):
        return None
    times, (alphas, sigmas) = at_ratio(schedule, u * (u_next / u) ** np.asarray(fractions))
    if whole:
        times = np.minimum(times.round(), time - 1)
        alphas, sigmas = schedule.levels(times)
        if (sigmas < u_next * alphas * (1 - ROUNDING)).any():
            return None
    return Nodes(
        np.append(time, times),
        np.concatenate([grid.alphas[i : i + 1], alphas, grid.alphas[i + 1 : i + 2]]),
        np.concatenate([grid.sigmas[i : i + 1], sigmas, grid.sigmas[i + 1 : i + 2]]),
    )


def one_stage(builder: ProgramBuilder, grid: Grid, form: Form, i: int) -> None:
    """Step i as a row of order 1."""
    step = form.steps(grid, np.array([i]), np.array([i + 1]))
    builder.rows(grid.times[i], levels=(grid.alphas[i], grid.sigmas[i]), x=step.first_order)
