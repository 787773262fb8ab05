"""The command line's streams, signals and exit codes. A reader that goes away does not fail a run."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TextIO

FAILED, BAD_INPUT, INTERRUPTED, TERMINATED = 1, 2, 128 + signal.SIGINT, 128 + signal.SIGTERM  # exit codes


class Terminated(KeyboardInterrupt):
    """SIGTERM: what is finished is written, as after Ctrl-C."""


class _Lenient:
    """A stream that drops what is written once nobody reads it any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, do: Any) -> None:
        try:
            do()
        except (BrokenPipeError, ValueError, OSError):
            # Python flushes its streams once more at the end: that must go nowhere, too
            nowhere = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, self._stream.fileno())
            except (OSError, ValueError):
                self._stream = _nowhere()
            finally:
                os.close(nowhere)


def _nowhere() -> TextIO:
    return open(os.devnull, "w")  # for as long as the process lives


@contextmanager
def lenient_streams() -> Iterator[None]:
    """Within, output that nobody reads any more, or that has no descriptor, is dropped silently."""
    for descriptor in range(3):  # so that the next file that is opened does not become standard output
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_Lenient(stream or _nowhere()) for stream in before)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


@contextmanager
def termination() -> Iterator[None]:
    """Within, SIGTERM raises :class:`Terminated` in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one is enough: what is finished is being written
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
