"""Every public operation has all that CONTRIBUTING.md asks for: schema, fake, backends, stub and a full docstring.

The operations are those that the decorator ``operator`` has registered, none is named here but with its exception.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ulam_kernels
from tracing_cases import operations
from ulam_kernels import _cpu, operator
from ulam_kernels.native import likelihood, mcmc, rows

FOLDER = Path(ulam_kernels.__file__).parent
OPERATIONS = operations()
NAMES = sorted(OPERATIONS)
TORCH_ITSELF = "torch_normal"  # native on the CPU alone: all else falls through to torch
NO_OPERATORS = {
    "backends",
    "evaluate_network",
    "walk",
}  # networks are refused where torch records them
NO_SOURCE = {"moments", "advance", "affine", "squared_norm"}  # arithmetic of their own, said in full
SOURCE = r"\b(19|20)\d\d\b|noise-v1|sources :mod:"  # a paper's year, the standard, or where the papers are named
IN_UNITS = {"gaussian_kl": "nats", "discretised_log_likelihood": "nats"}


def family(name: str) -> str:
    """The part of a backend that has the operation: "" for the backend's own."""
    module = OPERATIONS[name].__module__.split(".")[1]
    return module if module in ("mcmc", "likelihood") else ""


def of_backend(backend: str, name: str) -> Callable[..., Any]:
    """An operation of a backend; Triton's modules import without a GPU."""
    module = importlib.import_module(f"ulam_kernels.{backend}")
    part = getattr(module, family(name)) if family(name) else module
    found: Callable[..., Any] = getattr(part, name)
    return found


def arguments(text: str) -> dict[str, str]:
    """What the Args of a docstring say of each: entries begin a line, or follow a full stop."""
    said = re.search(r"Args:\n(.*?)\n(?:\n[A-Z]|$)", text, re.DOTALL)
    parts = re.split(r"(?:^|\n|\. ) *([a-z_]+(?:, [a-z_]+)*): ", said[1] if said else "")
    return {name: entry for names, entry in zip(parts[1::2], parts[2::2], strict=True) for name in names.split(", ")}


def test_the_registry_has_what_is_public() -> None:
    public = {name for name in ulam_kernels.__all__ if inspect.isfunction(getattr(ulam_kernels, name))} - NO_OPERATORS
    assert set(NAMES) == public | set(ulam_kernels.mcmc.__all__) | {"gaussian_kl", "discretised_log_likelihood"}
    for name in NAMES:
        home = getattr(ulam_kernels, family(name)) if family(name) else ulam_kernels
        assert getattr(home, name) is OPERATIONS[name]


@pytest.mark.parametrize("name", NAMES)
def test_schema_and_fake(name: str) -> None:
    """The schema names the function's parameters, or the parts that it makes one of."""
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"ulam::{name}", "Meta")
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"ulam::{name}", "CompositeExplicitAutograd")
    parameters = set(inspect.signature(OPERATIONS[name]).parameters)
    made_of = {"table": {"coef", "flags"}, "pairs": {"kept", "proposed"},
               "density": {"name", "kind", "dimension", "components", "params"}}  # fmt: skip
    stated: set[str] = set()
    for variant, function in operator.functions.items():
        if function is OPERATIONS[name] or variant.startswith(f"{name}_"):
            stated |= {argument.name for argument in getattr(torch.ops.ulam, variant).default._schema.arguments}
    for parameter in parameters:
        assert stated >= made_of.get(parameter, {parameter}) or (name, parameter) in LEFT_OUT, parameter


LEFT_OUT = {("evaluate", "energy"), (TORCH_ITSELF, "generator")}  # an operator each; no generator goes into a graph


@pytest.mark.parametrize("name", NAMES)
def test_reference_and_cpu(name: str) -> None:
    if name == TORCH_ITSELF:
        assert callable(_cpu.torch_normal)
        return
    assert callable(of_backend("reference", name)) and callable(of_backend("cpu", name))
    assert callable(getattr(_cpu, name))


@pytest.mark.parametrize("name", sorted(set(NAMES) - {TORCH_ITSELF}))
def test_triton(name: str) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    assert callable(of_backend("triton", name))


@pytest.mark.parametrize("name", sorted(set(NAMES) - {TORCH_ITSELF}))
def test_cuda_and_stub(name: str) -> None:
    """What the extension has is one list in C++ (and is asked where it was built); its stub has a line for each."""
    part = {"mcmc": mcmc, "likelihood": likelihood, "": rows}[family(name)]
    assert callable(getattr(part, name))
    stub = {node.name for node in ast.parse((FOLDER / "_native.pyi").read_text()).body if hasattr(node, "name")}
    assert name in stub
    if importlib.util.find_spec("ulam_kernels._cuda"):
        assert callable(getattr(importlib.import_module("ulam_kernels._cuda"), name))


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_says_all(name: str) -> None:
    """Every parameter, the shape of every tensor, units, what is returned, errors, and a source where there is one."""
    text, signature = inspect.getdoc(OPERATIONS[name]) or "", inspect.signature(OPERATIONS[name])
    entries = arguments(text)
    assert set(signature.parameters) - {"backend"} <= set(entries)
    for parameter in signature.parameters.values():
        if "Tensor" in str(parameter.annotation):
            assert re.search(r"``\[|any shape|as :func:|like ``", entries[parameter.name]), parameter.name
    assert re.search(r"Raises:\n +\w*Error", text)
    assert signature.return_annotation in ("None", None) or re.search(r"Returns:\n|``\[B|``out", text)
    assert IN_UNITS.get(name, "") in text
    assert name in NO_SOURCE or re.search(SOURCE, text), "a source"
