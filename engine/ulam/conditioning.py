"""The network's arguments besides x and t: conditioning tensors, and the weights of classifier-free guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from ulam_kernels.arguments import described
from ulam_kernels.reprs import short_repr
from ulam_kernels.validation import real_numbers

Cond: TypeAlias = "Mapping[str, torch.Tensor | npt.NDArray[Any] | Sequence[Any] | Shared]"

Blend: TypeAlias = "Sequence[tuple[Cond, float | Sequence[float] | torch.Tensor]]"


@dataclass(frozen=True, eq=False)
class Shared:
    """A tensor without a chain dimension, the same for all chains; as conditioning the network receives it as it is."""

    tensor: torch.Tensor

    __repr__ = short_repr


def shared(tensor: torch.Tensor | npt.NDArray[Any]) -> Shared:
    """Mark a tensor as shared by all chains: no chain dimension, wherever one is taken. An array becomes a tensor.

    Raises TypeError for what is neither.
    """
    if not isinstance(tensor, (torch.Tensor, np.ndarray)):
        raise TypeError(f"tensor: got {type(tensor).__name__}, expected a torch.Tensor, or a NumPy array")
    found = as_tensor("tensor", tensor)
    assert isinstance(found, torch.Tensor)
    return Shared(found)


def as_tensor(name: str, value: object) -> object:
    """A NumPy array or a list of numbers as a tensor with a copy of them; any other value as it is.

    Whole numbers are int64, others of torch's default dtype: NumPy's float64 would not go into a float32 network.
    Raises TypeError for an array or a list of something else.
    """
    if not isinstance(value, (np.ndarray, np.generic, list, tuple)):
        return value
    if isinstance(value, (list, tuple)) and value and all(isinstance(row, torch.Tensor) for row in value):
        raise TypeError(f"{name}: got a {type(value).__name__} of tensors, expected torch.stack of them")
    try:
        array = np.array(value)
    except ValueError:  # rows of different lengths
        array = np.array(None)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name}: got {described(value)}, expected a tensor, an array or a list of numbers")
    wide = array.dtype.kind in "iu" and array.size > 0 and int(array.max()) >= 1 << 63
    if wide:
        raise TypeError(f"{name}: got whole numbers of {array.dtype}, expected at most those of int64")
    if array.dtype.kind == "b":
        return torch.from_numpy(array)
    if array.dtype.kind == "f":
        return torch.from_numpy(array.astype(np.float64)).to(torch.get_default_dtype())
    return torch.from_numpy(array.astype(np.int64))


def arguments_of(cond: Mapping[str, object] | None, device: torch.device) -> dict[str, Any]:
    """What a network is called with besides x and t: the tensors themselves of shared ones, arrays and lists of numbers
    as tensors on the device, other values as they are.
    """
    found: dict[str, Any] = {}
    for key, value in (cond or {}).items():
        if isinstance(value, Shared):
            value = value.tensor
        elif isinstance(value, np.ndarray) or _are_numbers(value):
            value = as_tensor(f"cond[{key!r}]", value)
            assert isinstance(value, torch.Tensor)
            value = value.to(device)
        found[key] = value
    return found


def rowwise(cond: Mapping[str, object] | None) -> dict[str, Any]:
    """``cond`` with arrays and lists of numbers as tensors, whose rows can be taken; shared tensors stay marked."""
    return {
        key: as_tensor(f"cond[{key!r}]", value) if isinstance(value, np.ndarray) or _are_numbers(value) else value
        for key, value in (cond or {}).items()
    }


def rows_at(cond: Mapping[str, Any], at: slice) -> dict[str, Any]:
    """The conditioning of some rows of a batch; what is shared stays whole."""
    return {key: value if isinstance(value, Shared) else value[at] for key, value in cond.items()}


def _are_numbers(value: object) -> bool:
    """Whether it is a list of numbers, or of such lists."""
    return isinstance(value, list) and all(
        isinstance(v, (bool, int, float, np.generic)) or _are_numbers(v) for v in value
    )


def check_cond(name: str, cond: Cond | None, chains: int) -> dict[str, torch.Tensor | Shared]:
    """``cond`` as a dict of tensors, made of arrays and lists too.

    Raises TypeError or ValueError unless the chains are each one's leading dimension.
    """
    if cond is None:
        return {}
    if not isinstance(cond, Mapping):
        raise TypeError(f"{name}: got {type(cond).__name__}, expected a dict of tensors")
    checked: dict[str, torch.Tensor | Shared] = {}
    given: object
    for key, given in cond.items():
        if not isinstance(key, str) or key in ("x", "t"):
            raise ValueError(
                f"{name}: got key {key!r}, expected the name of an argument of the network, not x or t (where it has "
                "these, wrap it: lambda x, t, seen: net(seen, t, x))"
            )
        if isinstance(given, Shared):
            checked[key] = given
            continue
        value = as_tensor(f"{name}[{key!r}]", given)
        if not isinstance(value, torch.Tensor):
            got = type(value).__name__
            raise TypeError(f"{name}[{key!r}]: got {got}, expected a tensor (or ulam.shared of one)")
        checked[key] = value
        if value.dim() == 0 or value.shape[0] != chains:
            raise ValueError(
                f"{name}[{key!r}]: got shape {list(value.shape)}, expected {chains} chains as leading dimension "
                "(one tensor for all chains is ulam.shared(tensor))"
            )
    return checked


def check_conditioning(
    cond: Cond | None,
    guidance: float | Sequence[float] | torch.Tensor | None,
    uncond: Cond | None,
    chains: int,
    *,
    has_guide: bool = False,
    always: bool = False,
) -> tuple[dict[str, torch.Tensor | Shared], torch.Tensor | None, dict[str, torch.Tensor | Shared]]:
    """The conditional inputs, the weights ``[chains]`` float32 (None if no chain is guided), the unconditional inputs.

    A key that ``uncond`` lacks keeps its conditional value. has_guide: a second network is the other branch, so that
    ``uncond`` may be None. always: chains of weight 1 need that branch too.

    Raises:
        TypeError, ValueError: weights that are not finite numbers, guidance without ``uncond`` or the reverse.
    """
    conditional = check_cond("cond", cond, chains)
    if guidance is None:
        if uncond is not None:
            raise ValueError("guidance: got None beside uncond, expected a weight")
        return conditional, None, {}
    weight = check_weights("guidance", guidance, chains)
    idle = bool((weight == 1).all()) and not always
    if uncond is None and idle:
        return conditional, None, {}
    if uncond is None and has_guide:
        return conditional, weight, conditional
    if uncond is None:
        raise ValueError("uncond: got None beside guidance, expected the unconditional inputs, such as {'y': nulls}")
    other = check_cond("uncond", uncond, chains)
    if unknown := other.keys() - conditional.keys():
        raise ValueError(f"uncond: got {sorted(unknown)}, expected keys of cond only")
    if idle:
        return conditional, None, {}
    return conditional, weight, {**conditional, **other}


def check_weights(name: str, given: object, chains: int) -> torch.Tensor:
    """``[chains]`` float32 weights, of one number or one for each chain. Raises TypeError or ValueError otherwise."""
    weight = real_numbers(name, given).float()
    if weight.dim() > 1 or (weight.dim() == 1 and len(weight) != chains):
        raise ValueError(
            f"{name}: got shape {list(weight.shape)}, expected one number, or one for each of {chains} chains"
        )
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(f"{name}: got a weight that is not finite, expected finite numbers")
    return weight.expand(chains).clone()


def check_blend(
    blend: object, conditional: Mapping[str, torch.Tensor | Shared], chains: int, most: int
) -> tuple[tuple[dict[str, torch.Tensor | Shared], torch.Tensor], ...]:
    """Further conditionings with their weights ``[chains]`` float32, of pairs (cond, weight).

    A key that one lacks keeps the value in ``conditional``. most: of pairs, those of the engine.

    Raises:
        TypeError, ValueError: other than pairs, more of them, invalid conditioning or weights.
    """
    if blend is None:
        return ()
    if not isinstance(blend, Sequence) or any(not isinstance(pair, Sequence) or len(pair) != 2 for pair in blend):
        raise TypeError(f"blend: got {described(blend)}, expected pairs (cond, weight), or None")
    if len(blend) > most:
        raise ValueError(
            f"blend: got {len(blend)} further conditionings, expected at most {most}: make the engine with "
            f"branches={len(blend)}"
        )
    checked = []
    for number, (cond, weight) in enumerate(blend):
        other = check_cond(f"blend[{number}]", cond, chains)
        if unknown := other.keys() - conditional.keys():
            raise ValueError(f"blend[{number}]: got {sorted(unknown)}, expected keys of cond only")
        checked.append(({**conditional, **other}, check_weights(f"blend[{number}]", weight, chains)))
    return tuple(checked)
