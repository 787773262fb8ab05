"""A worker: takes units that nobody works on, samples them in one engine, stores them, until all are done."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ulam_kernels.arguments import described

from ...arguments import resolve_device
from ...engine.arguments import backend_name
from ...engine.engine import Engine
from ...engine.job import Finish, Job
from ...engine.results import Finished
from ...files import one_line
from ...memory import freed_memory_kept
from .. import record
from ..environment import environment
from ..plan import Plan, PlannedJob
from ..store.leases import Leases
from ..store.store import Store
from ..store.unit import Unit, to_bytes
from ..units import PlannedUnit
from .shares import Share

GRACE = 7.0  # seconds that units in hand get to end after a request to stop
LOOK_AGAIN = 1.0  # seconds between two looks at units that others work on
IDLE = 0.2  # seconds of sleep while others do the rest
ONE_AT_A_TIME = threading.Lock()  # runs in threads of one process: all share torch's number of threads
WRITES = 4  # units that wait to be written, at most


class Stop:
    """A request to stop: no new units; those in hand get until ``GRACE`` seconds after it."""

    def __init__(self) -> None:
        self.since: float | None = None

    def request(self) -> None:
        """Ask to stop; the first request counts."""
        self.since = time.monotonic() if self.since is None else self.since

    @property
    def is_late(self) -> bool:
        """Whether the grace is over."""
        return self.since is not None and time.monotonic() - self.since > GRACE


@dataclass(eq=False)
class Pending:
    """A unit in the engine: what has come out of it so far."""

    unit: PlannedUnit
    x: torch.Tensor | None = None
    failed: dict[int, int] = field(default_factory=dict)
    count: int = 0

    def add(self, group: Finished) -> bool:
        """Add chains that ended; whether that were all."""
        size = self.unit.end - self.unit.begin
        if self.x is None:
            self.x = torch.empty(size, *group.states.shape[1:], dtype=group.states.dtype, device=group.states.device)
        self.x[group.chains] = group.states
        self.failed |= group.failed
        self.count += group.chains.stop - group.chains.start
        return self.count == size


def work(
    plan: Plan,
    store: Store,
    share: Share,
    *,
    threads: int,
    allow_environment: bool = False,
    stop: Stop | None = None,
    on_done: Callable[[int], object] | None = None,
    only: Collection[str] | None = None,
) -> None:
    """Sample units of a plan into a store until all are done, by this worker or by others.

    share: where in the list of units this worker begins; its GPU, unless it sees only one. only: the units of these
    keys. on_done: called with the chains of each unit that this worker stored.

    Raises:
        ValueError: another plan or environment in the store; a network whose results vary from run to run.
        OSError: a store that cannot be written to. What is stored stays.
        NetworkError: of the network.
    """
    gpu = 0 if torch.cuda.device_count() == 1 else share.local_rank  # Slurm may show each task its own alone
    device = resolve_device(f"cuda:{gpu}" if plan.device == "cuda" else plan.device)
    with ONE_AT_A_TIME, _threads(threads):
        with store.writing():
            store.clean()  # also of the worker in whose place this one was started
        for job in plan.jobs:
            for module in (*job.job.denoiser.nets, job.job.finish):
                if isinstance(module, torch.nn.Module):
                    module.to(device)
        backend = backend_name(plan.jobs[0].job.denoiser, device, plan.backend, plan.dtype)[0]
        here = environment(device, backend, threads)
        accepted = record.accept_environment(
            store, record.write_record(store, plan.record(here)), here, allow_environment
        )
        worker = _Worker(plan, store, accepted, device, stop or Stop(), on_done or (lambda chains: None))
        with freed_memory_kept():
            worker.run(share, only)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Within, torch has so many threads."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def finished(finish: Finish, x: torch.Tensor, plan: Plan) -> torch.Tensor:
    """What ``finish`` makes of final states ``[n, *shape]``: ``[n, ...]`` on the CPU.

    Raises TypeError or ValueError where it gives no tensor, or one that has no row for each chain.
    """
    parts: list[torch.Tensor] = []
    for part in x.split(plan.slots):  # type: ignore[no-untyped-call]
        with torch.inference_mode():
            found = finish(part)
        dense = isinstance(found, torch.Tensor) and found.layout == torch.strided and not found.is_meta
        expected = f"expected a dense tensor [{len(part)}, ...]"
        if not dense or not found.dim() or len(found) != len(part):
            raise TypeError(f"finish: got {described(found)} for {len(part)} chains, {expected}")
        if plan.format == "npz" and found.dtype == torch.bfloat16:
            raise TypeError("finish: got bfloat16, which NumPy lacks, expected another type, or format=safetensors")
        like = parts[0] if parts else found
        if found.dtype != like.dtype or found.shape[1:] != like.shape[1:]:
            raise ValueError(f"finish: got {described(found)} after {described(like)}, {expected} of one kind")
        parts.append(found.to("cpu", copy=True))  # it may write its next result over this one
    return torch.cat(parts)


class _Worker:
    def __init__(
        self,
        plan: Plan,
        store: Store,
        accepted: list[str],
        device: torch.device,
        stop: Stop,
        on_done: Callable[[int], object],
    ) -> None:
        self._plan, self._store, self._accepted, self._device = plan, store, accepted, device
        self._stop, self._on_done = stop, on_done
        self._todo: deque[PlannedUnit] = deque()
        self._busy: deque[PlannedUnit] = deque()  # others work on them
        self._looked = 0.0
        self._writes: deque[tuple[Future[None], PlannedUnit]] = deque()
        self._chains, self._begin = 0, time.monotonic()
        self._leases = Leases(store, self._told)

    def _told(self) -> dict[str, Any]:
        return {"chains": self._chains, "seconds": time.monotonic() - self._begin}

    def _keys(self, unit: PlannedUnit) -> list[str]:
        return [record.file_key(unit.key, environment) for environment in self._accepted]

    def run(self, share: Share, only: Collection[str] | None) -> None:
        """Until all units are done."""
        missing = self._missing(only)
        begin = len(missing) * share.rank // share.world
        self._todo.extend(missing[begin:] + missing[:begin])
        with self._leases, ThreadPoolExecutor(1, "ulam-write") as self._writer:
            while (unit := self._next(wait=True)) is not None:
                self._sample_from(unit)
            self._settle(0)

    def _missing(self, only: Collection[str] | None) -> list[PlannedUnit]:
        present = self._store.present()
        by_key = {  # equal units of two jobs are done once
            unit.key: unit
            for unit in self._plan.units()
            if (only is None or unit.key in only) and not any(key in present for key in self._keys(unit))
        }
        return list(by_key.values())

    # ---------------------------------------------------------------------------------------------- which unit

    def _next(self, wait: bool = False) -> PlannedUnit | None:
        """A unit that is neither done nor in other hands, leased; None where there is none, or with ``wait`` once all
        are done.
        """
        while self._stop.since is None:
            while self._todo:
                unit = self._todo.popleft()
                if self._is_done(unit):
                    continue
                if not self._leases.take(unit.key):
                    self._busy.append(unit)
                elif self._is_done(unit):  # by the one who had the lease
                    self._leases.release(unit.key)
                else:
                    return unit
            if not self._busy:
                return None
            if time.monotonic() - self._looked > LOOK_AGAIN:
                self._looked = time.monotonic()
                self._todo, self._busy = self._busy, deque()
            elif not wait:
                return None
            else:
                self._settle(0)
                time.sleep(IDLE)
        return None

    def _is_done(self, unit: PlannedUnit) -> bool:
        return self._store.find(self._keys(unit)) is not None

    # ------------------------------------------------------------------------------------------------ sampling

    def _sample_from(self, first: PlannedUnit) -> None:
        """Sample a unit, and all that follow of the same network and inputs, in one engine whose slots stay full."""
        job = self._plan.jobs[first.job]
        pending: dict[Job, Pending] = {}
        with self._engine(job) as engine:
            self._submit(engine, first, pending)
            other = self._feed(engine, first, pending)
            try:
                for group in engine.finished(lambda evaluations: self._check(engine)):
                    if pending[group.job].add(group):
                        self._store_unit(pending[group.job])
                        del pending[group.job]
                    if other is None:
                        other = self._feed(engine, first, pending)
            except Exception as error:
                for unit in pending.values():
                    self._store.put_error(unit.unit.key, f"{type(error).__name__}: {one_line(error)}")
                raise
        if other is not None:
            self._leases.release(other.key)
            self._todo.appendleft(other)

    def _engine(self, job: PlannedJob) -> Engine:
        plan = self._plan
        results = "host" if all(one.job.finish is None for one in plan.jobs) else "device"
        return Engine(
            job.job.denoiser, job.job.shape, plan.slots, self._device, plan.backend, plan.dtype, options=plan.options,
            results=results, branches=job.job.branches,
        )  # fmt: skip

    def _feed(self, engine: Engine, like: PlannedUnit, pending: dict[Job, Pending]) -> PlannedUnit | None:
        """Submit units while fewer chains wait than there are slots; return one that needs another engine."""
        mine = self._plan.jobs[like.job]
        while engine.waiting < engine.slots and (unit := self._next()) is not None:
            other = self._plan.jobs[unit.job]
            same = other.job.denoiser is mine.job.denoiser and tuple(other.job.shape) == tuple(mine.job.shape)
            if not same or other.inputs != mine.inputs or other.job.branches != mine.job.branches:
                return unit
            self._submit(engine, unit, pending)
        return None

    def _submit(self, engine: Engine, unit: PlannedUnit, pending: dict[Job, Pending]) -> None:
        job = engine.submit(**self._plan.jobs[unit.job].submit(unit.begin, unit.end))
        pending[job] = Pending(unit)

    def _check(self, engine: Engine) -> None:
        """Between ticks: raise where going on would be wrong, or too late."""
        if engine.report.batch < engine.slots:  # sums of a smaller batch may be rounded otherwise
            raise ValueError(
                f"slots: got {engine.slots}, of which the network has memory for {engine.report.batch} at once, "
                "expected so many"
            )
        if self._stop.is_late:
            raise KeyboardInterrupt

    # ------------------------------------------------------------------------------------------------- storing

    def _store_unit(self, done: Pending) -> None:
        """Hand a finished unit to the thread that writes; raises what an earlier write raised."""
        assert done.x is not None
        planned, at = self._plan.jobs[done.unit.job], slice(done.unit.begin, done.unit.end)
        x, failed = done.x, dict(done.failed)
        finite = torch.isfinite(x).flatten(1).all(1).tolist()  # an overflow in the last row has not been seen yet
        failed |= {i: len(planned.checked.program) - 1 for i, ok in enumerate(finite) if not ok and i not in failed}
        if planned.job.finish is not None:
            x = finished(planned.job.finish, x, self._plan)
        x = x.cpu()
        if x.is_floating_point():
            x[sorted(failed)] = float("nan")
        labels = None if planned.labels is None else planned.labels[at]
        unit = Unit(x, planned.checked.chains[at], labels, planned.checked.seed, failed)
        self._settle(WRITES - 1)
        self._writes.append((self._writer.submit(self._write, done.unit, unit), done.unit))

    def _write(self, planned: PlannedUnit, unit: Unit) -> None:
        key = self._keys(planned)[0]
        self._store.put_unit(key, to_bytes(unit, key, self._plan.format), len(unit.failed), self._plan.format)
        self._leases.release(planned.key)

    def _settle(self, most: int) -> None:
        """Wait until at most so many units are being written; raises what a write raised."""
        while self._writes and (len(self._writes) > most or self._writes[0][0].done()):
            future, unit = self._writes[0]
            future.result()
            self._writes.popleft()
            self._chains += unit.end - unit.begin
            self._on_done(unit.end - unit.begin)
