"""Names of a package that are imported when they are first read: `ulam status` answers before torch would be there."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
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
            raise _missing(package, name) from None
    setattr(sys.modules[package], name, value)
    return value


def suggests(package: str) -> None:
    """Let a module that has all its names say which of them was meant by one that it has not.

    Set from without: type checkers would take a function `__getattr__` in its source for any name at all.
    """
    vars(sys.modules[package])["__getattr__"] = partial(_refused, package)


def _refused(package: str, name: str) -> object:
    raise _missing(package, name)


def _missing(package: str, name: str) -> AttributeError:
    """The error of Python's own words, with the public name that was most likely meant."""
    module = sys.modules[package]
    words, meant = f"module {package!r} has no attribute {name!r}", None
    if not name.startswith("_"):
        from ulam_kernels.arguments import likely  # for errors alone

        public = getattr(module, "__all__", None) or dir(module)
        meant = likely(name, [known for known in public if not known.startswith("_")])
    if meant is None:
        return AttributeError(words)
    return AttributeError(f"{words}: did you mean {meant}?", obj=module)  # no name=: Python would suggest it once more
