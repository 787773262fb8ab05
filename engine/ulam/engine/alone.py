"""A small job that an engine of whole chains has to itself, walked without slots: they would cost as much as the walk.

Only where the job before was like it, as a policy's are one after another: the first of them has the slots.
"""

from __future__ import annotations

from typing import TypeAlias

import torch

from ulam_kernels.networks import Linear

from ..programs.program import Program
from .buffers import Buffers
from .job import Job
from .walked_slots import WalkedSlots
from .walker import Walker, walks

MOST_OPERATIONS = 1 << 29  # of a job by itself, which others wait for: a few milliseconds


Kind: TypeAlias = "tuple[Program, int, bool]"


class Alone:
    """The walker of jobs like the last one."""

    def __init__(self, chains: WalkedSlots, buffers: Buffers) -> None:
        self._chains, self._buffers = chains, buffers
        self._like: Kind | None = None
        self._walker: Walker | None = None

    def takes(self, job: Job) -> bool:
        """Whether a job can be walked by itself, as the one before could."""
        if (like := self._kind(job)) is None:
            return False
        if like == self._like:
            return self._walker is not None or self._operations(job) <= MOST_OPERATIONS
        self._walker, self._like = None, like  # in this order: no walker is of another kind than the one said
        return False

    def repeated(self, job: Job) -> Kind | None:
        """The kind of the job that was walked last, if this one has it, no rank, and a network without conditioning."""
        like, apart = self._like, job.finish is not None or job.priority
        if self._walker is None or like is None or apart or job.cond or self._chains.compiled.names:
            return None
        return like if like == self._kind(job) else None

    def is_of(self, kind: Kind) -> bool:
        """Whether no other kind came between."""
        return self._like is kind

    def _kind(self, job: Job) -> Kind | None:
        """What jobs that are alike have in common; None for those that are not walked by themselves."""
        if self._buffers.device.type != "cpu" or not walks(job) or (job.history, job.deadline) != (None, None):
            return None
        return job.program, job.chains.shape[0], job.weights is not None

    def _operations(self, job: Job) -> int:
        linears = [one for one in self._chains.compiled.network.instructions if isinstance(one, Linear)]
        of_one = 2 * sum(weight.numel() for linear in linears for weight in linear.weights)
        return of_one * job.chains.shape[0] * job.ticks * (1 if job.weights is None else 2)

    def walk(self, job: Job) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Final states, and of each chain 1 + the row of its program at which it failed, or 0; None if none did."""
        compiled, buffers = self._chains.compiled, self._buffers
        compiled.refresh()
        if self._walker is None:
            self._walker = Walker(compiled, job.program, buffers.shape, job.chains.shape[0],
                                  guided=job.weights is not None, times=buffers.t.dtype, device=buffers.device,
                                  backend=buffers.backend, precision=self._chains.precision)  # fmt: skip
        self._walker.follow()
        states = self._walker.walk(job).clone()
        return states, self._walker.failed_rows()
