"""diffusers' own tests of its schedulers, run on fused ones.

    git clone https://github.com/huggingface/diffusers
    python -m bench.diffusers_suite diffusers             # --plain: diffusers' own classes; further options: pytest's

Every test of tests/schedulers/test_scheduler_*.py runs, with the class under test in the form that `fused` gives it.
The package is the one that is installed. Tests of classes that `fuse` refuses are left out, and EXCEPTIONS must fail.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest

from ulam.integrations.diffusers import fused
from ulam.integrations.diffusers.fusing import FAMILIES
from ulam.integrations.diffusers.refusals import REFUSED

# Patterns of "file::test", and why a fused scheduler does not pass; those that are known so far.
EXCEPTIONS: dict[str, str] = {
    "test_scheduler_ddim.py::test_betas": "beta_end=2 is refused: betas are below 1",
    "test_scheduler_ddim_inverse.py::test_betas": "beta_end=2 is refused: betas are below 1",
    "test_scheduler_tcd.py::test_betas": "beta_end=2 is refused: betas are below 1",
    "test_scheduler_ipndm.py::test_full_loop_no_noise": "a second loop begins anew, without the first one's history",
}


class Fusing:
    """A plugin of pytest that puts fused classes in the places of diffusers' own in the modules of the tests."""

    def __init__(self, plain: bool) -> None:
        self.plain = plain

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        left_out = [item for item in items if any(c.__name__ in REFUSED for c in _tested(item))]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in left_out]
        if self.plain:
            return
        for item in items:
            for name, value in list(vars(item.module).items()):
                if isinstance(value, type) and value.__name__ in FAMILIES:
                    setattr(item.module, name, fused(value))
            if "scheduler_classes" in vars(item.cls or object):
                item.cls.scheduler_classes = tuple(map(fused, item.cls.scheduler_classes))
            for pattern, reason in EXCEPTIONS.items():
                if fnmatch.fnmatch(f"{item.path.name}::{item.name}", pattern):
                    item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


def _tested(item: Any) -> tuple[type, ...]:
    """The scheduler classes that a test is about."""
    return tuple(getattr(item.cls, "scheduler_classes", ()))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.diffusers_suite", description=__doc__.split("\n")[0])
    parser.add_argument("checkout", type=Path, help="a checkout of huggingface/diffusers")
    parser.add_argument("--plain", action="store_true", help="run diffusers' own classes instead")
    given, options = parser.parse_known_args(arguments)
    files = sorted((given.checkout / "tests" / "schedulers").glob("test_scheduler_*.py"))
    if not files:
        parser.error(f"checkout: got {given.checkout}, expected a folder with tests/schedulers/test_scheduler_*.py")
    print(f"diffusers {diffusers.__version__}, {len(files)} files of tests")
    common = ["-q", "-p", "no:cacheprovider", f"--rootdir={given.checkout}", *options]
    return int(pytest.main([*map(str, files), *common], plugins=[Fusing(given.plain)]))


if __name__ == "__main__":
    sys.exit(main())
