"""The operations around the fused step in a tick, exact and readable."""

from __future__ import annotations

import torch

from ulam_kernels.reference.operands import rows_inside

IDLE_ROW = 0


def look_up(
    times: torch.Tensor,
    row: torch.Tensor,
    out: torch.Tensor,
    guidance: torch.Tensor | None,
    interval: torch.Tensor | None,
    weight: torch.Tensor | None,
) -> None:
    """``out[b] = times[row[b]]``, and ``weight`` where it is given: see :func:`ulam_kernels.look_up`.

    Raises:
        IndexError: a row outside the table.
    """
    rows_inside(row, len(times))
    torch.index_select(times, 0, row, out=out)
    if weight is not None and guidance is not None and interval is not None:
        inside = (out >= interval[0]) & (out <= interval[1])
        torch.where(inside, guidance, torch.ones_like(guidance), out=weight)


def advance(
    cursor: torch.Tensor,
    now: torch.Tensor,
    model: torch.Tensor | None,
    uncond: torch.Tensor | None,
    guidance: torch.Tensor | None,
) -> None:
    """Stop the chains whose outputs are not finite, and let the others go on: see :func:`ulam_kernels.advance`."""
    row, draw, row_advance, draw_advance, failed = cursor[:5]
    if model is not None:
        well = _finite(model)
        if uncond is not None and guidance is not None:
            well = (well | (guidance == 0)) & (_finite(uncond) | (guidance == 1))
        stops = ~well & (row != IDLE_ROW)
        torch.where(stops, row, failed, out=failed)
        for line in (row, row_advance, draw_advance):
            line.masked_fill_(stops, 0)
    now.copy_(cursor[:2])
    row += row_advance
    draw += draw_advance


def _finite(output: torch.Tensor) -> torch.Tensor:
    """``[B]`` bool: whether all of a chain's values are finite."""
    return torch.isfinite(output).flatten(1).all(1) if output.dim() > 1 else torch.isfinite(output)
