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
        """The chains one by one, in memory of their own, each with its place in the job."""
        states = self.states.clone()
        job, ids = self.job, self.job.chain_ids[self.chains].tolist()
        for place, (x, chain) in enumerate(zip(states, ids, strict=True), self.chains.start):
            yield Result(job, chain, x, self.failed.get(place)), place

    def kept(self) -> Finished:
        """The same in memory of its own."""
        return Finished(self.job, self.chains, self.states.clone(), self.failed)


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
class Leaving:
    """A group's states out of the slots: views on the CPU, copies on a GPU, there once ``copied`` has passed.

    ``rows``: at which chains failed, of the runner's table; 0 while well.
    """

    group: Group[Job]
    states: torch.Tensor
    rows: torch.Tensor | None
    copied: torch.cuda.Event | None = None


class Outbox:
    """Takes final states out of the slots: as views on the CPU, by copies on a side stream on a GPU.

    A view is valid until its slots are refilled, so everything is taken before the next tick. With ``to_host`` the
    copies land in pinned memory and are handed out when their event has passed; the work on the GPU goes on meanwhile.
    """

    def __init__(self, runner: Runner, to_host: bool) -> None:
        self._runner = runner
        self._cuda = runner.device.type == "cuda"
        self._to_host = to_host and self._cuda
        self._stream = torch.cuda.Stream(runner.device) if self._cuda else None  # type: ignore[no-untyped-call]
        self._leaving: deque[Leaving] = deque()

    def put(self, groups: list[Group[Job]]) -> None:
        """Take these groups' states, before their slots are refilled."""
        runner = self._runner
        for group in groups:
            states = runner.state[0, group.slots]
            rows = runner.slots.failed[group.slots] if runner.check_finite else None
            if self._cuda:
                self._leaving.append(self._copied(group, states, rows))
            else:
                self._leaving.append(Leaving(group, states, rows))

    def _copied(self, group: Group[Job], states: torch.Tensor, rows: torch.Tensor | None) -> Leaving:
        assert self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream(states.device))
        with torch.cuda.stream(self._stream):
            away = torch.empty(states.shape, dtype=states.dtype, pin_memory=True) if self._to_host else None
            out = states.clone() if away is None else away.copy_(states, non_blocking=True)
            if rows is not None:
                rows = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True).copy_(rows, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self._stream)
        torch.cuda.current_stream(states.device).wait_event(copied)  # on the device: refilling waits for the copy
        return Leaving(group, out, rows, copied)

    def next(self) -> Leaving | None:
        """The oldest group, if it is out; it stays until :meth:`done`."""
        if not self._leaving:
            return None
        first = self._leaving[0]
        if first.copied is not None and not first.copied.query():  # type: ignore[no-untyped-call]
            return None
        return first

    def failed(self, leaving: Leaving) -> dict[int, int]:
        """The rows of its program at which chains of a group failed, by their places in the job."""
        if leaving.rows is None or not any(rows := leaving.rows.tolist()):
            return {}
        group = leaving.group
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
        if (copied := leaving[0].copied) is not None:
            copied.synchronize()
        return True

    def cancel(self, job: Job) -> int:
        """Let go of a job's groups; how many chains."""
        gone = sum(entry.group.size for entry in self._leaving if entry.group.job is job)
        if gone:
            self._leaving = deque(entry for entry in self._leaving if entry.group.job is not job)
        return gone
