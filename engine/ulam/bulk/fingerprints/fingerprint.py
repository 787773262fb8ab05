"""The fingerprint of a network, of a function, of any argument: a hash of everything that it computes from."""

from __future__ import annotations

import copyreg
import enum
import functools
import hashlib
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, NoReturn

import numpy as np
import torch

from ulam_kernels.arguments import described

from . import code_identity
from .attributes import contents, network_state, object_state
from .plain_values import ATOMS, Unreadable, array, encoded, node, printed, tensor

FRAMES = 10_000  # of Python, for networks and code that nest deeply
NATIVE = 1 << 9  # the flag of types made while Python runs; types written in C do not have it


def fingerprint(value: object, name: str) -> str:
    """SHA-256, in hex, of everything that ``value`` computes from: the same in every process and on every machine.

    Numbers, strings, arrays and tensors count by type and exact bits, on whatever device. A network counts by its
    class, weights, buffers, submodules in their order, hooks and every other attribute; not by `training`, since ulam
    samples in eval mode, nor by what `functools.cached_property` keeps. The order of a mapping counts, since a network
    may loop over it, except where ``value`` itself is one: then it is arguments by name.

    Code of installed libraries counts by name and version (of torch, NumPy and ulam by name: their versions are in a
    unit's environment). The user's functions and classes count by bytecode, defaults, closures and the globals that
    they read, in turn; not by comments, layout, module or file. Bytecode differs between minor versions of Python.
    What no object shows is not seen: torch's global settings, operators registered elsewhere, libraries changed in
    place.

    Raises:
        TypeError: part of it cannot be read, such as a lock, a generator or an open file; the message says where.
    """
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        value = {key: value[key] for key in sorted(value)}
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, FRAMES))
    try:
        return _Reader(name).of(value, "").hex()
    except RecursionError:
        expected = "what nests less deeply"
        raise TypeError(f"{name}: got a {type(value).__name__} too deep to read, expected {expected}") from None
    finally:
        sys.setrecursionlimit(limit)


DESCRIPTORS = (
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
)


