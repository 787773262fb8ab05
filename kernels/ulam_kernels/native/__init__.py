"""The backends in C++, on the CPU and in CUDA: the same operations on the same arguments.

A module here is a family of operations, and a public function of it makes an operation's arguments: sizes, addresses
and numbers. The extensions, ``_cpu`` and ``_cuda``, have an operation of that name, and take one argument more: the
number of threads, or a stream.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

Operation = Callable[..., None]
Call = Callable[[Operation, tuple[Any, ...], tuple[Any, ...]], None]


def operations(family: ModuleType, extension: ModuleType, call: Call) -> SimpleNamespace:
    """The operations of a family by name, on tensors.

    Args:
        call: runs an operation of the extension, with the arguments made of what is given; it is told both.
    """
    return SimpleNamespace(**{
        name: _operation(getattr(extension, name), make, call)
        for name, make in vars(family).items()
        if isinstance(make, FunctionType) and make.__module__ == family.__name__ and name[0] != "_"
    })  # fmt: skip


def _operation(native: Operation, make: Callable[..., tuple[Any, ...]], call: Call) -> Operation:
    def run(*given: Any, **named: Any) -> None:
        call(native, make(*given, **named), given)

    return run
