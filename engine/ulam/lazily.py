"""Names of a package that are imported when they are first read: `ulam status` answers before torch would be there."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module


def attribute(package: str, name: str, modules: Mapping[str, str]) -> object:
    """What ``name`` is in a package, kept there from now on: of the module that is given for it, as ``module`` or
    ``module:name there``, or a module of that name. Raises AttributeError where it is neither.
    """
    if name in modules:
        module, _, there = modules[name].partition(":")
        value = getattr(import_module(module, package), there or name)
    else:
        try:
            value = import_module(f".{name}", package)
        except ModuleNotFoundError as error:
            if error.name != f"{package}.{name}":  # a package that a module needs is missing
                raise
            raise AttributeError(f"module {package!r} has no attribute {name!r}") from None
    setattr(sys.modules[package], name, value)
    return value
