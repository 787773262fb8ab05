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
    if weight.dim() > 1 or (weight.dim() == 1 and len(weight) != chains):
        raise ValueError(
            f"guidance: got shape {list(weight.shape)}, expected one number, or one for each of {chains} chains"
        )
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("guidance: got a weight that is not finite, expected finite numbers")
    weight = weight.expand(chains).contiguous()
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
    """The conditioning of all slots: ``[2 * slots, ...]`` a key, conditional rows first, unconditional ones after."""

    def __init__(self, slots: int, device: torch.device) -> None:
        self._slots, self._device = slots, device
        self._buffers: dict[str, torch.Tensor] = {}
        self._shared: dict[str, torch.Tensor] = {}
        self._halves: dict[bool, dict[str, torch.Tensor]] = {}
        self._keys: set[str] | None = None  # of the first job, and so of all

    def check(self, cond: dict[str, torch.Tensor | Shared], uncond: dict[str, torch.Tensor | Shared]) -> None:
        """Raise ValueError unless these inputs can stand in one batch with those of the jobs before."""
        if self._keys is not None and self._keys != cond.keys():
            came = f"{sorted(cond)}, the jobs before {sorted(self._keys)}"
            raise ValueError(f"cond: got {came}: jobs in one engine share a batch and so the network's arguments")
        for name, values in (("cond", cond), ("uncond", uncond)):
            for key, value in values.items():
                self._check_one(f"{name}[{key!r}]", key, value, cond[key])

    def _check_one(self, name: str, key: str, value: torch.Tensor | Shared, first: torch.Tensor | Shared) -> None:
        if isinstance(value, Shared):
            before = self._shared.get(key, first.tensor if isinstance(first, Shared) else None)
            if before is None or (
                before is not value.tensor and not torch.equal(before, value.tensor.to(before.device))
            ):
                raise ValueError(f"{name}: a shared tensor must be the same for all jobs, cond and uncond of an engine")
            return
        like = self._buffers.get(key, first)
        if isinstance(like, Shared) or key in self._shared:
            raise ValueError(f"{name}: got a tensor per chain, expected a shared one like before")
        if like.shape[1:] != value.shape[1:] or like.dtype != value.dtype:
            came, expected = (
                f"{value.dtype} {list(value.shape)}",
                f"{like.dtype} {['chains', *like.shape[1:]]}",
            )
            raise ValueError(f"{name}: got {came}, expected {expected} like before")

    def declare(self, cond: dict[str, torch.Tensor | Shared]) -> None:
        """Allocate the buffers, or do nothing if an earlier job did."""
        if self._keys is not None:
            return
        self._keys = set(cond)
        for key, value in cond.items():
            if isinstance(value, Shared):
                self._shared[key] = value.tensor.to(self._device)
            else:
                shape = (2 * self._slots, *value.shape[1:])
                self._buffers[key] = torch.zeros(shape, dtype=value.dtype, device=self._device)
        for guided in (False, True):
            rows = {key: buffer if guided else buffer[: self._slots] for key, buffer in self._buffers.items()}
            self._halves[guided] = {**rows, **self._shared}

    def enter(
        self,
        slots: slice,
        chains: slice,
        cond: dict[str, torch.Tensor | Shared],
        uncond: dict[str, torch.Tensor | Shared],
    ) -> None:
        """Copy the inputs of these chains of a job to these slots."""
        after = slice(slots.start + self._slots, slots.stop + self._slots)
        for rows, values in ((slots, cond), (after, uncond or cond)):
            for key, value in values.items():
                if isinstance(value, torch.Tensor):
                    self._buffers[key][rows].copy_(value[chains])

    def inputs(self, guided: bool) -> dict[str, torch.Tensor]:
        """The network's keyword arguments for ``slots`` rows, or for twice as many."""
        return self._halves.get(guided, {})
