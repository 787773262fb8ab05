"""Chains on their way out of the slots."""

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


@dataclass(eq=False, slots=True)
class Part:
    """A group in a batch: its number, where in ``states`` it begins, its program's first row in the table.

    The last is 0 where no chain of the batch can have failed.
    """

    number: int
    group: Group[Job]
    begin: int
    first_row: int


@dataclass(eq=False, slots=True)
class Batch:
    """What left the slots at one tick: groups and their states. On a GPU these are there once ``copied``."""

    parts: list[Part]
    states: torch.Tensor
    rows: torch.Tensor | None  # at which chains failed, of the table; 0 while well
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
        self._numbers = itertools.count()

    def put(self, groups: list[Group[Job]]) -> None:
        """Take these groups' states, before their slots are refilled."""
        if self._cuda:
            self._batches.append(self._copied(groups))
            return
        states, failed = self._taken(groups)
        if failed is not None and not failed.numpy().any():
            failed = None
        self._batches.append(Batch(self._parts(groups, failed), states, failed))

    def _parts(self, groups: list[Group[Job]], failed: torch.Tensor | None) -> list[Part]:
        begins = itertools.accumulate([group.size for group in groups[:-1]], initial=0)
        if failed is None:
            return [Part(next(self._numbers), group, begin, 0) for group, begin in zip(groups, begins, strict=True)]
        rows = self._runner.buffers.rows
        return [
            Part(next(self._numbers), group, begin, rows[group.job.program].begin)
            for group, begin in zip(groups, begins, strict=True)
        ]

    def _taken(self, groups: list[Group[Job]]) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self._runner.buffers.taken(groups, self._runner.check_finite)

    def _copied(self, groups: list[Group[Job]]) -> Batch:
        assert self._stream is not None
        main = torch.cuda.current_stream(self._runner.device)
        self._stream.wait_stream(main)
        with torch.cuda.stream(self._stream):
            states, rows = self._taken(groups)
            if self._to_host:
                states = torch.empty(states.shape, dtype=states.dtype, pin_memory=True).copy_(states, non_blocking=True)
            else:
                states.record_stream(main)  # it is the main stream's from now on
            if rows is not None:
                rows = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True).copy_(rows, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self._stream)
        main.wait_event(copied)  # on the device: refilling waits for the copy
        return Batch(self._parts(groups, rows), states, rows, copied)

    def next(self) -> Batch | None:
        """The oldest batch, if it is out; it stays until its last group is :meth:`done`."""
        while self._batches and not self._batches[0].parts:
            self._batches.popleft()
        if not self._batches:
            return None
        first = self._batches[0]
        if first.copied is not None:
            if not first.copied.query():  # type: ignore[no-untyped-call]
                return None
            if self._to_host:
                first.states = first.states.clone()  # whoever keeps it keeps no page-locked memory
            first.copied = None
        return first

    def states(self, batch: Batch, part: Part) -> torch.Tensor:
        """The final states of one group of a batch."""
        return batch.states[part.begin : part.begin + part.group.size]

    def finished(self, batch: Batch, part: Part, states: torch.Tensor) -> Finished:
        """One group of a batch with these states, which its job's ``finish`` may have made."""
        group = part.group
        failed: dict[int, int] = {}
        if batch.rows is not None:
            rows = batch.rows[part.begin : part.begin + group.size].tolist()
            failed = {place: row - part.first_row for place, row in enumerate(rows, group.chains.start) if row}
        return Finished(group.job, group.chains, states, failed)

    def apart(self, batch: Batch) -> dict[tuple[int, int], Result]:
        """All chains of a batch, by the numbers of their groups and their places in their jobs."""
        entries: dict[tuple[int, int], Result] = {}
        states = batch.states.unbind()
        for part in batch.parts:
            group = part.group
            if group.size == 1 and batch.rows is None:  # the usual case of small jobs
                job, place = group.job, group.first
                entries[part.number, place] = Result(job, int(job.chain_ids[place]), states[part.begin])
            else:
                chains = self.finished(batch, part, self.states(batch, part)).apart()
                entries.update(((part.number, place), result) for result, place in chains)
        return entries

    def drop_all(self, batch: Batch) -> None:
        """Let go of a batch that has been handed on."""
        parts, batch.parts = batch.parts, []
        self._runner.report.chains += sum(part.group.size for part in parts)
        if batch.rows is not None:
            rows = (batch.rows[part.begin : part.begin + part.group.size] for part in parts)
            self._runner.report.failed += sum(int((failed != 0).sum()) for failed in rows)

    def drop(self, batch: Batch, part: Part, failed: int) -> None:
        """Let go of a group that has been handed on."""
        if batch.parts and batch.parts[0] is part:
            del batch.parts[0]
            self._runner.report.chains += part.group.size
            self._runner.report.failed += failed

    def holds(self, group: Group[Job]) -> bool:
        """Whether a group's states have been taken and are not handed on yet."""
        return any(part.group is group for batch in self._batches for part in batch.parts)

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
            gone += sum(part.group.size for part in batch.parts if part.group.job is job)
            batch.parts = [part for part in batch.parts if part.group.job is not job]
        return gone
