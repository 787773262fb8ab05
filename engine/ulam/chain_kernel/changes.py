"""Whether a network is still the one that was read: its weights byte by byte, its modules attribute by attribute."""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Iterable
from itertools import chain

import torch

PLAIN = (bool, int, float, complex, str, tuple)  # attributes that are compared by their values
MODE = "training"  # which sampling sets


class Held:
    """What modules hold: another tensor, layer, hook or attribute in a place is another network."""

    def __init__(self, modules: Iterable[torch.nn.Module]) -> None:
        own = [vars(module) for module in modules]
        self._dicts = own + [value for named in own for value in named.values() if isinstance(value, dict)]
        self._was = self._now()
        names = chain.from_iterable(self._dicts)
        self._modes = {at for at, name in enumerate(names) if name == MODE}

    def _now(self) -> list[object]:
        return list(chain.from_iterable(map(dict.values, self._dicts)))

    def holds(self) -> bool:
        """Whether nothing has changed but modes."""
        now, was = self._now(), self._was
        if len(now) != len(was):
            return False
        return all(map(operator.is_, now, was)) or all(
            a is b or (isinstance(a, PLAIN) and type(a) is type(b) and a == b)
            for at, (a, b) in enumerate(zip(now, was, strict=True))
            if at not in self._modes
        )


class Copies:
    """The bytes of tensors as they were, to be compared with those of now, whoever has written them."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self._tensors = list(tensors)
        self._dense = [tensor for tensor in self._tensors if tensor.is_contiguous()]
        self._gaps = [(t, t.detach().clone()) for t in self._tensors if not t.is_contiguous()]
        self._copies = [tensor.detach().clone() for tensor in self._dense]
        self._layouts = self._now()
        self._at = [tensor.data_ptr() for tensor in self._dense]
        self._own = [tensor.data_ptr() for tensor in self._copies]
        self._bytes = [tensor.numel() * tensor.element_size() for tensor in self._dense]

    def _now(self) -> list[object]:
        return [(tensor.data_ptr(), tensor.shape, tensor.stride()) for tensor in self._tensors]

    def hold(self) -> bool:
        """Whether nothing has changed."""
        if self._now() != self._layouts or any(map(MEMCMP, self._at, self._own, self._bytes)):
            return False
        return all(tensor.numpy(force=True).tobytes() == was.numpy().tobytes() for tensor, was in self._gaps)


MEMCMP = ctypes.CDLL(None).memcmp  # one pass, and no memory of its own
MEMCMP.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
