"""Packages whose names are imported when they are first read have all the names that they promise, and no others."""

from __future__ import annotations

import ast
import subprocess
import sys
import traceback
from pathlib import Path
from types import ModuleType

import pytest

import ulam
from ulam import bulk
from ulam.integrations import diffusers


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


PUBLIC = [ulam, diffusers, *(value for name in ulam.__all__ if isinstance(value := getattr(ulam, name), ModuleType))]


@pytest.mark.parametrize("package", PUBLIC, ids=lambda package: package.__name__)
def test_a_misspelt_name_of_a_public_module_is_told_which_was_meant(package):
    known = sorted(name for name in getattr(package, "__all__", None) or dir(package) if not name.startswith("_"))
    meant = max(known, key=len)
    for wrong in (meant + "x", f"{meant[:2]}_{meant[2:]}"):
        with pytest.raises(AttributeError) as caught:
            getattr(package, wrong)
        lines = traceback.format_exception_only(caught.value)
        said = f"module {package.__name__!r} has no attribute {wrong!r}: did you mean {meant}?"
        assert lines == [f"AttributeError: {said}\n"]


def test_samplers_are_found_by_what_they_are_called_elsewhere():
    for wrong, meant in {"DPMSolver_PP": "DPMSolverPP", "DDMP": "DDPM", "EulerA": "EulerAncestral"}.items():
        with pytest.raises(AttributeError, match=f"did you mean {meant}\\?$"):
            getattr(ulam.samplers, wrong)
