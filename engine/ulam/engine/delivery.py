"""Finished chains from the slots to the caller, one by one or by groups; none is lost or given twice.

Their states are copied out of the slots, on a GPU on a side stream, and wait here until they are handed out. What is
handed on is put into its new place first and leaves the old one after that. An interrupt in between is found by
:meth:`Delivery.settle`, with which every hand-over begins. The last step, out of here into the caller's loop, is one
call of ``dict.pop`` with no Python code around it, in the midst of which no interrupt can come.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from typing import TypeAlias, TypeVar

import torch

from .buffers import Buffers
from .groups import Group
from .job import Job
from .report import Report
from .results import Finished, Result

Entry = TypeVar("Entry", Result, Finished)
Handed: TypeAlias = "Iterator[Result | None] | Iterator[Finished | None]"
Key: TypeAlias = tuple[int, int]  # the number of a group, and the place in its job of a chain, or of the group's first


@dataclass(eq=False, slots=True)
class Departure:
    """A group that left its slots: its number, where its states begin, its program's first row in the table.

    The last is 0 where no chain that left with it can have failed.
    """

    number: int
    group: Group[Job]
    begin: int
    first_row: int


@dataclass(eq=False, slots=True)
class Departures:
    """The groups that left the slots at one tick, and their states. On a GPU these are there once ``copied``."""

    groups: list[Departure]
    states: torch.Tensor
    rows: torch.Tensor | None  # at which chains failed, of the table; 0 while well
    copied: torch.cuda.Event | None = None

    def states_of(self, left: Departure) -> torch.Tensor:
        """The final states of one group."""
        return self.states[left.begin : left.begin + left.group.size]

    def finished(self, left: Departure, states: torch.Tensor) -> Finished:
        """One group with these states, which its job's ``finish`` may have made."""
        group = left.group
        failed: dict[int, int] = {}
        if self.rows is not None:
            rows = self.rows[left.begin : left.begin + group.size].tolist()
            failed = {place: row - left.first_row for place, row in enumerate(rows, group.chains.start) if row}
        return Finished(group.job, group.chains, states, failed)

    def split(self) -> dict[Key, Result]:
        """All chains by their keys."""
        entries: dict[Key, Result] = {}
        states = self.states.unbind()
        for left in self.groups:
            group = left.group
            if group.size == 1 and self.rows is None:  # the usual case of small jobs
                job, place = group.job, group.first
                entries[left.number, place] = Result(job, int(job.chain_ids[place]), states[left.begin])
            else:
                chains = self.finished(left, self.states_of(left)).split()
                entries.update(((left.number, place), result) for result, place in chains)
        return entries


