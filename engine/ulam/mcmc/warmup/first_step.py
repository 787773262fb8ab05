"""A first step size: the acceptance of one leapfrog step, doubled or halved until it crosses one half."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch

from ...noise import STEP_TRIAL
from ...samplers.mcmc.chain_sampler import ChainSampler
from ...samplers.mcmc.chain_state import ChainState
from ...samplers.mcmc.hmc import HMC
from ...samplers.mcmc.nuts import NUTS
from ..batch import ChainBatch
from .gradients import Gradients

MOST = 50  # doublings or halvings
EVEN = 0.5  # acceptance


def first_step(batch: ChainBatch, gradients: Gradients, start: torch.Tensor, together: bool) -> torch.Tensor:
    """Step sizes ``[B]`` float64 for chains where they are, from ``start`` ``[B]`` [Hoffman & Gelman 2014, alg. 4].

    The step doubles while one leapfrog step of it (of MALA, one transition) is accepted with probability above 1/2, or
    halves while it is not, and ends where that changes, after 50 times at most. All trials have the same momenta.

    together: one step for all chains, by their mean acceptance; else each chain has its own, by its own.
    ``gradients``: counts one a trial, of chains that search no longer none.
    """
    last = torch.zeros_like(start)

    def acceptance(step: torch.Tensor) -> torch.Tensor:
        nonlocal last
        gradients.add((step != last).long())
        last = step
        return _acceptance(batch, step)

    return crossed(start, acceptance, together)


def crossed(start: torch.Tensor, acceptance: Callable[[torch.Tensor], torch.Tensor], together: bool) -> torch.Tensor:
    """The search, for any ``acceptance`` ``[B]`` of steps ``[B]``."""

    def large(step: torch.Tensor) -> torch.Tensor:
        found = acceptance(step)
        return (found.mean().expand_as(found) if together else found) > EVEN

    step, up = start, large(start)
    factor, going = torch.where(up, 2.0, 0.5).double(), torch.ones_like(up)
    for _ in range(MOST):
        step = torch.where(going, step * factor, step)
        going = going & (large(step) == up)
        if not bool(going.any()):
            break
    return step


def _acceptance(batch: ChainBatch, step: torch.Tensor) -> torch.Tensor:
    """min(1, exp(log ratio)) ``[B]`` float64 of one step of these sizes ``[B]``; the chains stay where they are."""
    return trial(batch, step, 1).clamp(max=0).exp().nan_to_num(0.0)


def trial(batch: ChainBatch, step: torch.Tensor, leaps: int) -> torch.Tensor:
    """The log ratio ``[B]`` float64 of paths of so many steps of these sizes ``[B]``; chains stay where they are."""
    state, sampler = batch.state, _exact(batch.sampler)
    tried = ChainState(
        state.x.clone(), state.evaluate, state.seed, state.chain, state.draw + STEP_TRIAL.stage, state.scale,
        state.backend, v=None if state.v is None else state.v.clone(), energy=state.energy, ends={leaps: None},
        center=state.center,
    )  # fmt: skip
    tried.score, tried.energy = state.score.clone(), None if state.energy is None else state.energy.clone()
    log_ratio = sampler.transition(tried, batch.columns(sampler, step))
    assert log_ratio is not None
    return log_ratio


def _exact(sampler: ChainSampler) -> ChainSampler:
    """What makes leapfrog steps of the sampler's kind, of an exact length."""
    if isinstance(sampler, NUTS):
        return HMC(1.0, 1, sampler.temperature, sampler.preconditioner, jitter=0)
    names = {field.name for field in fields(sampler)}
    changed: Any = {"jitter": 0} if "jitter" in names else {}
    return replace(sampler, **changed)
