"""Reports a network that hangs."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable

from .network import Network

log = logging.getLogger("ulam")


class Watchdog:
    """A thread that reports, once per call, a network call that has not returned after ``seconds``."""

    def __init__(self, network: Network, seconds: float, report: Callable[[str], None]) -> None:
        self._stop = threading.Event()
        arguments = (weakref.ref(network), seconds, report, self._stop)
        threading.Thread(target=_watch, args=arguments, name="ulam-watchdog", daemon=True).start()

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()


def _watch(network: weakref.ref[Network], seconds: float, report: Callable[[str], None], stop: threading.Event) -> None:
    reported: float | None = None
    while not stop.wait(min(seconds / 4, 1.0)):
        if (watched := network()) is None:
            return
        began = watched.began
        if began is not None and began != reported and time.perf_counter() - began > seconds:
            reported = began
            message = f"the network has not come back for {seconds:g} s (batch {watched.batch})"
            log.warning(message)
            report(message)
