"""What a callback sees of a job under way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .job import Job


@dataclass(frozen=True, eq=False)
class Preview:
    """Chains of a job after a row: their ids, the state ``x`` and the x_0 estimate before the update, ``[n, *shape]``.

    ``x0`` is what the row's network output says of the data (before any clip), None on rows that have no estimate.
    """

    job: Job
    chains: list[int]
    row: int
    x: torch.Tensor
    x0: torch.Tensor | None
