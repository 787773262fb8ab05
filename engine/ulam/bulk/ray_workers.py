"""Workers as actors of a Ray cluster, on this machine or many; the folder must be one that all of them see."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from .local_workers import Deaths, pickled
from .plan import Plan
from .shares import Share
from .store import Store
from .worker import GRACE

LOOK = 1.0  # seconds between two looks at what is finished
OBJECTS = 1 << 27  # bytes of Ray's own memory on a cluster that is started here: little goes through it


def run_on_ray(
    plan: Plan,
    store: Store,
    workers: int,
    address: str | None,
    on_done: Callable[[int, int], object],
    *,
    on_interrupt: str,
    threads: int,
    allow_environment: bool,
) -> None:
    """Sample all units of a plan by ``workers`` actors of the cluster at ``address``, or of one that is started here.

    An actor that dies is replaced.

    Raises:
        ImportError: without Ray. ConnectionError: no cluster at the address. ValueError: one with too few CPUs or GPUs.
        ValueError, TypeError, OSError, WorkerError: what a worker met, or workers that die again and again.
    """
    try:
        import ray
    except ImportError:
        raise ImportError("launcher: got ray, which is not installed, expected pip install 'ulam[ray]'") from None
    payload = pickled(plan)
    gpus = 1 if plan.device == "cuda" else 0
    with _cluster(ray, address, workers * threads, workers * gpus):
        _check_resources(ray, workers, threads, gpus)
        actor = ray.remote(_Actor).options(num_cpus=threads, num_gpus=gpus, max_concurrency=2)
        options = {"threads": threads, "allow_environment": allow_environment}
        asked = payload, str(store.folder.resolve()), [*sys.path], os.getcwd(), options
        running: dict[Any, tuple[Any, Share]] = {}

        def start(share: Share) -> None:
            one: Any = actor.remote()
            running[one.work.remote(*asked, share)] = one, share

        try:
            for rank in range(workers):
                start(Share(rank, workers, 0))
            _watch(ray, store, running, start, on_done)
        except KeyboardInterrupt:
            if on_interrupt == "drain":
                for one, _ in running.values():
                    one.stop.remote()
                ray.wait(list(running), num_returns=len(running), timeout=GRACE)
            raise
        finally:
            for one, _ in running.values():
                ray.kill(one)


def _watch(
    ray: Any,
    store: Store,
    running: dict[Any, tuple[Any, Share]],
    start: Callable[[Share], None],
    on_done: Callable[[int, int], object],
) -> None:
    """Until all actors have ended: tell what they finish, replace those that die."""
    chains = _Finished(store)
    deaths = Deaths()
    while running:
        ended, _ = ray.wait(list(running), timeout=LOOK)
        if new := chains.new():
            deaths.forget()
            on_done(new, 0)
        for reference in ended:
            _, share = running.pop(reference)
            try:
                ray.get(reference)
            except ray.exceptions.RayActorError as error:
                deaths.add(str(error).splitlines()[0])
                start(share)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None


class _Finished:
    """Counts the chains that were finished since the last look."""

    def __init__(self, store: Store) -> None:
        self._store, self._seen = store, 0
        self._seen = self._now()

    def _now(self) -> int:
        from .record import finished_units, read_record

        if not (self._store.folder / "plan.json").exists():
            return 0
        return sum(unit.end - unit.begin for unit, _ in finished_units(self._store, read_record(self._store.folder)))

    def new(self) -> int:
        now = self._now()
        found, self._seen = now - self._seen, now
        return found


class _Actor:
    """One worker. ``stop`` runs in a second thread of it."""

    def __init__(self) -> None:
        self._stop: Any = None
        self._asked = threading.Event()

    def work(self, plan: bytes, folder: str, path: list[str], here: str, options: dict[str, Any], share: Share) -> None:
        import pickle
        from pathlib import Path

        from ulam.bulk.local_workers import sendable
        from ulam.bulk.store import Store
        from ulam.bulk.worker import Stop, work

        sys.path[:] = [*path, *(part for part in sys.path if part not in path)]
        with suppress(OSError):
            os.chdir(here)
        self._stop = Stop()
        if self._asked.is_set():
            self._stop.request()
        try:
            work(pickle.loads(plan), Store(Path(folder)), share, stop=self._stop, **options)
        except Exception as error:
            raise sendable(error) from None

    def stop(self) -> None:
        self._asked.set()
        if self._stop is not None:
            self._stop.request()


@contextmanager
def _cluster(ray: Any, address: str | None, cpus: int, gpus: int) -> Iterator[None]:
    """Within, this process is connected to a cluster; one that was started here ends with it."""
    if ray.is_initialized():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    own: dict[str, Any] = {}
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        own = {"num_cpus": cpus, "num_gpus": gpus, "object_store_memory": OBJECTS, "include_dashboard": False}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="error", **own)
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():  # Ray puts its own in their place
                signal.signal(number, handler)
        yield
    finally:
        ray.shutdown()


def _check_resources(ray: Any, workers: int, threads: int, gpus: int) -> None:
    """Raise ValueError where the cluster could never place so many actors: Ray would wait for ever."""
    there = ray.cluster_resources()
    for name, each in (("CPU", threads), ("GPU", gpus)):
        if workers * each > there.get(name, 0):
            got = f"workers: got {workers} with {each} {name}s each"
            raise ValueError(f"{got}, expected at most the {there.get(name, 0):g} {name}s of the cluster")
