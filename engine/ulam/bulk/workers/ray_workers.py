"""Workers as actors of a Ray cluster, on this machine or many; the folder must be one that all of them see."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from typing import Any

import torch

from ...files import one_line
from ..plan import Plan
from ..store.store import Store
from .local_workers import Deaths, pickled
from .shares import Share
from .worker import GRACE

LOOK = 1.0  # seconds between two looks at what is finished
CONNECT = 5.0  # seconds within which a cluster's address must answer; Ray itself would try for minutes
OBJECTS = 1 << 27  # bytes of Ray's own memory on a cluster that is started here: little goes through it


def run_on_ray(
    plan: Plan,
    store: Store,
    workers: int,
    address: str | None,
    on_done: Callable[[int], object],
    *,
    on_interrupt: str,
    threads: int,
    allow_environment: bool,
) -> None:
    """Sample all units of a plan by ``workers`` actors of the cluster at ``address``, or of one that is started here.

    An actor that dies is replaced. What workers warn of is a warning here.

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
    with _cluster(ray, address, workers * threads, bool(gpus)):
        _check_resources(ray, workers, threads, gpus)
        path = os.pathsep.join(part or os.getcwd() for part in sys.path)  # the same ulam and networks as here
        actor = ray.remote(_Actor).options(
            num_cpus=threads, num_gpus=gpus, max_concurrency=2, runtime_env={"env_vars": {"PYTHONPATH": path}}
        )
        options = {"threads": threads, "allow_environment": allow_environment}
        asked = payload, str(store.folder.resolve()), os.getcwd(), options
        running: dict[Future[Any], tuple[Any, Share]] = {}

        def start(share: Share) -> None:
            one: Any = actor.remote()
            running[one.work.remote(*asked, share).future()] = one, share

        try:
            for rank in range(workers):
                start(Share(rank, workers, 0))
            _watch(ray, store, running, start, on_done)
        except KeyboardInterrupt:
            if on_interrupt == "drain":
                for one, _ in running.values():
                    one.stop.remote()
                wait(running, timeout=GRACE)
            raise
        finally:
            for one, _ in running.values():
                ray.kill(one)


def _watch(
    ray: Any,
    store: Store,
    running: dict[Future[Any], tuple[Any, Share]],
    start: Callable[[Share], None],
    on_done: Callable[[int], object],
) -> None:
    """Until all actors have ended: tell what they finish, replace those that die."""
    chains = _Finished(store)
    deaths = Deaths()
    shown: dict[Any, Any] = {}  # warnings, so that each is shown once
    while running:
        # Not ray.wait: it makes any exception of a signal handler a plain KeyboardInterrupt.
        ended, _ = wait(running, timeout=LOOK, return_when=FIRST_COMPLETED)
        if new := chains.new():
            deaths.forget()
            on_done(new)
        for future in ended:
            _, share = running.pop(future)
            try:
                for message, category, file, line in future.result():
                    warnings.warn_explicit(message, category, file, line, registry=shown)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayError as error:  # of the actor, its node or its memory
                deaths.add(share, _how(error))
                start(share)


def _how(error: Exception) -> str:
    """The first of the lines in which Ray says how an actor died; the last where it could not be made."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[-1 if getattr(error, "actor_init_failed", False) else 0].strip().rstrip(".")


class _Finished:
    """Counts the chains that were finished since the last look."""

    def __init__(self, store: Store) -> None:
        self._store, self._seen = store, 0
        self._seen = self._now()

    def _now(self) -> int:
        from ..record import finished_units, read_record

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

    def work(
        self, plan: bytes, folder: str, here: str, options: dict[str, Any], share: Share
    ) -> list[tuple[str, type[Warning], str, int]]:
        """Work until all is done; the warnings on the way."""
        import pickle
        from pathlib import Path

        from ulam.bulk.store.store import Store
        from ulam.bulk.workers.local_workers import sendable
        from ulam.bulk.workers.worker import Stop, work

        with suppress(OSError):
            os.chdir(here)
        self._stop = Stop()
        if self._asked.is_set():
            self._stop.request()
        with warnings.catch_warnings(record=True) as caught:
            try:
                work(pickle.loads(plan), Store(Path(folder)), share, stop=self._stop, **options)
            except Exception as error:
                raise sendable(error) from None
        return [
            (
                str(one.message),
                one.category if one.category.__module__ == "builtins" else UserWarning,
                one.filename,
                one.lineno,
            )
            for one in caught
        ]

    def stop(self) -> None:
        self._asked.set()
        if self._stop is not None:
            self._stop.request()


@contextmanager
def _cluster(ray: Any, address: str | None, cpus: int, gpus: bool) -> Iterator[None]:
    """Within, this process is connected to a cluster; one that was started here ends with it."""
    if ray.is_initialized():
        yield
        return
    own: dict[str, Any] = {}
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        count = torch.cuda.device_count() if gpus else 0
        own = {"num_cpus": cpus, "num_gpus": count, "object_store_memory": OBJECTS, "include_dashboard": False}
    else:
        _check_address(ray, address)
    printing = getattr(ray._private.worker, "print_to_stdstream", None)
    try:
        with _signals_wait(), _named(address):
            ray.init(address=address or "local", log_to_driver=False, logging_level="error", **own)
        ray._private.worker.print_to_stdstream = lambda *_, **__: None  # a page for each death, despite log_to_driver
        yield
    finally:
        ray.shutdown()
        ray._private.worker.print_to_stdstream = printing


@contextmanager
def _named(address: str | None) -> Iterator[None]:
    """Within, a ConnectionError becomes one that names the address."""
    try:
        yield
    except ConnectionError as error:
        expected = "expected a running cluster's, with RAY_AUTH_MODE=token in the environment if it asks for tokens"
        raise ConnectionError(f"address: got {address!r}, {expected}: {one_line(error)}") from None


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Within, Ctrl-C and SIGTERM wait: they would tear Ray apart while it starts. Ray's own handlers do not stay."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    except SystemExit:  # what Ray's handler makes of SIGTERM
        came.append(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])
        raise KeyboardInterrupt


def _check_address(ray: Any, address: str) -> None:
    """Raise ValueError for what is no address, ConnectionError where nothing answers."""
    found = address
    if address == "auto":
        with suppress(ConnectionError, ValueError):  # ray.init says that there is none
            found = ray._private.services.canonicalize_bootstrap_address(address) or address
    if found == "auto":
        return
    host, _, port = found.rpartition(":")
    if not host or "/" in host or not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ValueError(f"address: got {found!r}, expected HOST:PORT of a Ray cluster, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT).close()
    except OSError as error:
        raise ConnectionError(f"address: got {found!r}, expected a running cluster's: {one_line(error)}") from None


def _check_resources(ray: Any, workers: int, threads: int, gpus: int) -> None:
    """Raise ValueError where the machines of the cluster could never hold so many actors: Ray would wait for ever."""
    room = 0
    for node in ray.nodes():
        if node["Alive"]:
            there = node["Resources"]
            places = [there.get(name, 0) // each for name, each in (("CPU", threads), ("GPU", gpus)) if each]
            room += int(min(places))
    if workers > room:
        each = f"{threads} CPUs and {gpus} GPU each" if gpus else f"{threads} CPUs each"
        raise ValueError(
            f"workers: got {workers} with {each}, expected at most the {room} that the cluster's machines have room for"
        )
