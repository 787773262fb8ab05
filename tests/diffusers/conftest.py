"""For all tests here: no progress bars and no log of diffusers."""

from __future__ import annotations

import logging
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
