"""Workers as processes of this machine: started, watched, and started again when they are killed."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from ...files import one_line
from ..plan import Plan
from ..store.store import Store
from .shares import Share
from .worker import GRACE, Stop, work

DEATHS = 3  # of one worker in a row without a finished unit, after which no more are started
KILL_AFTER = GRACE + 2.0  # seconds after a request to stop at which workers that still run are killed
KINDS = (FileNotFoundError, PermissionError, OSError, ImportError, TypeError, ValueError)  # that are raised as such


class WorkerError(RuntimeError):
    """A worker met an exception, or died again and again; the message says which."""


class Deaths:
    """Counts each worker's deaths since the last finished unit: all workers of a machine may die at once with it."""

    def __init__(self) -> None:
        self._counts: Counter[Share] = Counter()

    def forget(self) -> None:
        """A unit was finished."""
        self._counts.clear()

    def add(self, share: Share, how: str) -> None:
        """A worker died. Raises WorkerError if it did so too often."""
        self._counts[share] += 1
        if self._counts[share] >= DEATHS:
            raise WorkerError(
                f"workers: got {DEATHS} deaths of one without a finished unit between them (the last: {how}), expected "
                "workers that live: fewer need less memory, and a script must run under if __name__ == '__main__'"
            )


def pickled(plan: Plan) -> bytes:
    """A plan for another process. Raises TypeError for one that cannot be sent."""
    try:
        sent = pickle.dumps(plan)
    except Exception as error:  # whatever the user's objects raise
        raise TypeError(
            f"plan: got one that cannot be sent to other processes ({one_line(error)}), expected networks and "
            "functions of importable modules, or workers=1"
        ) from None
    if b"__main__" in sent and not hasattr(sys.modules["__main__"], "__file__"):
        raise TypeError(
            "plan: got one with classes or functions of a notebook or of python -c, which other processes cannot "
            "import, expected those of importable modules, or workers=1"
        )
    return sent


def sendable(error: Exception) -> Exception:
    """An exception for another process: of a plain kind, or a WorkerError, with its message on one line."""
    kind = next((kind for kind in KINDS if isinstance(error, kind)), None)
    return kind(one_line(error)) if kind else WorkerError(f"{type(error).__name__}: {one_line(error)}")


class LocalWorkers:
    """``shares`` as processes, each sampling units of a plan into a store.

    Raises TypeError for a plan that cannot be sent to another process.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        shares: list[Share],
        on_done: Callable[[int], object],
        **options: Any,
    ) -> None:
        self._plan = pickled(plan)
        self._store, self._on_done, self._options = store, on_done, options
        self._context = multiprocessing.get_context("spawn")
        self._deaths = Deaths()
        self._shares = shares
        self._running: dict[Connection, tuple[Any, Share]] = {}

    def run(self) -> None:
        """Until all units are done.

        Raises:
            ValueError, TypeError, OSError, ImportError, WorkerError: what a worker raised; the others stop first.
            KeyboardInterrupt: an interrupt here; the workers are stopped first.
        """
        try:
            for share in self._shares:
                self._start(share)
            while self._running:
                for connection in wait(list(self._running), timeout=1.0):
                    assert isinstance(connection, Connection)
                    self._hear(connection)
        finally:
            self._stop()

    def _start(self, share: Share) -> None:
        mine, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=_worker, args=(theirs, self._plan, self._store.folder, share, self._options), daemon=False
        )
        process.start()
        theirs.close()
        self._running[mine] = process, share

    def _hear(self, connection: Connection) -> None:
        """Read one message of a worker, or find that it has ended."""
        try:
            told = connection.recv()
        except (EOFError, OSError):
            process, share = self._running.pop(connection)
            process.join()
            if process.exitcode != 0:
                code = process.exitcode
                self._deaths.add(share, signal.Signals(-code).name if code < 0 else f"exit code {code}")
                self._start(share)
            return
        if isinstance(told, Exception):
            raise told
        self._deaths.forget()
        self._on_done(told)

    def _stop(self) -> None:
        """Ask all that run to stop, and kill those that do not."""
        for process, _ in self._running.values():
            process.terminate()
        late = time.monotonic() + KILL_AFTER
        for process, _ in self._running.values():
            try:
                process.join(max(0.0, late - time.monotonic()))
            except KeyboardInterrupt:  # asked again
                late = 0.0
            if process.is_alive():
                process.kill()  # no finished unit is lost
                process.join()


def _worker(connection: Connection, plan: bytes, folder: Any, share: Share, options: dict[str, Any]) -> None:
    """A worker's process: its messages are the chains of finished units, and at most one exception."""
    stop = Stop()
    drains = options.pop("on_interrupt") == "drain"

    def ask(number: int, frame: Any) -> None:
        stop.request()
        if not drains:
            raise KeyboardInterrupt

    def tell(chains: int) -> None:
        with suppress(OSError):  # nobody listens any more: that is no failure of the units in hand
            connection.send(chains)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: the one that started this one decides
    signal.signal(signal.SIGTERM, ask)
    _watch_parent()
    with suppress(KeyboardInterrupt):
        try:
            work(pickle.loads(plan), Store(folder), share, stop=stop, on_done=tell, **options)
        except Exception as error:
            with suppress(OSError):
                connection.send(sendable(error))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends now
    sys.stdout.flush()
    sys.stderr.flush()


def _watch_parent() -> None:
    """Have this process stop when the one that started it is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(KILL_AFTER)
        os._exit(1)

    threading.Thread(target=watch, name="ulam-parent", daemon=True).start()