class _Reader:
    """One walk over a value. `done` and `open` know objects by id, and hold them so that no id is used twice.

    An object met again inside of itself is told by where it was met first, which no other object has.
    """

    def __init__(self, name: str) -> None:
        self.path = [name]
        self.done: dict[int, tuple[object, bytes]] = {}
        self.open: dict[int, str] = {}

    def of(self, value: Any, label: str) -> bytes:
        """The digest of ``value``, met at ``label`` of the object in hand."""
        if (atom := ATOMS.get(type(value))) is not None:
            return node(type(value).__name__, atom(value))
        if id(value) in self.done:
            return self.done[id(value)][1]
        if id(value) in self.open:
            return node("met", encoded(self.open[id(value)]))
        with self.inside(value, label):
            digest = self._read(value)
        self.done[id(value)] = value, digest
        return digest

    @contextmanager
    def inside(self, value: object, label: str) -> Any:
        self.path.append(label)
        self.open[id(value)] = f"{len(self.path)}" + "".join(self.path[1:])
        yield
        del self.open[id(value)]
        self.path.pop()

    def _refuse(self, value: object, expected: str = "what pickles, and is no state of this process") -> NoReturn:
        got = described(value) if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
        place = f" at {''.join(self.path)}" if len(self.path) > 2 else ""
        raise TypeError(f"{self.path[0]}: got {got}{place}, expected {expected} (a unit's key is a hash of it)")

    def _read(self, value: Any) -> bytes:
        """By the first kind that it is of."""
        for kinds, read in READERS:
            if isinstance(value, kinds):
                try:
                    return read(self, value)
                except Unreadable as error:
                    self._refuse(value, str(error))
        return self._object(value)

    def items(self, kind: str, values: Iterable[object]) -> bytes:
        return node(kind, *(self.of(value, f"[{i}]") for i, value in enumerate(values)))

    def mapping(self, kind: str, values: Mapping[Any, object]) -> bytes:
        """In order."""
        parts = []
        for i, (key, value) in enumerate(values.items()):
            short = type(key) is str or (type(key) is int and key.bit_length() < 64)
            shown = repr(key) if short else f"<value {i}>"
            parts += [self.of(key, f"<key {i}>"), self.of(value, f"[{shown}]")]
        return node(kind, *parts)

    def fields(self, kind: str, values: Iterable[tuple[str, object]], *first: bytes) -> bytes:
        """Attributes by name, in the order given."""
        parts = [part for k, v in values for part in (encoded(k), self.of(v, f".{k}"))]
        return node(kind, *first, *parts)

    # --- containers

    def _tuple(self, value: tuple[object, ...]) -> bytes:
        if type(value) is not tuple:
            return node("tuple of a class", self.of(type(value), ".__class__"), self.items("tuple", value))
        return self.items("tuple", value)

    def _list(self, value: list[object]) -> bytes:
        return self.items("list", value) if type(value) is list else self._object(value)

    def _dict(self, value: Mapping[Any, object]) -> bytes:
        cls = type(value)
        if cls.__name__ == "FrozenDict" and cls.__module__ == "diffusers.configuration_utils":
            # What it says of files and of itself begins with "_"; a file makes lists of tuples
            told = {k: tuple(v) if type(v) is list else v for k, v in value.items() if not str(k).startswith("_")}
            return self.mapping("config", told)
        if cls in (dict, types.MappingProxyType):
            return self.mapping("dict", value)
        return self._object(value)

    def _set(self, value: set[object] | frozenset[object]) -> bytes:
        if type(value) not in (set, frozenset):
            return self._object(value)
        digests = []
        for element in value:
            done = dict(self.done)  # what is found inside must not hang on the order, which is an accident
            digests.append(self.of(element, "<element>"))
            self.done = done
        return node(type(value).__name__, *sorted(digests))

    def _tensor(self, value: torch.Tensor) -> bytes:
        return tensor(value)

    def _array(self, value: np.ndarray[Any, Any]) -> bytes:
        if type(value) not in (np.ndarray, np.memmap):
            return self._object(value)
        if value.dtype.hasobject or value.dtype.names:  # pointers; or padding, whose bytes are anything
            shape = printed(list(value.shape))
            return self.fields("objects", [("tolist()", value.tolist())], printed(value.dtype), shape)
        return array(value)

    def _scalar(self, value: np.generic) -> bytes:
        return node("scalar", self._array(np.asarray(value)))

    def _slice(self, value: slice) -> bytes:
        return self.items("slice", (value.start, value.stop, value.step))

    def _path(self, value: PurePath) -> bytes:
        return node("path", encoded(value.as_posix()))

    def _enum(self, value: enum.Enum) -> bytes:
        return self.fields("enum", [("value", value.value)], self.of(type(value), ".__class__"), printed(value.name))

    # --- code

    def _code(self, value: types.CodeType) -> bytes:
        return self.fields("code", code_identity.code_facts(value))

    def _function(self, value: types.FunctionType) -> bytes:
        if (original := getattr(value, "_torchdynamo_orig_callable", None)) is not None:
            return self.fields("compiled", [("_torchdynamo_orig_callable", original)])
        home = value.__globals__.get("__name__")
        if (known := code_identity.library_name(value, value.__module__, value.__qualname__)) is not None:
            return node("library", *map(encoded, known))
        cells = [contents(cell) for cell in value.__closure__ or ()]
        reads = code_identity.globals_read(value) if code_identity.library(home) is None else {}
        facts: list[tuple[str, object]] = [
            ("__code__", value.__code__),
            ("__defaults__", value.__defaults__),
            ("__kwdefaults__", sorted((value.__kwdefaults__ or {}).items())),
            *((f"<closure>.{name}", cell) for name, cell in zip(value.__code__.co_freevars, cells, strict=True)),
            *((f"<globals>.{name}", read) for name, read in reads.items()),
            *sorted(vars(value).items()),
        ]
        return self.fields("function", facts)

    def _method(self, value: types.MethodType) -> bytes:
        return self.fields("method", [("__func__", value.__func__), ("__self__", value.__self__)])

    def _builtin(self, value: Any) -> bytes:
        module = getattr(value, "__module__", None)
        owner = value.__self__
        if owner is None or isinstance(owner, types.ModuleType) or type(owner).__name__ == "PyCapsule":
            owner = sys.modules.get(module or "")
        return self.fields("builtin", [("__self__", owner)], printed(module), encoded(value.__name__))

    def _descriptor(self, value: Any) -> bytes:
        return node("descriptor", encoded(value.__objclass__.__qualname__), encoded(value.__name__))

    def _wrapper(self, value: Any) -> bytes:
        """staticmethod, classmethod, property, cached_property, the wrapper of lru_cache."""
        names = ("__wrapped__", "__func__", "func", "fget", "fset", "fdel")
        found = [(name, getattr(value, name)) for name in names if hasattr(value, name)]
        return self.fields(type(value).__name__, found)

    def _partial(self, value: functools.partial[object]) -> bytes:
        facts = [("func", value.func), ("args", value.args), ("keywords", value.keywords)]
        return self.fields("partial", [*facts, *sorted(vars(value).items())], self.of(type(value), ".__class__"))

    def _module(self, value: types.ModuleType) -> bytes:
        if (owner := code_identity.library(value.__name__)) is not None:
            return node("library", encoded(owner), encoded(value.__name__))
        if code_identity.is_extension(value):
            return node("extension", hashlib.sha256(Path(str(value.__file__)).read_bytes()).digest())
        return self.fields("module", code_identity.module_members(value).items())

    def _class(self, value: type) -> bytes:
        native = not value.__flags__ & NATIVE
        if native or (code_identity.library_name(value, value.__module__, value.__qualname__)) is not None:
            owner = code_identity.library(value.__module__) or ""
            return node("library", encoded(owner), encoded(f"{value.__module__}.{value.__qualname__}"))
        if value.__module__ == "torch.nn.utils.parametrize":  # holds the first module of those copied from it
            return self.items("parametrized", value.__bases__)
        members = code_identity.class_members(value)
        if issubclass(value, enum.Enum):  # the rest is made from these
            members = {name: member for name, member in members.items() if not name.startswith("_")}
            members = {**members, "<members>": [(member.name, member.value) for member in value]}
            members = {name: member for name, member in members.items() if not isinstance(member, value)}
        bases = [self.of(base, ".__base__") for base in (type(value), *value.__bases__)]
        return self.fields("class", members.items(), encoded(value.__qualname__), *bases)

    # --- objects

    def _network(self, value: torch.nn.Module) -> bytes:
        if isinstance(value, torch.jit.ScriptModule):
            self._refuse(value, "the Python module that it was made from")
        if (original := value._modules.get("_orig_mod")) is not None and type(value).__module__.startswith("torch."):
            return self.fields("compiled", [("_orig_mod", original)])
        return self.fields("network", network_state(value), self.of(type(value), ".__class__"))

    def _object(self, value: Any) -> bytes:
        """By what pickle would keep of it: its class and state."""
        if isinstance(value, torch.Generator):
            self._refuse(value)
        reduce = copyreg.dispatch_table.get(type(value))
        try:
            reduced = reduce(value) if reduce is not None else value.__reduce_ex__(4)
        except Exception:  # of any kind: they are the object's own
            self._refuse(value)
        if isinstance(reduced, str):
            module = getattr(value, "__module__", None) or type(value).__module__
            for place in (module, "scipy.special"):  # whose ufuncs do not say so
                if (known := code_identity.library_name(value, place, reduced)) is not None:
                    return node("library", *map(encoded, known))
            self._refuse(value)
        make, args, state, values, items = (*reduced, None, None, None)[:5]
        cls = self.of(type(value), ".__class__")
        args = args[1:] if args and args[0] is type(value) else args  # told already
        facts: list[tuple[str, object]] = [("<make>", make), ("<arguments>", args)]
        parts = [part for part in (state if type(state) is tuple and len(state) == 2 else (state,)) if part is not None]
        if all(isinstance(part, dict) and all(isinstance(name, str) for name in part) for part in parts):
            facts += object_state(value, {name: kept for part in parts for name, kept in part.items()})
        else:
            facts.append(("<state>", state))
        held = [self.items("values", values or ()), self.items("items", items or ())]
        return self.fields("object", facts, cls, *held)


READERS: tuple[tuple[Any, Callable[[_Reader, Any], bytes]], ...] = (
    (torch.nn.Module, _Reader._network),
    (torch.Tensor, _Reader._tensor),
    (enum.Enum, _Reader._enum),
    (np.ndarray, _Reader._array),
    (np.generic, _Reader._scalar),
    (tuple, _Reader._tuple),
    (list, _Reader._list),
    ((dict, types.MappingProxyType), _Reader._dict),
    ((set, frozenset), _Reader._set),
    (slice, _Reader._slice),
    (PurePath, _Reader._path),
    (type, _Reader._class),
    (types.FunctionType, _Reader._function),
    (types.MethodType, _Reader._method),
    ((types.BuiltinFunctionType, types.MethodWrapperType), _Reader._builtin),
    (DESCRIPTORS, _Reader._descriptor),
    ((staticmethod, classmethod, property, functools.cached_property), _Reader._wrapper),
    (functools._lru_cache_wrapper, _Reader._wrapper),
    (functools.partial, _Reader._partial),
    (types.CodeType, _Reader._code),
    (types.ModuleType, _Reader._module),
)
