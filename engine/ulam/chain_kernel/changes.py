"""Whether a network is still the one that was read: its weights byte by byte, its modules attribute by attribute."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from operator import attrgetter
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ulam_kernels.changes import digest, identical, layouts, same_values

PLAIN = (bool, int, float, complex, str, tuple)  # attributes that are compared by their values
APART = (torch.nn.Module, torch.Tensor, type, ModuleType, type(None), *PLAIN[:-1])  # not looked into here
DEEPEST = 3
MOST_NUMBERS = 1 << 16  # of a tensor that is no weight
MODE = "training"  # which sampling sets


def hooks_of_all() -> list[dict[Any, Any]]:
    """The hooks that torch runs for every module."""
    names = "_global_forward_pre_hooks", "_global_forward_hooks"
    return [getattr(torch.nn.modules.module, name, {}) for name in names]


class Held:
    """What modules hold, and a callable that is none: another tensor, layer, hook or attribute is another network.

    Lists, dicts, sets and objects among the attributes are looked into as well, three deep, and the numbers of tensors
    and arrays there compared, unless they are ``read``, as weights are.
    """

    def __init__(
        self, modules: Iterable[torch.nn.Module], net: object = None, read: Iterable[torch.Tensor] | None = None
    ) -> None:
        self._modules = list(modules)
        self._classes = list({id(kind): kind for kind in map(type, self._modules)}.values())
        own = [vars(module) for module in self._modules]
        seen: dict[int, object] = {id(named): named for named in own}  # so that no other takes its id
        found = _all([value for named in own for value in named.values()] + [net], seen, DEEPEST)
        self._dicts = own + [inside for inside in found if isinstance(inside, dict)]
        self._lists = [inside for inside in found if isinstance(inside, list)]
        self._cells = [inside for inside in found if isinstance(inside, CellType)]
        self._others = [inside for inside in found if isinstance(inside, (set, deque, Slots))]
        self._dicts += hooks_of_all()
        self._values, self._beside = self._in_dicts(), self._beside_dicts()
        self._modes = {at for at, name in enumerate(chain.from_iterable(own)) if name == MODE}
        containers: list[Any] = [*self._dicts, *self._lists]
        self._copies = [(inside, inside.copy()) for inside in containers]
        self._contents = [(cell, cell.cell_contents) for cell in self._cells]
        known = None if read is None else {id(tensor) for tensor in read}
        self._numbers = [] if known is None else [
            (value, _bytes(value)) for value in {id(one): one for one in (*self._values, *self._beside)}.values()
            if isinstance(value, (torch.Tensor, np.ndarray)) and id(value) not in known and _readable(value)
        ]  # fmt: skip

    def _in_dicts(self) -> list[object]:
        return list(chain.from_iterable(map(dict.values, self._dicts)))

    def _beside_dicts(self) -> list[object]:
        return [
            *map(type, self._modules),
            *[getattr(kind, "forward", None) for kind in self._classes],
            *chain.from_iterable(self._lists),
            *chain.from_iterable(self._others),
            *map(attrgetter("cell_contents"), self._cells),
        ]

    def holds(self) -> bool:
        """Whether nothing has changed but modes."""
        beside = self._beside_dicts()
        same = same_values(self._dicts, self._values) and identical(beside, self._beside)
        if not same:
            now, was = [*self._in_dicts(), *beside], [*self._values, *self._beside]
            same = len(now) == len(was) and all(
                a is b or (isinstance(a, PLAIN) and type(a) is type(b) and _equal(a, b))
                for at, (a, b) in enumerate(zip(now, was, strict=True))
                if at not in self._modes
            )
        return same and (not self._numbers or all(_bytes(value) == numbers for value, numbers in self._numbers))

    def on_host(self) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """Put copies on the host in the places of tensors on GPUs, until :meth:`restore`.

        Returns (copy, tensor) by the id of each copy.
        """
        copies: dict[int, torch.Tensor] = {}  # by the id of the tensor, which may have several places

        def copy(tensor: torch.Tensor) -> torch.Tensor:
            if id(tensor) not in copies:
                made = tensor.detach().cpu()
                parameter = isinstance(tensor, torch.nn.Parameter)
                copies[id(tensor)] = torch.nn.Parameter(made, tensor.requires_grad) if parameter else made
            return copies[id(tensor)]

        tensors: dict[int, torch.Tensor] = {}
        for inside, was in self._copies:
            for key, value in list(was.items() if isinstance(was, dict) else enumerate(was)):
                if isinstance(value, torch.Tensor) and value.is_cuda:
                    inside[key], tensors[id(value)] = copy(value), value
        for cell, value in self._contents:
            if isinstance(value, torch.Tensor) and value.is_cuda:
                cell.cell_contents, tensors[id(value)] = copy(value), value
        return {id(copies[at]): (copies[at], tensor) for at, tensor in tensors.items()}

    def restore(self) -> None:
        """Put back what was held, where it has changed."""
        for inside, was in self._copies:
            if identical(_items(inside), _items(was)):
                continue
            if isinstance(inside, dict):
                inside.clear()
                inside.update(was)
            else:
                inside[:] = was
        for cell, value in self._contents:
            if cell.cell_contents is not value:
                cell.cell_contents = value


class Slots:
    """The attributes of an object that has no dict of them."""

    def __init__(self, owner: object) -> None:
        self._owner = owner
        named = [getattr(kind, "__slots__", ()) for kind in type(owner).__mro__]
        self._names = [name for names in named for name in ([names] if isinstance(names, str) else names)]

    def __iter__(self) -> Iterator[object]:
        return (getattr(self._owner, name, None) for name in self._names)


def _readable(value: torch.Tensor | npt.NDArray[Any]) -> bool:
    """Whether its numbers are on the host, and few."""
    if isinstance(value, np.ndarray):
        return value.size <= MOST_NUMBERS and value.dtype != object
    return value.device.type == "cpu" and value.layout is torch.strided and value.numel() <= MOST_NUMBERS


def _bytes(value: torch.Tensor | npt.NDArray[Any]) -> tuple[object, bytes]:
    """Shape and numbers."""
    if isinstance(value, torch.Tensor):
        value = value.detach().contiguous().view(-1).view(torch.uint8).numpy() if value.numel() else np.zeros(0)
    return value.shape, value.tobytes()


def _items(inside: Any) -> list[object]:
    return list(inside.values() if isinstance(inside, dict) else inside)


def _equal(a: object, b: object) -> bool:
    try:
        return bool(a == b)
    except (RuntimeError, ValueError):  # a tuple of tensors, or of arrays
        return False


def _containers(value: object, seen: dict[int, object], depth: int) -> list[Any]:
    """The dicts, lists and closures' cells in a value, and the attributes of an object, each once."""
    if id(value) in seen or isinstance(value, APART) or depth < 0:
        return []
    seen[id(value)] = value
    if isinstance(value, FunctionType):
        filled = [cell for cell in value.__closure__ or () if _filled(cell)]
        inside = [*(cell.cell_contents for cell in filled), *(value.__defaults__ or ())]
        return [*filled, *_all(inside, seen, depth), *_containers(value.__kwdefaults__, seen, depth)]
    if isinstance(value, MethodType):
        return [*_containers(value.__self__, seen, depth), *_containers(value.__func__, seen, depth)]
    if isinstance(value, partial):
        return _all([value.func, value.args, value.keywords], seen, depth)
    if isinstance(value, dict):
        return [value, *_all(value.values(), seen, depth - 1)]
    if isinstance(value, list):
        return [value, *_all(value, seen, depth - 1)]
    if isinstance(value, tuple):
        return _all(value, seen, depth - 1)
    if isinstance(value, (set, deque)):
        return [value, *_all(value, seen, depth - 1)]
    named = _containers(getattr(value, "__dict__", None), seen, depth)
    if isinstance(value, np.ndarray) or not any("__slots__" in vars(kind) for kind in type(value).__mro__[:-1]):
        return named
    slots = Slots(value)
    return [*named, slots, *_all(slots, seen, depth - 1)]


