"""Chains on their way out."""

from __future__ import annotations

import itertools
from collections import deque
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

    def apart(self) -> list[tuple[Result, int]]:
        """The chains one by one, each with its place in the job."""
        states, ids = self.states.unbind(), self.job.chain_ids[self.chains].tolist()
        places = range(self.chains.start, self.chains.stop)
        return [
            (Result(self.job, chain, x, self.failed.get(place)), place)
            for place, chain, x in zip(places, ids, states, strict=True)
        ]


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
class Batch:
    """What left the slots at one tick: groups, and where in ``states`` each begins. On a GPU there once ``copied``."""

    groups: list[tuple[Group[Job], int]]
    states: torch.Tensor
    rows: torch.Tensor | None  # at which chains failed, of the runner's table; 0 while well
    copied: torch.cuda.Event | None = None


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
        self._batches: deque[Batch] = deque()

    def put(self, groups: list[Group[Job]]) -> None:
        """Take these groups' states, before their slots are refilled."""
        begins = itertools.accumulate((group.slots.stop - group.slots.start for group in groups[:-1]), initial=0)
        parts = list(zip(groups, begins, strict=True))
        if self._cuda:
            self._batches.append(self._copied(groups, parts))
        else:
            states, rows = self._runner.taken(groups)
            self._batches.append(Batch(parts, states, rows if rows is not None and rows.numpy().any() else None))

    def _copied(self, groups: list[Group[Job]], parts: list[tuple[Group[Job], int]]) -> Batch:
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
        return Batch(parts, states, rows, copied)

    def next(self) -> Batch | None:
        """The oldest batch, if it is out; it stays until its last group is :meth:`done`."""
        while self._batches and not self._batches[0].groups:
            self._batches.popleft()
        if not self._batches:
            return None
        first = self._batches[0]
        if first.copied is not None and not first.copied.query():  # type: ignore[no-untyped-call]
            return None
        return first

    def states(self, batch: Batch, part: tuple[Group[Job], int]) -> torch.Tensor:
        """The final states of one group of a batch."""
        group, begin = part
        return batch.states[begin : begin + group.size]

    def done(self, batch: Batch, part: tuple[Group[Job], int], states: torch.Tensor) -> Finished | None:
        """Hand out a batch's first group, as these states; None if its job has been cancelled."""
        if not batch.groups or batch.groups[0] is not part:
            return None
        del batch.groups[0]
        group, begin = part
        failed: dict[int, int] = {}
        if batch.rows is not None:
            rows = batch.rows[begin : begin + group.size].tolist()
            base = self._runner.rows.begin(group.job.program)
            failed = {place: row - base for place, row in enumerate(rows, group.chains.start) if row}
        self._runner.report.chains += group.size
        self._runner.report.failed += len(failed)
        return Finished(group.job, group.chains, states, failed)

    def all_done(self, batch: Batch) -> list[tuple[Result, int]]:
        """Hand out a whole batch at once, chain by chain, each with its place in the job."""
        results: list[tuple[Result, int]] = []
        if batch.rows is None and all(group.size == 1 for group, _ in batch.groups):
            states = batch.states.unbind()
            for group, begin in batch.groups:
                results.append((Result(group.job, int(group.job.chain_ids[group.first]), states[begin]), group.first))
            batch.groups = []
            self._runner.report.chains += len(results)
            return results
        while batch.groups:
            part = batch.groups[0]
            finished = self.done(batch, part, self.states(batch, part))
            assert finished is not None
            results += finished.apart()
        return results

    def wait(self) -> bool:
        """Wait for the oldest copy under way; False if there is none."""
        try:
            batch = self._batches[0]
        except IndexError:
            return False
        if batch.copied is not None:
            batch.copied.synchronize()
        return True

    def cancel(self, job: Job) -> int:
        """Let go of a job's groups; how many chains."""
        gone = 0
        for batch in self._batches:
            gone += sum(group.size for group, _ in batch.groups if group.job is job)
            batch.groups = [part for part in batch.groups if part[0].job is not job]
        return gone
