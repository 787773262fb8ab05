"""Chains on their way out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .job import Job
from .runner import Runner
from .scheduler import Group


@dataclass(frozen=True, eq=False)
class Result:
    """A finished chain: its job, its id, its final state ``x`` ``[*shape]`` (after the job's ``finish``).

    ``failed`` is None, or the row at which the chain turned NaN or Inf; x then is its last finite state.
    """

    job: Job
    chain: int
    x: torch.Tensor
    failed: int | None = None


@dataclass(eq=False)
class Finished:
    """Chains of a job that ended together: their final states ``[n, *shape]`` (after the job's ``finish``).

    ``failed`` maps the places (in the job) of chains that turned NaN or Inf to the row at which they did; their states
    are the last finite ones.
    """

    job: Job
    chains: slice
    states: torch.Tensor
    failed: dict[int, int]

    def apart(self) -> Iterator[tuple[Result, int]]:
        """The chains one by one, each with its place in the job."""
        job, ids = self.job, self.job.chain_ids[self.chains].tolist()
        for place, (x, chain) in enumerate(zip(self.states.unbind(), ids, strict=True), self.chains.start):
            yield Result(job, chain, x, self.failed.get(place)), place


def together(parts: list[Finished], chains: int) -> torch.Tensor:
    """All parts of a job in one tensor; what is missing or failed is NaN."""
    like = parts[0].states
    out = torch.full((chains, *like.shape[1:]), float("nan"), dtype=like.dtype, device=like.device)
    for part in parts:
        out[part.chains] = part.states
        for place in part.failed:
            out[place] = float("nan")
    return out


@dataclass(eq=False)
class _Batch:
    """What left the slots at one tick. On a GPU it is there once ``copied`` has passed."""

    rows: torch.Tensor | None  # at which chains failed, of the runner's table; 0 while well
    copied: torch.cuda.Event | None = None


@dataclass(eq=False)
class Leaving:
    """One group of a batch: its states, and where it begins in the batch."""

    group: Group[Job]
    states: torch.Tensor
    begin: int
    batch: _Batch


class Outbox:
    """Takes final states out of the slots, into memory of their own; on a GPU on a side stream.

    With ``to_host`` the copies land in pinned memory and are handed out when their event has passed; the work on the
    GPU goes on meanwhile.
    """

    def __init__(self, runner: Runner, to_host: bool) -> None:
        self._runner = runner
        self._cuda = runner.device.type == "cuda"
        self._to_host = to_host and self._cuda
        self._stream = torch.cuda.Stream(runner.device) if self._cuda else None  # type: ignore[no-untyped-call]
        self._leaving: deque[Leaving] = deque()

    def put(self, groups: list[Group[Job]]) -> None:
        """Take these groups' states, before their slots are refilled."""
        if self._cuda:
            states, batch = self._copied(groups)
        else:
            states, rows = self._runner.taken(groups)
            batch = _Batch(rows if rows is not None and rows.numpy().any() else None)
        begin, sizes = 0, [group.slots.stop - group.slots.start for group in groups]
        for group, size, part in zip(groups, sizes, states.split(sizes), strict=True):
            self._leaving.append(Leaving(group, part, begin, batch))
            begin += size

    def _copied(self, groups: list[Group[Job]]) -> tuple[torch.Tensor, _Batch]:
        assert self._stream is not None
        main = torch.cuda.current_stream(self._runner.device)
        self._stream.wait_stream(main)
        with torch.cuda.stream(self._stream):
            states, rows = self._runner.taken(groups)
            if self._to_host:
                states = torch.empty(states.shape, dtype=states.dtype, pin_memory=True).copy_(states, non_blocking=True)
            else:
                states.record_stream(main)  # it is the main stream's from now on
            if rows is not None:
                rows = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True).copy_(rows, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self._stream)
        main.wait_event(copied)  # on the device: refilling waits for the copy
        return states, _Batch(rows, copied)

    def next(self) -> Leaving | None:
        """The oldest group, if it is out; it stays until :meth:`done`."""
        if not self._leaving:
            return None
        first = self._leaving[0]
        if (copied := first.batch.copied) is not None and not copied.query():  # type: ignore[no-untyped-call]
            return None
        return first

    def failed(self, leaving: Leaving) -> dict[int, int]:
        """The rows of its program at which chains of a group failed, by their places in the job."""
        if leaving.batch.rows is None:
            return {}
        group = leaving.group
        rows = leaving.batch.rows[leaving.begin : leaving.begin + group.size].tolist()
        base = self._runner.base(group.job.program)
        return {place: row - base for place, row in enumerate(rows, group.chains.start) if row}

    def done(self, leaving: Leaving) -> bool:
        """Let go of the oldest group, which has been handed out; False if its job has been cancelled meanwhile."""
        if not self._leaving or self._leaving[0] is not leaving:
            return False
        self._leaving.popleft()
        return True

    def wait(self) -> bool:
        """Wait for the oldest copy under way; False if there is none."""
        leaving = self._leaving  # another thread may put a shorter queue in its place
        if not leaving:
            return False
        if (copied := leaving[0].batch.copied) is not None:
            copied.synchronize()
        return True

    def cancel(self, job: Job) -> int:
        """Let go of a job's groups; how many chains."""
        gone = sum(entry.group.size for entry in self._leaving if entry.group.job is job)
        if gone:
            self._leaving = deque(entry for entry in self._leaving if entry.group.job is not job)
        return gone
