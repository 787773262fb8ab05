"""Leases: who works on which unit. They save double work, and nothing else depends on them.

A lease names its owner, and an owner rewrites its own file of ``workers`` every few seconds. Whether that file still
changes is judged by the observer's steady clock, so no two machines' clocks are compared.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .owners import owner, runs_here
from .store import Store

BEAT = 2.0  # seconds between two beats of a worker
PATIENCE = 30.0  # seconds without a beat after which a worker is held to be gone, or stuck


class Leases:
    """The leases of one worker in a store, and its beat; a context that gives back what it holds.

    told: what this worker says of itself, for ``ulam status``.
    """

    def __init__(self, store: Store, told: Callable[[], Mapping[str, Any]]) -> None:
        self._store, self._told, self.owner = store, told, owner()
        self._held: set[str] = set()
        self._seen: dict[str, tuple[int, float]] = {}  # an owner's last beat, and when it was first seen
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="ulam-beat", daemon=True)

    def __enter__(self) -> Leases:
        with self._store.writing():
            (self._store.folder / "leases").mkdir(exist_ok=True)
        self._write_beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        for key in list(self._held):
            self.release(key)
        with suppress(OSError):
            self._file(self.owner).unlink(missing_ok=True)

    def take(self, key: str) -> bool:
        """Take the lease of a unit; False while another worker that is alive has it."""
        path = self._store.folder / "leases" / key
        with self._store.writing():
            for _ in range(2):
                try:
                    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
                except FileExistsError:
                    if self._is_held(path):
                        return False
                    path.unlink(missing_ok=True)  # if two do so at once, both do the unit, which is harmless
                    continue
                self._held.add(key)
                with open(descriptor, "w") as file:
                    file.write(self.owner)
                return True
        return False

    def release(self, key: str) -> None:
        """Give a lease back."""
        self._held.discard(key)
        with suppress(OSError):
            (self._store.folder / "leases" / key).unlink(missing_ok=True)

    def _is_held(self, path: Path) -> bool:
        try:
            other = path.read_text()
        except (OSError, UnicodeDecodeError):
            return False
        if other == self.owner:
            return path.name in self._held
        if runs_here(other) is False:
            return False
        beat = _beat_of(self._file(other))
        if beat is None:
            return False
        before, since = self._seen.get(other, (None, 0.0))
        if before != beat:
            self._seen[other] = beat, time.monotonic()
            return True
        return time.monotonic() - since < PATIENCE

    def _file(self, name: str) -> Path:
        return self._store.folder / "workers" / f"{Path(name).name}.json"

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with suppress(OSError):  # a disk that is full stops the work elsewhere
                self._write_beat()

    def _write_beat(self) -> None:
        self._store.put(f"workers/{self.owner}.json", json.dumps({"owner": self.owner, **self._told()}).encode())


def _beat_of(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except (OSError, ValueError):  # zeros, as after a loss of power, are no name
        return None


def running(store: Store) -> tuple[set[str], list[float]]:
    """The keys under lease, and the chains a second of each worker, of workers that live, as far as is seen at once:
    on this machine by their processes, on others by a beat that is not old by this machine's clock.
    """
    rates: dict[str, float] = {}
    for path in (store.folder / "workers").glob("*.json"):
        with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError):  # no beat at all
            told = json.loads(path.read_text())
            here = runs_here(told["owner"])
            if here or (here is None and abs(time.time() - path.stat().st_mtime) < PATIENCE):
                rates[told["owner"]] = told["chains"] / told["seconds"] if told["chains"] else 0.0
    leases = set()
    for path in (store.folder / "leases").glob("*"):
        with suppress(OSError, UnicodeDecodeError):
            if path.read_text() in rates:
                leases.add(path.name)
    return leases, list(rates.values())
