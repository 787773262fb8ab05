"""The door of warm-up: none, each chain alone, or all together."""

from __future__ import annotations

from ..batch import ChainBatch
from .alone import warm_up_alone
from .pooled import warm_up_together
from .settings import Warmup
from .tuning import Warmed


def warm_up(batch: ChainBatch) -> Warmed | None:
    """The warm-up of a batch's plan, in which nothing is kept; what it found, where something was asked for."""
    adapt = batch.plan.adapt
    if adapt is None:
        batch.advance_unkept()
        return None
    return warm_up_together(batch, adapt) if isinstance(adapt, Warmup) else warm_up_alone(batch, adapt)
