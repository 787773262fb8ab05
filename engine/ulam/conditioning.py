"""What the network is told beside x and t: conditioning tensors, and the weights of classifier-free guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

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
    if isinstance(guidance, (bool, str)):
        raise TypeError(f"guidance: got {guidance!r}, expected a number, or one a chain")
    try:
        weight = torch.as_tensor(guidance).detach().to("cpu", torch.float32)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"guidance: got {type(guidance).__name__}, expected a number, or one a chain") from None
    if torch.as_tensor(guidance).is_complex():
        raise TypeError("guidance: got complex numbers, expected real ones")
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


class ConditioningBuffers:
    """The network's further arguments for all slots, in one of the two branches: ``[slots, ...]`` a key."""

    def __init__(self, name: str, slots: int, device: torch.device) -> None:
        self._name, self._slots, self._device = name, slots, device
        self._inputs: dict[str, torch.Tensor] | None = None
        self.shared: set[str] = set()

    def check(self, values: dict[str, torch.Tensor | Shared]) -> None:
        """Raise ValueError unless these inputs can stand in one batch with those of the jobs before."""
        if self._inputs is None:
            return
        if self._inputs.keys() != values.keys():
            came = f"{sorted(values)}, the jobs before {sorted(self._inputs)}"
            raise ValueError(f"{self._name}: got {came}: jobs in one engine share the arguments of the network")
        for key, value in values.items():
            before, tensor = self._inputs[key], value.tensor if isinstance(value, Shared) else value
            if isinstance(value, Shared) != (key in self.shared):
                raise ValueError(f"{self._name}[{key!r}]: all jobs of an engine share it, or none")
            if isinstance(value, Shared) and not torch.equal(before, tensor.to(before.device)):
                raise ValueError(f"{self._name}[{key!r}]: a shared tensor must be the same for all jobs of an engine")
            if before.dtype != tensor.dtype or (key not in self.shared and before.shape[1:] != tensor.shape[1:]):
                came, like = f"{tensor.dtype} {list(tensor.shape)}", f"{before.dtype} {['chains', *before.shape[1:]]}"
                raise ValueError(f"{self._name}[{key!r}]: got {came}, expected {like} like the jobs before")

    def declare(self, values: dict[str, torch.Tensor | Shared]) -> None:
        """Allocate the buffers, or do nothing if an earlier job did."""
        if self._inputs is not None:
            return
        self._inputs = {}
        for key, value in values.items():
            if isinstance(value, Shared):
                self._inputs[key] = value.tensor.to(self._device)
                self.shared.add(key)
            else:
                shape = (self._slots, *value.shape[1:])
                self._inputs[key] = torch.zeros(shape, dtype=value.dtype, device=self._device)

    def enter(self, slots: slice, chains: slice, values: dict[str, torch.Tensor | Shared]) -> None:
        """Copy the inputs of these chains of a job to these slots."""
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                self.inputs[key][slots].copy_(value[chains])

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """The network's keyword arguments."""
        return self._inputs or {}
