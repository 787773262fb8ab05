"""Delivers finished chains from the slots to the caller, one by one or in groups; none is lost or delivered twice.

Their states are copied out of the slots (on a GPU, on a side stream) and wait here until they are handed out. A
hand-over from there adds an entry to its new place before removing it from the old one; :meth:`Delivery.settle`, with
which every hand-over begins, completes one that was interrupted in between. Whatever follows takes an entry by one call
of ``dict.pop`` with no Python code around it, which no interrupt can split: a change of its form, for callers who may
hold iterators over the others, and the last step, from here into the caller's loop.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any, TypeAlias, TypeVar

import torch

from .buffers import Buffers
from .groups import Group
from .job import Job
from .report import Report
from .results import Finished, Result
from .trajectory import Trajectory, joined, trajectory_of

K = TypeVar("K")
Entry = TypeVar("Entry")
T = TypeVar("T")
Handed: TypeAlias = "Iterator[Result | None] | Iterator[Finished | None]"
_LEFT = torch.empty(0)  # in place of states that have been joined: of memory, only the joined ones are kept
Key: TypeAlias = tuple[int, int]  # a group's number, and the index in its job of a chain, or of the group's first


@dataclass(eq=False, slots=True)
class Departure:
    """A group that left its slots: its number, the offset of its states, its program's first row in the table.

    ``first_row`` is 0 where no chain that left with it can have failed.
    """

    number: int
    group: Group[Job]
    begin: int
    first_row: int


@dataclass(eq=False, slots=True)
class Departures:
    """The groups that left the slots at one tick, and their states; on a GPU, valid once ``copied`` is done."""

    groups: list[Departure]
    states: torch.Tensor
    rows: torch.Tensor | None  # of the table, at which chains failed; 0 for none
    copied: torch.cuda.Event | None = None

    def states_of(self, departure: Departure) -> torch.Tensor:
        """The final states of one group."""
        return self.states[departure.begin : departure.begin + departure.group.size]

    def finished(self, departure: Departure, states: torch.Tensor) -> Finished:
        """One group's results: these states (after its job's ``finish``) and the rows at which chains failed."""
        group = departure.group
        failed: dict[int, int] = {}
        if self.rows is not None:
            rows = self.rows[departure.begin : departure.begin + group.size].tolist()
            failed = {place: row - departure.first_row for place, row in enumerate(rows, group.chains.start) if row}
        return Finished(group.job, group.chains, states, failed, trajectory_of(group, states, failed))

    def split(self) -> dict[Key, Result]:
        """All chains' results, by key."""
        entries: dict[Key, Result] = {}
        states = self.states.unbind()
        for departure in self.groups:
            group = departure.group
            if group.size == 1 and self.rows is None and group.record is None:  # the usual case of small jobs
                job, place = group.job, group.first
                entries[departure.number, place] = Result(job, int(job.chain_ids[place]), states[departure.begin])
            else:
                chains = self.finished(departure, self.states_of(departure)).split()
                entries.update(((departure.number, place), result) for result, place in chains)
        return entries


