"""Packages whose names are imported when they are first read have all the names that they promise, and no others."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ulam
from ulam import bulk


@pytest.mark.parametrize("package", [ulam, bulk], ids=["ulam", "ulam.bulk"])
def test_every_name_is_there_and_is_what_a_type_checker_sees(package):
    tree = ast.parse(Path(package.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen, modules = {}, set()
    for line in block.body:
        for name in line.names:
            module = f"{'.' * line.level}{line.module or ''}"
            if module == ".":
                modules.add(name.name)
            else:
                renamed = name.asname is not None and name.asname != name.name
                seen[name.asname or name.name] = f"{module}:{name.name}" if renamed else module
    assert seen == package._MODULES
    assert sorted({*seen, *modules}) == sorted(package.__all__)
    assert dir(package) == sorted(package.__all__)
    for name in package.__all__:
        assert getattr(package, name) is not None


def test_the_first_read_finds_functions_and_modules_alike():
    """In a process of its own, where nothing has been read before."""
    code = "import sys, ulam; assert 'torch' not in sys.modules; ulam.tune, ulam.bulk.run, ulam.engine.job, ulam.Engine"
    subprocess.run([sys.executable, "-c", f"{code}; assert callable(ulam.bulk.open)"], check=True, timeout=120)


@pytest.mark.parametrize("package", [ulam, bulk], ids=["ulam", "ulam.bulk"])
def test_a_name_that_is_not_there_is_an_attribute_error(package):
    for name in ("nothing", "Plans", "__wrapped__"):
        assert not hasattr(package, name)
