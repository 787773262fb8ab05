"""A pytest plugin: of all tests collected, those of one shard, so that several processes share a file."""

from __future__ import annotations

import os

import pytest

VARIABLE = "ULAM_SHARD"  # "k/n": every n-th test, from the k-th on, counted from 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    number, count = map(int, os.environ.get(VARIABLE, "0/1").split("/"))
    items[:] = items[number::count]
