"""The arguments of the extensions `_cpu` and `_cuda`, which have the same operations: a module for each family of them.

A function makes those of the operation of its name, but for the last one: the number of threads, or a stream.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

Operation = Callable[..., None]
Make = Callable[..., tuple[Any, ...]]


def operations(
    family: ModuleType, extension: ModuleType, bind: Callable[[Operation, Make], Operation]
) -> SimpleNamespace:
    """The operations of a family by name, on tensors.

    Args:
        bind: of an operation of the extension and the function that makes its arguments, the operation on tensors.
    """
    return SimpleNamespace(**{
        name: bind(getattr(extension, name), make)
        for name, make in vars(family).items()
        if isinstance(make, FunctionType) and make.__module__ == family.__name__ and name[0] != "_"
    })  # fmt: skip