class Delivery:
    """Copies final states out of the slots and holds them until they are handed out.

    With ``to_host`` the copies go to pinned memory and are handed out once their event has completed, while the GPU
    works on. ``lock`` guards everything here and is never held while waiting for the device.
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
        self.joined: dict[int, dict[Job, Any]] = {}  # by the id of the thread that asked
        self._joining: dict[Key, Finished | None] = {}  # on their way to be joined, None: another thread was first
        self._joiner = 0  # the thread that joins, by its id
        self._joined_of: dict[int, list[tuple[Key, Finished]]] = {}  # from these groups, states where one failed
        self._moving: tuple[dict[Any, Any], object, Callable[[], object]] | None = None

    # ------------------------------------------------------------------------------------------ out of the slots

    def put(self, groups: list[Group[Job]]) -> None:
        """Copy these groups' states, before their slots are refilled."""
        if self._cuda:
            self._departures.append(self._copied(groups))
            return
        states, failed = self._buffers.taken(groups, self._check_finite)
        if failed is not None and not failed.numpy().any():
            failed = None
        self._departures.append(Departures(self._listed(groups, failed), states, failed))

    def put_alone(self, group: Group[Job], states: torch.Tensor, rows: torch.Tensor | None) -> None:
        """Take a group's final states that were in no slots, and the rows at which chains failed, from 1 on."""
        self._departures.append(Departures([Departure(next(self._numbers), group, 0, 1)], states, rows))

    def join_alone(self, job: Job, states: torch.Tensor, drop: Callable[[], object]) -> None:
        """:meth:`join` of a job's final states that were in no slots, none of them failed; then ``drop`` the job."""
        thread = threading.get_ident()
        key = next(self._numbers), 0
        self._joined_of = {thread: [(key, Finished(job, slice(0, len(states)), _LEFT, {}))]}  # there are no others
        self._move(self.joined, {thread: {job: states}}, drop)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to hand out, and nothing that an interrupt has left."""
        left = self._departures or self._chains or self._groups or self._joining or self.joined or self._moving
        return not left

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
                states.record_stream(main)  # used on the main stream from now on
            if rows is not None:
                rows = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True).copy_(rows, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self._stream)
        main.wait_event(copied)  # on the device, refilling waits for the copy
        return Departures(self._listed(groups, rows), states, rows, copied)

    def holds(self, group: Group[Job]) -> bool:
        """Whether a group's states have been copied out of its slots but not handed on yet."""
        return any(departure.group is group for departures in self._departures for departure in departures.groups)

    def next(self, wait: bool) -> Departures | None:
        """The oldest departures, once copied, or None; they stay here until their last group is taken.

        wait: for a copy that is under way.
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
                        first.states = first.states.clone()  # so that callers keep no page-locked memory
                    first.copied = None
                    return first
            if not wait:
                return None
            copied.synchronize()

    # ----------------------------------------------------------------------------------------------- handed on

    def take(self, departures: Departures, split: bool) -> Handed | None:
        """Move on the groups of departures, chain by chain or whole; return what can be handed out then.

        A group whose ``finish`` raises stays where it is.
        """
        with self._lock:
            unchanged = all(departure.group.job.finish is None for departure in departures.groups)
            if split and unchanged and (entries := departures.split()):
                counts = self._with(len(entries), sum(result.failed is not None for result in entries.values()))
                self._move(self._chains, entries, partial(self._drop_all, departures, *counts))
        while True:
            with self._lock:
                departure = departures.groups[0] if departures.groups else None
            if departure is None:
                return self.hand_out(split)
            states, finish = departures.states_of(departure), departure.group.job.finish
            if finish is not None:
                states = finish(states)
            with self._lock:
                if departures.groups and departures.groups[0] is departure:  # not cancelled meanwhile
                    group = departures.finished(departure, states)
                    counts = self._with(departure.group.size, len(group.failed))
                    self._take(departure.number, group, split, partial(self._drop, departures, departure, *counts))

    def _with(self, chains: int, failed: int) -> tuple[int, int]:
        """How many chains will have been delivered, and failed, with these."""
        return self._report.chains + chains, self._report.failed + failed

    def _drop_all(self, departures: Departures, chains: int, failed: int) -> None:
        """Drop departures that have been handed on; repeated, it changes nothing."""
        self._report.set_delivered(chains, failed)
        departures.groups = []

    def _drop(self, departures: Departures, departure: Departure, chains: int, failed: int) -> None:
        """Drop a group that has been handed on; repeated, it changes nothing."""
        self._report.set_delivered(chains, failed)
        if departures.groups and departures.groups[0] is departure:
            del departures.groups[0]

    def hand_out(self, split: bool) -> Handed | None:
        """All chains or groups (None for one removed meanwhile), or None where there are none.

        Results that wait in the other form are converted first.
        """
        with self._lock:
            self.settle()
            if split:
                for key, group in list(self._groups.items()):
                    chains = [((key[0], place), result) for result, place in group.split()]
                    self._chains.update(itertools.chain.from_iterable(_claimed(self._groups, key, chains)))
                return map(self._chains.pop, list(self._chains), repeat(None)) if self._chains else None
            for key, result in list(self._chains.items()):
                alone = Finished(
                    result.job,
                    slice(key[1], key[1] + 1),
                    result.x[None],
                    {} if result.failed is None else {key[1]: result.failed},
                    result.trajectory,
                )
                self._groups.update(_claimed(self._chains, key, (key, alone)))
            return map(self._groups.pop, list(self._groups), repeat(None)) if self._groups else None

    def join(self) -> None:
        """Join each job's chains ``[chains, ...]``, for this thread to pop; missing and failed ones are NaN.

        What an interrupt keeps it from popping, :meth:`settle` turns back into groups.
        """
        with self._lock:
            self.hand_out(split=False)
            keys, thread = list(self._groups), threading.get_ident()
            self._joiner = thread
            self._joining.update(zip(keys, map(self._groups.pop, keys, repeat(None)), strict=False))
            joining = {key: group for key, group in self._joining.items() if group is not None}
            parts: dict[Job, list[Finished]] = {}
            for group in joining.values():
                parts.setdefault(group.job, []).append(group)
            results = {job: _joined(groups, job.chains.shape[0]) for job, groups in parts.items()}
            listed = [
                (key, group if group.failed or group.trajectory else Finished(group.job, group.chains, _LEFT, {}))
                for key, group in joining.items()
            ]
            others = {other: self._joined_of[other] for other in list(self.joined)}
            self._joined_of = {**others, thread: listed}
            self.joined[thread] = results
            self._joining = {}

    def cancel(self, job: Job) -> int:
        """Drop a job's chains, wherever they wait; return how many."""
        self.complete_move()
        self._take_back()
        dropped = 0
        for departures in self._departures:
            dropped += sum(departure.group.size for departure in departures.groups if departure.group.job is job)
            departures.groups = [departure for departure in departures.groups if departure.group.job is not job]
        for key, result in list(self._chains.items()):
            if result.job is job:
                dropped += self._chains.pop(key, None) is not None
        for key, group in list(self._groups.items()):
            if group.job is job and self._groups.pop(key, None) is not None:
                dropped += group.chains.stop - group.chains.start
        for thread, results in list(self.joined.items()):
            if results.pop(job, None) is not None:
                of_job = [group.chains for _, group in self._joined_of[thread] if group.job is job]
                dropped += sum(chains.stop - chains.start for chains in of_job)
        return dropped

    def settle(self) -> None:
        """Complete a hand-over that was interrupted."""
        self.complete_move()
        self._take_back()
        thread = threading.get_ident()
        if (results := self.joined.get(thread)) is not None:
            groups = {
                key: group
                if group.failed or group.trajectory
                else Finished(group.job, group.chains, results[group.job][group.chains], {})
                for key, group in self._joined_of[thread]
                if group.job in results  # not cancelled since
            }
            self._groups.update(itertools.chain.from_iterable(_claimed(self.joined, thread, groups.items())))
            self.joined.pop(thread, None)  # if all of it was cancelled

    def _take_back(self) -> None:
        """Put groups back that an interrupt kept from being joined."""
        if self._joiner not in self.joined:
            for key, group in list(self._joining.items()):
                if group is not None:
                    self._groups.update(_claimed(self._joining, key, (key, group)))
        self._joining = {}

    def complete_move(self) -> None:
        """Drop what an interrupted hand-over had handed on."""
        if self._moving is not None:
            target, key, drop = self._moving
            if key in target:
                drop()
            self._moving = None

    def _take(self, number: int, group: Finished, split: bool, drop: Callable[[], object]) -> None:
        if split:
            self._move(self._chains, {(number, place): result for result, place in group.split()}, drop)
        else:
            self._move(self._groups, {(number, group.chains.start): group}, drop)

    def _move(self, target: dict[K, Entry], entries: dict[K, Entry], drop: Callable[[], object]) -> None:
        self._moving = target, next(iter(entries)), drop
        target.update(entries)
        drop()
        self._moving = None


def _claimed(entries: dict[K, Any], key: K, become: T) -> Iterator[T]:
    """What an entry becomes, once it has been taken out; nothing where another thread has taken it, or it is empty.

    To be used up by a function in C: no interrupt then comes between an entry's leaving and its coming.
    """
    return itertools.compress([become], map(entries.pop, [key], repeat(None)))


def _joined(parts: list[Finished], chains: int) -> torch.Tensor | Trajectory:
    if any(part.trajectory for part in parts):
        ordered = sorted(parts, key=lambda part: part.chains.start)
        return joined([part.trajectory for part in ordered if part.trajectory])
    like = parts[0].states
    if like.shape[0] == chains and not parts[0].failed and parts[0].job.finish is None:
        return like.clone()  # of inference mode, as those of the loop
    out = torch.full((chains, *like.shape[1:]), float("nan"), dtype=like.dtype, device=like.device)
    for part in parts:
        out[part.chains] = part.states
        for place in part.failed:
            out[place] = float("nan")
    return out
