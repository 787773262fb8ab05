"""What `step` returns: diffusers' own classes and tuples, the second member being computed when it is read."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from diffusers.utils.outputs import BaseOutput

Arguments = tuple[torch.Tensor, torch.Tensor]


class LazyOutput:
    """A tensor that is computed from a step's arguments once, when it is first read.

    Raises RuntimeError if one of the arguments has been changed in place by then.
    """

    __slots__ = ("arguments", "compute", "name", "value", "versions")
    one_at_a_time = threading.RLock()

    def __init__(self, name: str, compute: Callable[[], torch.Tensor], arguments: Arguments) -> None:
        self.name, self.compute = name, compute
        self.arguments, self.versions = arguments, _versions(arguments)
        self.value: torch.Tensor | None = None

    def __call__(self) -> torch.Tensor:
        with self.one_at_a_time:
            if self.value is None:
                if _versions(self.arguments) != self.versions:
                    raise RuntimeError(
                        f"{self.name}: got model_output or sample changed in place meanwhile, expected a read before"
                    )
                with torch.no_grad():  # as step itself was called, where an argument requires grad
                    self.value = self.compute()
                del self.compute, self.arguments
        return self.value


def _versions(arguments: Arguments) -> tuple[int, int]:
    """How often each was changed in place; tensors of inference mode do not count that."""
    first, second = arguments
    try:
        return first._version, second._version
    except RuntimeError:
        return _version(first), _version(second)


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


class LazyPair(tuple[Any, ...]):
    """(prev_sample, second) as `return_dict=False` gives them."""

    _later: LazyOutput

    def __new__(cls, first: torch.Tensor, later: LazyOutput) -> LazyPair:
        pair = super().__new__(cls, (first, None))
        pair._later = later
        return pair

    def whole(self) -> tuple[Any, ...]:
        """The plain tuple."""
        return tuple.__getitem__(self, 0), self._later()

    def __getitem__(self, index: Any) -> Any:
        return tuple.__getitem__(self, 0) if index == 0 else self.whole()[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.whole())

    def __add__(self, other: Any) -> Any:
        return self.whole() + other

    def __radd__(self, other: Any) -> Any:
        return other + self.whole()

    def __mul__(self, times: Any) -> Any:
        return self.whole() * times

    def __contains__(self, value: object) -> bool:
        return value in self.whole()

    def __eq__(self, other: object) -> bool:
        return self.whole() == (other.whole() if isinstance(other, LazyPair) else other)

    def __hash__(self) -> int:
        return hash(self.whole())

    def __repr__(self) -> str:
        return repr(self.whole())

    def __reduce__(self) -> Any:
        return tuple, (list(self.whole()),)


@cache
def lazy_class(base: type[BaseOutput], second: str) -> Any:
    """A subclass of diffusers' output class `base` made as cls(prev, later); `later` gives its member `second`."""

    def fill(output: Any) -> Any:
        if "_later" in output.__dict__:
            later = output.__dict__["_later"]
            first, value = output.__dict__["prev_sample"], later()
            output.__dict__.pop("_later", None)
            OrderedDict.__setitem__(output, "prev_sample", first)
            OrderedDict.__setitem__(output, second, value)
            output.__dict__[second] = value
        return output

    def passed_on(name: str) -> Callable[..., Any]:
        method = getattr(base, name)
        return lambda output, *args, **kwargs: method(fill(output), *args, **kwargs)

    def init(output: Any, first: torch.Tensor, later: LazyOutput) -> None:
        OrderedDict.__init__(output)
        output.__dict__.update(prev_sample=first, _later=later)

    def item(output: Any, key: Any) -> Any:
        return output.__dict__["prev_sample"] if key in (0, "prev_sample") else base.__getitem__(fill(output), key)

    def reduce(output: Any) -> Any:
        return base, (item(output, 0), fill(output).__dict__[second])

    names = ("__iter__", "__len__", "__contains__", "__eq__", "__repr__", "__reversed__", "__or__", "__ror__")
    namespace: dict[str, Any] = {
        name: passed_on(name) for name in (*names, "keys", "items", "values", "get", "copy", "to_tuple", "__setitem__")
    }
    namespace |= {"__init__": init, "__getitem__": item, "__reduce__": reduce, "__hash__": None}
    namespace[second] = property(
        lambda output: fill(output).__dict__[second],
        lambda output, value: fill(output).__dict__.update({second: value}),
    )
    return type(base.__name__, (base,), {**namespace, "__module__": __name__})
