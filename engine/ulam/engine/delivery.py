"""Finished chains that wait to be handed to the caller, one by one or by groups; none is lost or given twice.

What is handed on is put into its new place first and leaves the old one after that. An interrupt in between is found
by :meth:`Delivery.settle`, with which every hand-over begins. The last step, out of here into the caller's loop, is one
call of ``dict.pop`` with no Python code around it, in the midst of which no interrupt can come.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import repeat
from typing import TypeAlias, TypeVar

import torch

from .job import Job
from .results import Batch, Finished, Outbox, Part, Result

Entry = TypeVar("Entry", Result, Finished)
Key: TypeAlias = tuple[int, int]  # the number of a group, and the place in its job of a chain, or of the group's first


class Delivery:
    """Results by chain and by group, in the order in which they came."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._chains: dict[Key, Result] = {}
        self._groups: dict[Key, Finished] = {}
        self.joined: dict[int, dict[Job, torch.Tensor]] = {}  # by the threads that asked for them
        self._joined_of: dict[int, list[tuple[Key, Finished]]] = {}  # of these groups, states where one failed
        self._moving: tuple[dict[Key, Result] | dict[Key, Finished], Key, Callable[[], object]] | None = None

    def take(self, batch: Batch, part: Part, states: torch.Tensor, apart: bool) -> None:
        """Take a batch's first group, as these states, chain by chain or whole; not if it has been cancelled."""
        if batch.parts and batch.parts[0] is part:
            group = self._outbox.finished(batch, part, states)
            self._take(part.number, group, apart, partial(self._outbox.drop, batch, part, len(group.failed)))

    def take_all(self, batch: Batch) -> None:
        """Take a batch as it is, chain by chain."""
        if entries := self._outbox.apart(batch):
            self._move(self._chains, entries, partial(self._outbox.drop_all, batch))

    def ready(self, apart: bool) -> bool:
        """Whether there is anything to be handed out; what waits in the other form is brought into this one."""
        self.settle()
        if apart:
            for key, group in list(self._groups.items()):
                self._take(key[0], group, True, partial(self._groups.pop, key, None))
            return bool(self._chains)
        for key, result in list(self._chains.items()):
            alone = Finished(
                result.job,
                slice(key[1], key[1] + 1),
                result.x[None],
                {} if result.failed is None else {key[1]: result.failed},
            )
            self._move(self._groups, {key: alone}, partial(self._chains.pop, key, None))
        return bool(self._groups)

    def chains(self) -> Iterator[Result | None]:
        """Hand out all chains; None in place of one that has gone meanwhile."""
        return map(self._chains.pop, list(self._chains), repeat(None))

    def groups(self) -> Iterator[Finished | None]:
        """Hand out all groups; None in place of one that has gone meanwhile."""
        return map(self._groups.pop, list(self._groups), repeat(None))

    def join(self) -> None:
        """Join each job's chains ``[chains, ...]``, for this thread to pop; what is missing or failed is NaN.

        What it does not pop, since it was interrupted, :meth:`settle` makes groups again.
        """
        self.ready(apart=False)
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
        """Let go of a job's chains; how many."""
        gone = 0
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

    def _take(self, number: int, group: Finished, apart: bool, drop: Callable[[], object]) -> None:
        if apart:
            self._move(self._chains, {(number, place): result for result, place in group.apart()}, drop)
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
