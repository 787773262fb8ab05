"""The network's conditioning for the slots of an engine."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..conditioning import Shared
from .transfers import on_device


@dataclass(frozen=True)
class Input:
    """The dtype and shape (per chain unless shared) of one of the network's arguments, in all jobs of an engine."""

    dtype: torch.dtype
    shape: torch.Size
    shared: torch.Tensor | None

    @classmethod
    def of(cls, value: torch.Tensor | Shared) -> Input:
        if isinstance(value, Shared):
            return cls(value.tensor.dtype, value.tensor.shape, value.tensor)
        return cls(value.dtype, value.shape[1:], None)

    def check(self, name: str, value: torch.Tensor | Shared) -> None:
        """Raise ValueError unless this value can share a batch with those of the jobs before."""
        other = Input.of(value)
        if (other.shared is None) != (self.shared is None):
            raise ValueError(f"{name}: got {kind_of(other)}, expected {kind_of(self)} like the jobs before")
        if (other.dtype, other.shape) != (self.dtype, self.shape):
            shapes = ([*(["chains"] if i.shared is None else []), *i.shape] for i in (other, self))
            got, expected = (f"{i.dtype} {shape}" for i, shape in zip((other, self), shapes, strict=True))
            raise ValueError(f"{name}: got {got}, expected {expected} like the jobs before")
        if self.shared is not None and other.shared is not self.shared:
            assert other.shared is not None
            if not torch.equal(self.shared.cpu(), other.shared.cpu()):
                raise ValueError(f"{name}: got another shared tensor, expected that of the jobs before in this engine")


def kind_of(given: Input) -> str:
    return "a tensor of one row a chain" if given.shared is None else "a shared tensor"


class ConditioningBuffers:
    """The conditioning of all slots, for one of the two branches of guidance: ``[slots, ...]`` per key.

    The first job declares dtypes and shapes, from any thread; the thread that runs the chains allocates the tensors
    when the first of them enter. own: further arguments, ``[slots]``, which the engine itself fills.
    """

    def __init__(self, name: str, slots: int, device: torch.device, own: dict[str, torch.Tensor] | None = None) -> None:
        self._name, self._slots, self._device, self._own = name, slots, device, own or {}
        self._declared: dict[str, Input] | None = None
        self.entered = False  # whether any job has brought values
        self.inputs: dict[str, torch.Tensor] = dict(self._own)  # the network's keyword arguments
        self.shared: set[str] = set()

    def check(self, values: dict[str, torch.Tensor | Shared]) -> None:
        """Raise ValueError unless these inputs can share a batch with those of the jobs before."""
        if self._declared is None:
            return
        if self._declared.keys() != values.keys():
            got, expected = sorted(values), sorted(self._declared)
            raise ValueError(f"{self._name}: got {got}, expected {expected} like the jobs before in this engine")
        for key, value in values.items():
            self._declared[key].check(f"{self._name}[{key!r}]", value)

    def declare(self, values: dict[str, torch.Tensor | Shared]) -> None:
        """Fix the inputs' dtypes and shapes, or :meth:`check` them if an earlier job has."""
        self.check(values)
        if self._declared is None:
            self._declared = {key: Input.of(value) for key, value in values.items()}

    def enter(self, slots: slice, chains: slice, values: dict[str, torch.Tensor | Shared]) -> None:
        """Copy the conditioning of a job's chains to these slots."""
        if not self.entered:
            self._allocate()
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                self.inputs[key][slots].copy_(on_device(value[chains], self._device))

    def _allocate(self) -> None:
        inputs, shared = dict(self._own), set()
        with torch.inference_mode(False):  # buffers outlive the call, and their versions are checked
            for key, given in (self._declared or {}).items():
                if given.shared is None:
                    inputs[key] = torch.zeros(self._slots, *given.shape, dtype=given.dtype, device=self._device)
                else:
                    inputs[key] = on_device(given.shared, self._device)
                    shared.add(key)
        self.shared = shared
        self.inputs = inputs
        self.entered = True
