"""Warm-up of each chain alone: its step by dual averaging, its first step by a search where none is given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..adaptation import DualAveraging, DualAveragingEach
from ..batch import ChainBatch
from ..trees import TreeBatch
from .first_step import first_step
from .gradients import Gradients
from .tuning import Warmed


def warm_up_alone(batch: ChainBatch, rate: float) -> Warmed | None:
    """Warm up each chain on its own, its step tuned to ``rate``: a chain's bits depend on no other.

    Chains of a :class:`TreeBatch` go on into the run, each when its own warm-up is over; others come to its end here.
    Where a step was given, HMC's paths keep their length; where none was, their number of leapfrog steps.

    Returns what was found where no step was given, else None: the steps are ``Chains.step`` then.
    """
    searches, gradients = batch.plan.asked.step is None, Gradients(batch)
    if searches:
        batch.begin_at(first_step(batch, gradients, batch.step, together=False))
    acceptance = torch.zeros_like(batch.step)
    if isinstance(batch, TreeBatch):
        _adapt_trees(batch, rate, acceptance, gradients)
    else:
        _adapt(batch, rate, acceptance, gradients, searches)
    if not searches:
        return None
    changed: Any = {"step": batch.step}  # of trees the first ones; the last are filled in later
    return Warmed(replace(batch.sampler, **changed), acceptance, gradients.of_chains)


def _adapt(batch: ChainBatch, rate: float, acceptance: torch.Tensor, gradients: Gradients, searches: bool) -> None:
    averaging, warmup = DualAveraging(batch.step, rate), batch.plan.warmup
    change = batch.begin_at if searches else batch.change_step

    def take(probability: torch.Tensor, done: torch.Tensor | None) -> None:
        acceptance.add_(probability / warmup)
        gradients.add_own()
        averaging.take(probability)
        change(averaging.step)

    batch.warm(warmup, take)
    change(averaging.final)


def _adapt_trees(batch: TreeBatch, rate: float, acceptance: torch.Tensor, gradients: Gradients) -> None:
    """Have chains adapt in the run that follows; ``acceptance`` and ``gradients`` are filled in on the way."""
    warmup, searched = batch.plan.warmup, gradients.of_chains.clone()
    averaging = DualAveragingEach(batch.step, rate, warmup)

    def take(probability: torch.Tensor, done: torch.Tensor | None) -> None:
        assert done is not None
        warm = done & (batch.made <= warmup)
        averaging.update_where(warm, probability)
        acceptance.add_(torch.where(warm, probability / warmup, 0.0))
        gradients.of_chains.copy_(torch.where(warm, batch.leapfrogs + searched, gradients.of_chains))
        step = torch.where(batch.made < warmup, averaging.step, averaging.final)
        batch.step = torch.where(warm, step, batch.step)

    batch.take = take