def _all(values: Iterable[object], seen: dict[int, object], depth: int) -> list[Any]:
    return [inside for value in list(values) for inside in _containers(value, seen, depth)]


def _filled(cell: CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:  # not assigned yet
        return False
    return True


class Bytes:
    """The bytes of tensors as they were, to be compared with those of now, whoever has written them.

    On the host by their digest, which leaves the caches to the network. On a GPU the comparison is the device's, and
    whoever asks for it waits. What torch counts, writes by its own operations that do not go around autograd, is known
    without that.
    """

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self._tensors = list(tensors)
        self._there = [tensor for tensor in self._tensors if tensor.is_cuda]
        self._counts = self._counted()
        self._bytes_there = self._joined()
        here = [tensor for tensor in self._tensors if not tensor.is_cuda]
        dense = [tensor for tensor in here if tensor.is_contiguous()]
        self._gaps = [(t, t.detach().clone()) for t in here if not t.is_contiguous()]
        self._layouts = layouts(self._tensors)
        self._dense = [t.data_ptr() for t in dense], [t.numel() * t.element_size() for t in dense]
        self._digest = digest(*self._dense)

    def _counted(self) -> list[object]:
        return [None if tensor.is_inference() else tensor._version for tensor in self._there]

    def hold(self, wait: bool = True) -> bool:
        """Whether nothing has changed; of what is on a GPU, nothing that torch counts, unless this may ``wait``."""
        if layouts(self._tensors) != self._layouts or digest(*self._dense) != self._digest:
            return False
        if self._gaps and any(t.numpy(force=True).tobytes() != was.numpy().tobytes() for t, was in self._gaps):
            return False
        if not self._there:
            return True
        if self._counted() != self._counts:
            return False
        return not wait or all(map(torch.equal, self._joined(), self._bytes_there))

    def _joined(self) -> list[torch.Tensor]:
        """The bytes on each GPU, in one tensor."""
        found: dict[torch.device, list[torch.Tensor]] = {}
        for tensor in self._there:
            flat = tensor.detach().contiguous().view(-1)
            found.setdefault(tensor.device, []).append(flat.view(torch.uint8))
        return [torch.cat(parts) for parts in found.values()]
