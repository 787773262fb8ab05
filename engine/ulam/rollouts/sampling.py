"""Trajectories of one sampler in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch

from ..conditioning import Cond, Shared
from ..denoiser import Denoiser, Sampler
from ..engine.engine import Engine
from ..engine.network import NetworkOptions
from ..engine.rollout import Rollout
from ..engine.sample import default_slots_for
from ..engine.trajectory import Trajectory
from ..engine.tuned import Tuned
from ..guidance import GuidanceSchedule
from ..programs.program import Program


def sample(
    denoiser: Denoiser,
    sampler: Sampler | Program,
    shape: Sequence[int],
    chains: int | range | Sequence[int] | torch.Tensor,
    seed: int | None = None,
    *,
    cond: Cond | None = None,
    guidance: float | Sequence[float] | torch.Tensor | None = None,
    uncond: Cond | None = None,
    slots: int | None = None,
    device: torch.device | str = "cpu",
    backend: str | None = None,
    dtype: torch.dtype = torch.float32,
    x_init: torch.Tensor | Shared | None = None,
    history: torch.Tensor | None = None,
    first_row: int = 0,
    guidance_interval: tuple[float, float] | None = None,
    guidance_schedule: GuidanceSchedule | None = None,
    options: NetworkOptions | Tuned | None = None,
    rows: slice | None = None,
    states: bool = True,
    outputs: bool = False,
    host: bool = False,
) -> Trajectory:
    """Sample as :func:`ulam.sample` does, and record every row: states, and the log-probability of each row's noise.

    A chain's states and log-probabilities have the same bits in any batch, as its samples do, and recording changes
    none of them.

    >>> trajectory = ulam.rollouts.sample(denoiser, ulam.samplers.DDIM(steps=20, eta=1.0), (1, 28, 28), 64, seed=0)
    >>> new = ulam.rollouts.log_prob(denoiser, trajectory)          # with gradients; the old ones: trajectory.log_prob

    Args:
        rows: a slice of the program's rows to record, all by default. states, outputs, host: see
            :class:`ulam.rollouts.Rollout`. dtype: of states and results.
        Others: as :func:`ulam.sample` has them. ``**trajectory.fork(...)`` gives those of branches.

    Raises:
        TypeError, ValueError: an invalid argument, named in the message, before anything runs; a sampler whose noise
            has no known scale.
        RuntimeError: an argument requires grad while gradients are recorded.
    """
    rollout = Rollout(states=states, outputs=outputs, rows=rows, host=host)
    count = default_slots_for(chains, options) if slots is None else slots
    engine = Engine(denoiser, shape, count, device, backend, dtype, options=options)
    job = engine.submit(
        sampler, chains, seed, cond, guidance, uncond, x_init, history=history, first_row=first_row,
        guidance_interval=guidance_interval, guidance_schedule=guidance_schedule, rollout=rollout,
    )  # fmt: skip
    return cast(Trajectory, engine.run()[job])
