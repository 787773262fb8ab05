"""Which cases run, and what does not outlive a test."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

import quick


def pytest_addoption(parser: pytest.Parser) -> None:
    words = "without tests marked long; of one over several parameters, as few cases as show every value of each"
    parser.addoption("--quick", action="store_true", help=words)


@pytest.hookimpl(trylast=True)  # of what -k and -m leave
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--quick"):
        items[:], dropped = quick.split(items)
        config.hook.pytest_deselected(items=dropped)


@pytest.fixture(autouse=True)
def modules_end_with_their_test(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A module that a test writes into a folder of its own does not outlive the test: another may have that name."""
    before = set(sys.modules)
    yield
    folder = str(tmp_path_factory.getbasetemp())
    for name in sys.modules.keys() - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(folder):
            del sys.modules[name]
