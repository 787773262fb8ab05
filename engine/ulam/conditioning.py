"""What the network is told beside x and t: conditioning tensors, and the weights of classifier-free guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from ulam_kernels.validation import real_numbers

from .engine.transfers import on_device

Cond: TypeAlias = "Mapping[str, torch.Tensor | Shared]"


@dataclass(frozen=True, eq=False)
class Shared:
    """A conditioning tensor that the network receives as it is, for all chains."""

    tensor: torch.Tensor


def shared(tensor: torch.Tensor) -> Shared:
    """Mark a conditioning tensor as one for all chains: it has no chain dimension and is passed on as it is."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"tensor: got {type(tensor).__name__}, expected a torch.Tensor")
    return Shared(tensor)


def check_cond(name: str, cond: Cond | None, chains: int) -> dict[str, torch.Tensor | Shared]:
    """``cond`` as a dict. Raises TypeError or ValueError unless every tensor has the chains as leading dimension."""
    if cond is None:
        return {}
    if not isinstance(cond, Mapping):
        raise TypeError(f"{name}: got {type(cond).__name__}, expected a dict of tensors")
    for key, value in cond.items():
        if not isinstance(key, str) or key in ("x", "t"):
            raise ValueError(f"{name}: got key {key!r}, expected the name of an argument of the network (not x or t)")
        if isinstance(value, Shared):
            continue
        if not isinstance(value, torch.Tensor):
            came = type(value).__name__
            raise TypeError(f"{name}[{key!r}]: got {came}, expected a tensor (or ulam.shared of one)")
        if value.dim() == 0 or value.shape[0] != chains:
            raise ValueError(
                f"{name}[{key!r}]: got shape {list(value.shape)}, expected {chains} chains as leading dimension "
                "(one tensor for all chains is ulam.shared(tensor))"
            )
    return dict(cond)


def check_guidance(
    guidance: float | Sequence[float] | torch.Tensor | None,
    cond: dict[str, torch.Tensor | Shared],
    uncond: Cond | None,
    chains: int,
) -> tuple[torch.Tensor | None, dict[str, torch.Tensor | Shared]]:
    """The weights ``[chains]`` float32 (None where no chain is guided) and the unconditional inputs.

    A key that ``uncond`` lacks keeps its conditional value.

    Raises:
        TypeError, ValueError: weights that are not finite numbers, guidance without ``uncond`` or the reverse.
    """
    if guidance is None:
        if uncond is not None:
            raise ValueError("guidance: got None beside uncond, expected a weight")
        return None, {}
    weight = real_numbers("guidance", guidance).float()
    if weight.dim() > 1 or (weight.dim() == 1 and len(weight) != chains):
        raise ValueError(
            f"guidance: got shape {list(weight.shape)}, expected one number, or one for each of {chains} chains"
        )
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("guidance: got a weight that is not finite, expected finite numbers")
    weight = weight.expand(chains).clone()
    if uncond is None and bool((weight == 1).all()):
        return None, {}
    if uncond is None:
        raise ValueError("uncond: got None, guidance needs the unconditional inputs, such as {'y': nulls}")
    other = check_cond("uncond", uncond, chains)
    if unknown := other.keys() - cond.keys():
        raise ValueError(f"uncond: got {sorted(unknown)}, which cond does not have")
    if bool((weight == 1).all()):
        return None, {}
    return weight, {**cond, **other}


@dataclass(frozen=True)
class Input:
    """What one argument of the network is for all jobs of an engine: its dtype and shape, behind the chains' if any."""

    dtype: torch.dtype
    shape: torch.Size
    shared: torch.Tensor | None

    @classmethod
    def of(cls, value: torch.Tensor | Shared) -> Input:
        if isinstance(value, Shared):
            return cls(value.tensor.dtype, value.tensor.shape, value.tensor)
        return cls(value.dtype, value.shape[1:], None)

    def check(self, name: str, value: torch.Tensor | Shared) -> None:
        """Raise ValueError unless this value can stand in one batch with those before."""
        came = Input.of(value)
        if (came.shared is None) != (self.shared is None):
            raise ValueError(f"{name}: all jobs of an engine share it, or none")
        if (came.dtype, came.shape) != (self.dtype, self.shape):
            shapes = ([*(["chains"] if i.shared is None else []), *i.shape] for i in (came, self))
            told, like = (f"{i.dtype} {shape}" for i, shape in zip((came, self), shapes, strict=True))
            raise ValueError(f"{name}: got {told}, expected {like} like the jobs before")
        if self.shared is not None and came.shared is not self.shared:
            assert came.shared is not None
            if not torch.equal(self.shared.cpu(), came.shared.cpu()):
                raise ValueError(f"{name}: a shared tensor must be the same for all jobs of an engine")


class ConditioningBuffers:
    """The network's further arguments for all slots, in one of the two branches: ``[slots, ...]`` a key.

    What they are is declared by the first job, from any thread; the tensors are made by the thread that runs the
    chains, when the first of them enter.
    """

    def __init__(self, name: str, slots: int, device: torch.device) -> None:
        self._name, self._slots, self._device = name, slots, device
        self._declared: dict[str, Input] | None = None
        self.inputs: dict[str, torch.Tensor] = {}  # the network's keyword arguments
        self.shared: set[str] = set()

    def check(self, values: dict[str, torch.Tensor | Shared]) -> None:
        """Raise ValueError unless these inputs can stand in one batch with those of the jobs before."""
        if self._declared is None:
            return
        if self._declared.keys() != values.keys():
            came = f"{sorted(values)}, the jobs before {sorted(self._declared)}"
            raise ValueError(f"{self._name}: got {came}: jobs in one engine share the arguments of the network")
        for key, value in values.items():
            self._declared[key].check(f"{self._name}[{key!r}]", value)

    def declare(self, values: dict[str, torch.Tensor | Shared]) -> None:
        """Settle what the inputs are, unless an earlier job did."""
        if self._declared is None:
            self._declared = {key: Input.of(value) for key, value in values.items()}

    def enter(self, slots: slice, chains: slice, values: dict[str, torch.Tensor | Shared]) -> None:
        """Copy the inputs of these chains of a job to these slots."""
        if not self.inputs:
            self._allocate()
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                self.inputs[key][slots].copy_(on_device(value[chains], self._device))

    def _allocate(self) -> None:
        inputs, shared = {}, set()
        with torch.inference_mode(False):  # they stay, and their versions are watched
            for key, given in (self._declared or {}).items():
                if given.shared is None:
                    inputs[key] = torch.zeros(self._slots, *given.shape, dtype=given.dtype, device=self._device)
                else:
                    inputs[key] = on_device(given.shared, self._device)
                    shared.add(key)
        self.shared = shared
        self.inputs = inputs
