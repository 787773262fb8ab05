"""The network's arguments besides x and t: conditioning tensors, and the weights of classifier-free guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from ulam_kernels.validation import real_numbers

Cond: TypeAlias = "Mapping[str, torch.Tensor | Shared]"


@dataclass(frozen=True, eq=False)
class Shared:
    """A conditioning tensor that the network receives as it is, for all chains."""

    tensor: torch.Tensor


def shared(tensor: torch.Tensor) -> Shared:
    """Mark a tensor as shared by all chains: no chain dimension, passed on as is. Raises TypeError for a non-tensor."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"tensor: got {type(tensor).__name__}, expected a torch.Tensor")
    return Shared(tensor)


def check_cond(name: str, cond: Cond | None, chains: int) -> dict[str, torch.Tensor | Shared]:
    """``cond`` as a dict. Raises TypeError or ValueError unless the chains are each tensor's leading dimension."""
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
            got = type(value).__name__
            raise TypeError(f"{name}[{key!r}]: got {got}, expected a tensor (or ulam.shared of one)")
        if value.dim() == 0 or value.shape[0] != chains:
            raise ValueError(
                f"{name}[{key!r}]: got shape {list(value.shape)}, expected {chains} chains as leading dimension "
                "(one tensor for all chains is ulam.shared(tensor))"
            )
    return dict(cond)


def check_conditioning(
    cond: Cond | None, guidance: float | Sequence[float] | torch.Tensor | None, uncond: Cond | None, chains: int
) -> tuple[dict[str, torch.Tensor | Shared], torch.Tensor | None, dict[str, torch.Tensor | Shared]]:
    """The conditional inputs, the weights ``[chains]`` float32 (None if no chain is guided), the unconditional inputs.

    A key that ``uncond`` lacks keeps its conditional value.

    Raises:
        TypeError, ValueError: weights that are not finite numbers, guidance without ``uncond`` or the reverse.
    """
    conditional = check_cond("cond", cond, chains)
    if guidance is None:
        if uncond is not None:
            raise ValueError("guidance: got None beside uncond, expected a weight")
        return conditional, None, {}
    weight = real_numbers("guidance", guidance).float()
    if weight.dim() > 1 or (weight.dim() == 1 and len(weight) != chains):
        raise ValueError(
            f"guidance: got shape {list(weight.shape)}, expected one number, or one for each of {chains} chains"
        )
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("guidance: got a weight that is not finite, expected finite numbers")
    weight = weight.expand(chains).clone()
    if uncond is None and bool((weight == 1).all()):
        return conditional, None, {}
    if uncond is None:
        raise ValueError("uncond: got None beside guidance, expected the unconditional inputs, such as {'y': nulls}")
    other = check_cond("uncond", uncond, chains)
    if unknown := other.keys() - conditional.keys():
        raise ValueError(f"uncond: got {sorted(unknown)}, expected keys of cond only")
    if bool((weight == 1).all()):
        return conditional, None, {}
    return conditional, weight, {**conditional, **other}
