"""What code is: a library's by its name, a user's by its bytecode and the globals that it reads.

The user's code counts by its code objects, not by its source: a process that unpickled a function by value (Ray) has
no source. Comments, layout, file and module do not matter to a code object; Python's minor version does.
"""

from __future__ import annotations

import dis
import importlib
import importlib.metadata
import importlib.util
import sys
import sysconfig
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, MemberDescriptorType, ModuleType
from typing import Any

RECORDED = frozenset({"torch", "numpy", "ulam", "ulam_kernels"})  # their versions are in a unit's environment
READS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
# Of a class: prose, places, and what Python, torch and copyreg write there for themselves.
BOOKKEEPING = (
    {"__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__slotnames__", "__firstlineno__"}
    | {"__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__static_attributes__"}
    | {"__abstractmethods__", "_abc_impl", "__orig_bases__", "__parameters__", "__type_params__"}
    | {"__dataclass_fields__", "__dataclass_params__", "_backward_cls", "_autograd_function_id"}
)


def library(module: str | None) -> str | None:
    """The library that the module ``module`` belongs to, with its version where that counts; None for user's code."""
    top = (module or "__main__").partition(".")[0]
    if top in RECORDED:
        return top
    if top in ("__main__", "__mp_main__") or (found := sys.modules.get(top)) is None:
        return None
    places = [getattr(found, "__file__", None) or "", *getattr(found, "__path__", ())]
    place = next((place for place in places if place), "")
    if _installed(place):
        return f"{top} {_version(top)}"
    return top if _standard(place, top) else None


def _installed(place: str) -> bool:
    return bool({"site-packages", "dist-packages"} & set(Path(place).parts))


def _standard(place: str, top: str) -> bool:
    """Whether a file is of Python's own library; one without a file is built in, by name."""
    if place in ("", "built-in", "frozen"):
        return top in sys.stdlib_module_names
    folders = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
    return not _installed(place) and any(Path(place).is_relative_to(folder) for folder in folders)


@cache
def _version(top: str) -> str:
    """The version of a package that is imported; empty where it says none."""
    version = getattr(sys.modules[top], "__version__", None)
    if isinstance(version, str):
        return version
    try:
        return importlib.metadata.version(top)
    except importlib.metadata.PackageNotFoundError:
        return ""


def library_name(value: Any, module: str | None, qualname: str) -> tuple[str, str] | None:
    """(library, dotted name) of what lies under that name in a library; None for all else."""
    owner = library(module)
    found: Any = sys.modules.get(module or "")
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return (owner, f"{module}.{qualname}") if owner is not None and found is value else None


def code_facts(code: CodeType) -> list[tuple[str, object]]:
    """All that a code object computes from, without its file and lines; its constants may hold code again."""
    names = "co_code co_consts co_names co_varnames co_freevars co_cellvars co_exceptiontable"
    counts = "co_argcount co_posonlyargcount co_kwonlyargcount co_flags"
    return [(name, getattr(code, name, None)) for name in (*names.split(), *counts.split())]


def globals_read(function: FunctionType) -> dict[str, object]:
    """What the code of a function reads by name outside of itself: globals, imports, attributes of user's modules.

    Builtins, and globals such as `__file__`, are left out.
    """
    found: list[tuple[str, object]] = []
    attributes: set[str] = set()
    variables = function.__globals__
    for code in _with_nested(function.__code__):
        attributes.update(code.co_names)
        steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
        for i, step in enumerate(steps):
            name = str(step.argval)
            if step.opname in READS and name in variables and not _dunder(name):
                found.append((name, variables[name]))
            elif step.opname == "IMPORT_NAME":
                found += _imported(name, int(steps[i - 2].argval), variables)
    values: dict[str, object] = {}
    seen: set[int] = set()
    while found:
        name, value = found.pop()
        if not isinstance(value, ModuleType) or library(value.__name__) is not None or is_extension(value):
            values[name] = value
        elif id(value) not in seen:
            seen.add(id(value))
            used = [(f"{name}.{part}", vars(value)[part]) for part in sorted(attributes & set(vars(value)))]
            found += used
            if not used:  # passed on, or read in a way that cannot be seen: all of it
                values[name] = value
    return {name: values[name] for name in sorted(values)}


def _with_nested(code: CodeType) -> list[CodeType]:
    nested = [inner for const in code.co_consts if isinstance(const, CodeType) for inner in _with_nested(const)]
    return [code, *nested]


def _imported(name: str, level: int, variables: dict[str, Any]) -> list[tuple[str, object]]:
    """The user's modules of an import statement inside a function. A library's, or one not there, is its name.

    They are imported here, so that a fingerprint is the same before and after the function's first call.
    """
    try:
        absolute = importlib.util.resolve_name("." * level + name, variables.get("__package__") or "")
        top = absolute.partition(".")[0]
        if library(top) is None and not _lies_in_library(top):
            modules = [importlib.import_module(module) for module in sorted({top, absolute})]
            return [(f"import {module.__name__}", module) for module in modules]
    except Exception:  # of any kind: they are the module's own
        absolute = "." * level + name
    return [(f"import {absolute}", None)]


def _lies_in_library(top: str) -> bool:
    """Whether a package that need not be imported yet is an installed one."""
    spec = importlib.util.find_spec(top)
    places = [spec.origin or "", *(spec.submodule_search_locations or ())] if spec is not None else []
    return any(_installed(place) or _standard(place, top) for place in places if place)


def is_extension(module: ModuleType) -> bool:
    """Whether it is compiled: its code cannot be read, its file can."""
    return str(getattr(module, "__file__", "")).endswith((".so", ".pyd"))


def _dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def module_members(module: ModuleType) -> dict[str, object]:
    """The values of a user's module by name."""
    return {name: value for name, value in sorted(vars(module).items()) if not _dunder(name)}


def class_members(cls: type) -> dict[str, object]:
    """What a class of the user defines, by name. What `__slots__` made of its names goes without saying."""
    members = [(name, value) for name, value in sorted(vars(cls).items()) if name not in BOOKKEEPING]
    return {name: value for name, value in members if not isinstance(value, MemberDescriptorType)}
