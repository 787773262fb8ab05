"""Finished chains, as the caller receives them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ulam_kernels.reprs import short_repr

from .job import Job
from .trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class Result:
    """A finished chain: its job, its id, its final state ``x`` ``[*shape]`` (after the job's ``finish``).

    ``failed`` is None, or the row at which the chain turned NaN or Inf; ``x`` is then its last finite state.
    ``trajectory``: of this chain alone, where the job has a ``rollout``.
    """

    job: Job
    chain: int
    x: torch.Tensor
    failed: int | None = None
    trajectory: Trajectory | None = None

    __repr__ = short_repr


@dataclass(eq=False)
class Finished:
    """Chains of a job that ended together: their final states ``[n, *shape]`` (after the job's ``finish``).

    ``failed`` maps each chain that turned NaN or Inf, by its index in the job, to the row at which it did; its state is
    the last finite one. ``trajectory``: of these chains, where the job has a ``rollout``.
    """

    job: Job
    chains: slice
    states: torch.Tensor
    failed: dict[int, int]
    trajectory: Trajectory | None = None

    def split(self) -> list[tuple[Result, int]]:
        """The chains one by one, each with its index in the job."""
        states, ids = self.states.unbind(), self.job.chain_ids[self.chains].tolist()
        places = range(self.chains.start, self.chains.stop)
        return [
            (Result(self.job, chain, x, self.failed.get(place), self._alone(place)), place)
            for place, chain, x in zip(places, ids, states, strict=True)
        ]

    def _alone(self, place: int) -> Trajectory | None:
        return None if self.trajectory is None else self.trajectory[place - self.chains.start]
