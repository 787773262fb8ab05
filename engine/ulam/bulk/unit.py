"""A unit: the finished samples of consecutive chains of one job, and their bytes in a file."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Unit:
    """Finished chains: samples ``x`` [n, *shape], ids ``chains`` int64 [n], ``labels`` int64 [n] or None, their seed.

    failed: for the chains that turned NaN or Inf, by place in ``x``, the row at which they did; of float samples these
    are NaN.
    """

    x: torch.Tensor
    chains: torch.Tensor
    labels: torch.Tensor | None
    seed: int
    failed: dict[int, int]
