"""For all tests here: no progress bars and no log of diffusers. `no_network`: nothing is fetched."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    diffusers.utils.logging.disable_progress_bar()
    log = logging.getLogger("diffusers")
    level = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(level)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection, and any name looked up, fails the test."""

    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail(f"a connection to {args[1:2] or args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
