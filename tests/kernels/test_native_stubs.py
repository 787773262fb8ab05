"""The stubs of the extensions say what the extensions have: the same operations, as many arguments each."""

from __future__ import annotations

import ast
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

import ulam_kernels
from ulam_kernels import _cpu
from ulam_kernels.native import likelihood, mcmc, rows

FOLDER = Path(ulam_kernels.__file__).parent
FAMILIES: tuple[ModuleType, ...] = (rows, mcmc, likelihood)


def functions(stub: str) -> dict[str, ast.FunctionDef]:
    tree = ast.parse((FOLDER / stub).read_text())
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


NATIVE = functions("_native.pyi")


def test_every_operation_has_a_stub_and_makes_its_arguments() -> None:
    made = {name for family in FAMILIES for name, make in vars(family).items()
            if isinstance(make, FunctionType) and make.__module__ == family.__name__ and name[0] != "_"}  # fmt: skip
    assert made == set(NATIVE)


@pytest.mark.parametrize("name", sorted(NATIVE))
def test_an_operation_takes_as_many_arguments_as_its_stub(name: str) -> None:
    with pytest.raises(TypeError) as told:
        getattr(_cpu, name)()
    signature = next(line for line in str(told.value).splitlines() if line.strip().startswith("1. "))
    parameters = signature.split("(", 1)[1].rsplit(") -> ", 1)[0]
    assert parameters.count("arg") == len(NATIVE[name].args.posonlyargs) + len(NATIVE[name].args.args)


def test_the_rest_of_an_extension_is_its_stubs() -> None:
    public = {name for name in dir(_cpu) if name[0] != "_"}
    assert public == set(NATIVE) | set(functions("_cpu.pyi"))