class Delivery:
    """Takes final states out of the slots, into memory of their own, and holds them until they are handed out.

    With ``to_host`` the copies land in pinned memory and are handed out when their event has passed; the work on the
    GPU goes on meanwhile. ``lock`` is held over everything here, never while anything waits for the device.
    """

    def __init__(
        self, buffers: Buffers, report: Report, lock: threading.RLock, check_finite: bool, to_host: bool
    ) -> None:
        self._buffers, self._report, self._lock, self._check_finite = buffers, report, lock, check_finite
        self._cuda = buffers.device.type == "cuda"
        self._to_host = to_host and self._cuda
        self._stream = torch.cuda.Stream(buffers.device) if self._cuda else None  # type: ignore[no-untyped-call]
        self._numbers = itertools.count()
        self._departures: deque[Departures] = deque()
        self._chains: dict[Key, Result] = {}
        self._groups: dict[Key, Finished] = {}
        self.joined: dict[int, dict[Job, torch.Tensor]] = {}  # by the threads that asked for them
        self._joined_of: dict[int, list[tuple[Key, Finished]]] = {}  # of these groups, states where one failed
        self._moving: tuple[dict[Key, Result] | dict[Key, Finished], Key, Callable[[], object]] | None = None

    # ------------------------------------------------------------------------------------------ out of the slots

    def put(self, groups: list[Group[Job]]) -> None:
        """Take these groups' states, before their slots are refilled."""
        if self._cuda:
            self._departures.append(self._copied(groups))
            return
        states, failed = self._buffers.taken(groups, self._check_finite)
        if failed is not None and not failed.numpy().any():
            failed = None
        self._departures.append(Departures(self._listed(groups, failed), states, failed))

    def _listed(self, groups: list[Group[Job]], failed: torch.Tensor | None) -> list[Departure]:
        begins = itertools.accumulate([group.size for group in groups[:-1]], initial=0)
        if failed is None:
            return [Departure(next(self._numbers), group, at, 0) for group, at in zip(groups, begins, strict=True)]
        rows = self._buffers.rows
        return [
            Departure(next(self._numbers), group, at, rows[group.job.program].begin)
            for group, at in zip(groups, begins, strict=True)
        ]

    def _copied(self, groups: list[Group[Job]]) -> Departures:
        assert self._stream is not None
        main = torch.cuda.current_stream(self._buffers.device)
        self._stream.wait_stream(main)
        with torch.cuda.stream(self._stream):
            states, rows = self._buffers.taken(groups, self._check_finite)
            if self._to_host:
                states = torch.empty(states.shape, dtype=states.dtype, pin_memory=True).copy_(states, non_blocking=True)
            else:
                states.record_stream(main)  # it is the main stream's from now on
            if rows is not None:
                rows = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True).copy_(rows, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self._stream)
        main.wait_event(copied)  # on the device: refilling waits for the copy
        return Departures(self._listed(groups, rows), states, rows, copied)

    def holds(self, group: Group[Job]) -> bool:
        """Whether a group's states have been taken out of its slots and not been handed on yet."""
        return any(left.group is group for departures in self._departures for left in departures.groups)

    def next(self, wait: bool) -> Departures | None:
        """The oldest departures, once they are out of the slots; they stay until their last group is taken.

        wait: for a copy under way, if there is one.
        """
        while True:
            with self._lock:
                while self._departures and not self._departures[0].groups:
                    self._departures.popleft()
                if not self._departures:
                    return None
                first = self._departures[0]
                copied = first.copied
                if copied is None or copied.query():  # type: ignore[no-untyped-call]
                    if copied is not None and self._to_host:
                        first.states = first.states.clone()  # whoever keeps it keeps no page-locked memory
                    first.copied = None
                    return first
            if not wait:
                return None
            copied.synchronize()

    # ----------------------------------------------------------------------------------------------- handed on

    def take(self, departures: Departures, split: bool) -> Handed | None:
        """Take out the groups of departures, chain by chain or whole; what there is to hand out then.

        An exception of a ``finish`` leaves its group where it is.
        """
        with self._lock:
            as_they_are = all(left.group.job.finish is None for left in departures.groups)
            if split and as_they_are and (entries := departures.split()):
                self._move(self._chains, entries, partial(self._drop_all, departures))
        while True:
            with self._lock:
                left = departures.groups[0] if departures.groups else None
            if left is None:
                return self.hand_out(split)
            states, finish = departures.states_of(left), left.group.job.finish
            if finish is not None:
                states = finish(states)
            with self._lock:
                if departures.groups and departures.groups[0] is left:  # it has not been cancelled
                    group = departures.finished(left, states)
                    self._take(left.number, group, split, partial(self._drop, departures, left, len(group.failed)))

    def _drop_all(self, departures: Departures) -> None:
        """Let go of departures that have been handed on."""
        groups, departures.groups = departures.groups, []
        failed = 0
        if departures.rows is not None:
            rows = (departures.rows[left.begin : left.begin + left.group.size] for left in groups)
            failed = sum(int((row != 0).sum()) for row in rows)
        self._report.add_delivered(sum(left.group.size for left in groups), failed)

    def _drop(self, departures: Departures, left: Departure, failed: int) -> None:
        """Let go of a group that has been handed on."""
        if departures.groups and departures.groups[0] is left:
            del departures.groups[0]
            self._report.add_delivered(left.group.size, failed)

    def hand_out(self, split: bool) -> Handed | None:
        """All chains or groups, None in place of one that has gone meanwhile; None where there are none.

        What waits in the other form is brought into this one.
        """
        with self._lock:
            self.settle()
            if split:
                for key, group in list(self._groups.items()):
                    self._take(key[0], group, True, partial(self._groups.pop, key, None))
                return map(self._chains.pop, list(self._chains), repeat(None)) if self._chains else None
            for key, result in list(self._chains.items()):
                alone = Finished(
                    result.job,
                    slice(key[1], key[1] + 1),
                    result.x[None],
                    {} if result.failed is None else {key[1]: result.failed},
                )
                self._move(self._groups, {key: alone}, partial(self._chains.pop, key, None))
            return map(self._groups.pop, list(self._groups), repeat(None)) if self._groups else None

    def join(self) -> None:
        """Join each job's chains ``[chains, ...]``, for this thread to pop; what is missing or failed is NaN.

        What it does not pop, since it was interrupted, :meth:`settle` makes groups again.
        """
        with self._lock:
            self.hand_out(split=False)
            parts: dict[Job, list[Finished]] = {}
            for group in self._groups.values():
                parts.setdefault(group.job, []).append(group)
            results = {job: _joined(groups, len(job.chains)) for job, groups in parts.items()}
            thread = threading.get_ident()
            self._joined_of[thread] = [
                (key, group if group.failed else replace(group, states=group.states[:0]))
                for key, group in self._groups.items()
            ]
            self.joined[thread] = results
            self._groups = {}

    def cancel(self, job: Job) -> int:
        """Let go of a job's chains, wherever they wait; how many."""
        gone = 0
        for departures in self._departures:
            gone += sum(left.group.size for left in departures.groups if left.group.job is job)
            departures.groups = [left for left in departures.groups if left.group.job is not job]
        for key, result in list(self._chains.items()):
            if result.job is job:
                gone += self._chains.pop(key, None) is not None
        for key, group in list(self._groups.items()):
            if group.job is job and self._groups.pop(key, None) is not None:
                gone += group.chains.stop - group.chains.start
        return gone + sum(len(results.pop(job, ())) for results in self.joined.values())

    def settle(self) -> None:
        """Complete a hand-over that was interrupted."""
        if self._moving is not None:
            target, key, drop = self._moving
            if key in target:
                drop()
            self._moving = None
        thread = threading.get_ident()
        if (results := self.joined.get(thread)) is not None:
            groups = {
                key: group if group.failed else replace(group, states=results[group.job][group.chains])
                for key, group in self._joined_of[thread]
                if group.job in results  # not cancelled since
            }
            self._groups = {**groups, **self._groups}
            self.joined.pop(thread)

    def _take(self, number: int, group: Finished, split: bool, drop: Callable[[], object]) -> None:
        if split:
            self._move(self._chains, {(number, place): result for result, place in group.split()}, drop)
        else:
            self._move(self._groups, {(number, group.chains.start): group}, drop)

    def _move(self, target: dict[Key, Entry], entries: dict[Key, Entry], drop: Callable[[], object]) -> None:
        self._moving = target, next(iter(entries)), drop
        target.update(entries)
        drop()
        self._moving = None


def _joined(parts: list[Finished], chains: int) -> torch.Tensor:
    like = parts[0].states
    out = torch.full((chains, *like.shape[1:]), float("nan"), dtype=like.dtype, device=like.device)
    for part in parts:
        out[part.chains] = part.states
        for place in part.failed:
            out[place] = float("nan")
    return out
