"""diffusers' own tests of its schedulers, run on fused ones.

    git clone https://github.com/huggingface/diffusers
    python -m bench.diffusers_suite diffusers             # --plain: diffusers' own classes; further options: pytest's

Every test of tests/schedulers/test_scheduler*.py runs, with fused classes in the places of diffusers' own. The package
is the one that is installed. Modules that name no class which `fuse` takes are left out, and EXCEPTIONS must fail.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest

from ulam.integrations.diffusers import fused
from ulam.integrations.diffusers.fusing import FAMILIES

# "file::test": why a fused scheduler does not pass. docs/diffusers.md has the same list.
EXCEPTIONS: dict[str, str] = {
    "test_scheduler_ipndm.py::test_full_loop_no_noise": (
        "the second of its loops goes on with the history of the first one, of other samples; here it begins anew"
    ),
    "test_scheduler_lms.py::test_full_loop_with_noise": (
        "a loop from the middle begins with the weights of a history that it does not have; here with order 1"
    ),
}


class Fusing:
    """A plugin of pytest that puts fused classes in the places of diffusers' own in the modules of the tests."""

    def __init__(self, plain: bool) -> None:
        self.plain = plain

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        left_out = [item for item in items if not _fusible(item.module)]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in left_out]
        if self.plain:
            return
        for module in {module for item in items for module in _modules(item)}:
            for name in _fusible(module):
                setattr(module, name, fused(getattr(module, name)))
        for item in items:
            for name in ("scheduler_classes", "scheduler_class"):
                given = getattr(item.cls, name, ())
                if isinstance(given, tuple):
                    setattr(item.cls, name, tuple(fused(c) if c.__name__ in FAMILIES else c for c in given))
                elif given.__name__ in FAMILIES:
                    setattr(item.cls, name, fused(given))
            reason = EXCEPTIONS.get(f"{item.path.name}::{item.name}")
            if reason is not None:
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


def _fusible(module: Any) -> list[str]:
    """The names of a module that stand for classes of diffusers which `fuse` takes."""
    return [name for name, value in vars(module).items() if isinstance(value, type) and value.__name__ in FAMILIES]


def _modules(item: Any) -> list[Any]:
    """The modules of a test: its own and those that its class inherits tests from."""
    return [item.module, *(sys.modules[c.__module__] for c in (item.cls or object).__mro__)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.diffusers_suite", description=__doc__.split("\n")[0])
    parser.add_argument("checkout", type=Path, help="a checkout of huggingface/diffusers")
    parser.add_argument("--plain", action="store_true", help="run diffusers' own classes instead")
    given, options = parser.parse_known_args(arguments)
    files = sorted((given.checkout / "tests" / "schedulers").glob("test_scheduler*.py"))
    if not files:
        parser.error(f"checkout: got {given.checkout}, expected a folder with tests/schedulers/test_scheduler*.py")
    print(f"diffusers {diffusers.__version__}, {len(files)} files of tests")
    common = ["-q", "-p", "no:cacheprovider", f"--rootdir={given.checkout}", *options]
    return int(pytest.main([*map(str, files), *common], plugins=[Fusing(given.plain)]))


if __name__ == "__main__":
    sys.exit(main())
