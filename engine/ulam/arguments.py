"""Checks of arguments that all of ulam shares: numbers, ids, seeds, times, shapes, devices."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from ulam_kernels.arguments import described, real
from ulam_kernels.ops import MAX_ELEMENTS
from ulam_kernels.tracing import check_read, eager, recorder, without_memory
from ulam_kernels.validation import check_tensor

from .gradients import check_no_gradient
from .memory import room_for

Array: TypeAlias = npt.NDArray[np.float64]
MAX_CHAINS = 1 << 40


def check_plain(x: torch.Tensor, name: str) -> None:
    """Raises TypeError, ValueError or RuntimeError for what torch cannot compute with here, compiled or not."""
    check_tensor(x, name)
    if not torch.compiler.is_compiling() and eager(x):
        return
    if recorder() is None and without_memory(x):  # a fake tensor outside its mode
        check_read(x, name, "a plain tensor")


def check_states(x: torch.Tensor, name: str = "x") -> torch.Tensor:
    """``x``, states ``[B, *shape]`` of floats. Raises TypeError, ValueError or RuntimeError for another."""
    check_plain(x, name)
    if not x.is_floating_point() or x.dim() < 2:
        raise ValueError(f"{name}: got {described(x)}, expected a float tensor [B, *shape]")
    return x


def check_device(device: torch.device | str) -> torch.device:
    """The torch device. Raises ValueError if torch does not know it."""
    try:
        return torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        raise ValueError(f"device: got {described(device)}, expected cpu or cuda") from None


def chain_ids(chains: int | range | Sequence[int] | torch.Tensor) -> torch.Tensor:
    """Chain ids as an int64 tensor ``[n]``. Raises TypeError or ValueError for anything but ids in [0, 2^63)."""
    if isinstance(chains, torch.Tensor):
        check_ids(chains)
        check_read(chains, "chains")
        ids = chains.detach().to("cpu", torch.int64, copy=True)
        if len(ids) and int(ids.min()) < 0:
            raise ValueError("chains: got an id outside [0, 2^63), expected ids in it")
    elif isinstance(chains, range):
        if chains and not (min(chains[0], chains[-1]) >= 0 and max(chains[0], chains[-1]) < 1 << 63):
            raise ValueError(f"chains: got {chains}, expected ids in [0, 2^63)")
        count = (chains[-1] - chains[0]) // chains.step + 1 if chains else 0  # len() counts to 2^63
        if count > MAX_CHAINS:
            raise ValueError(f"chains: got {chains}, expected at most 2^40 of them")
        ids = _counted(count).mul_(chains.step).add_(chains.start)
    elif isinstance(chains, (Sequence, np.ndarray)) and not isinstance(chains, (str, bytes)):
        values = [whole_number("chains", chain) for chain in chains]
        if any(not 0 <= value < 1 << 63 for value in values):
            raise ValueError("chains: got an id outside [0, 2^63), expected ids in it")
        ids = torch.tensor(values, dtype=torch.int64)
    else:
        count = whole_number("chains", chains)
        if not 0 <= count <= MAX_CHAINS:
            raise ValueError(f"chains: got {count}, expected 1 to 2^40 (or a range, or a sequence of ids)")
        ids = _counted(count)
    return ids


def _counted(chains: int) -> torch.Tensor:
    with room_for(f"chains: got {chains}, expected as many as memory holds"):
        return torch.arange(chains, dtype=torch.int64)


def check_ids(chains: torch.Tensor) -> None:
    """Raises TypeError or ValueError unless it is a tensor of ids, whatever their numbers."""
    if chains.dim() != 1 or chains.dtype not in (torch.int64, torch.int32):
        got = f"{chains.dtype} {list(chains.shape)}"
        raise TypeError(f"chains: got a tensor {got}, expected one dimension of int64 ids")
    check_plain(chains, "chains")


def checked_seed(seed: int) -> int:
    """A seed in [-2^63, 2^64). Raises TypeError or ValueError otherwise."""
    seed = whole_number("seed", seed)
    if not -(1 << 63) <= seed < 1 << 64:
        raise ValueError(f"seed: got {seed}, expected an integer in [-2^63, 2^64)")
    return seed


def seed_int64(seed: int) -> int:
    """As :func:`checked_seed`, as the int64 with the same 64 bits."""
    return as_int64(checked_seed(seed))


def as_int64(value: int) -> int:
    """The int64 with the low 64 bits of ``value``."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def filled(like: torch.Tensor, value: int, times: int = 1, plus: int = 0) -> torch.Tensor:
    """An int64 tensor like another, full of the low 64 bits of ``value times + plus``."""
    if torch.compiler.is_compiling():
        if value < 1 << 63:  # which may be symbolic: the tensor wraps, not the number
            return torch.full_like(like, value) * times + plus
        from torch.fx.experimental.symbolic_shapes import guard_scalar  # half a second, already spent

        value = int(guard_scalar(value))  # inductor has no number of more bits but a constant
    return torch.full_like(like, as_int64(value * times + plus))


def training_step(step: object) -> int:
    """A training step that the noise of examples is numbered by. Raises TypeError or ValueError for another."""
    number = whole_number("step", step)
    if not 0 <= number < 1 << 60:
        raise ValueError(f"step: got {operator.index(number)}, expected 0 to 2^60 - 1")  # a symbol in a graph is read
    return number


def whole_numbers(**values: object) -> list[int]:
    """:func:`whole_number` of each, by name."""
    return [whole_number(name, value) for name, value in values.items()]


def whole_number(name: str, value: object) -> int:
    """Any integer (Python's, NumPy's, a 0-d tensor's) as an int. Raises TypeError for everything else."""
    if torch.compiler.is_compiling() and isinstance(value, int) and not isinstance(value, bool):
        return value  # which may be symbolic: a graph for every value
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: got {described(value)}, expected an integer")
    try:
        number = int(operator.index(value))
    except TypeError:  # an array of several numbers, a float tensor, a class
        raise TypeError(f"{name}: got {described(value)}, expected an integer") from None
    if number.bit_length() > 128:  # later messages would print all of it
        raise ValueError(f"{name}: got {described(number)}, expected one of at most 64 bits")
    return number


Time = int | float | torch.Tensor | np.ndarray


def chain_times(x_t: torch.Tensor, t: Time, name: str = "t") -> Array:
    """`t` as [B] float64; ``name`` is its name in errors."""
    if isinstance(t, (np.ndarray, torch.Tensor)):
        if t.ndim > 1 or (t.ndim == 1 and t.shape != x_t.shape[:1]):
            raise ValueError(f"{name}: got shape {list(t.shape)}, expected a number or [{len(x_t)}], one a chain")
        array = t if isinstance(t, np.ndarray) else _read(t, name)
        if array.dtype.kind not in "iuf":
            raise TypeError(f"{name}: got {t.dtype}, expected integers or floats")
        return np.broadcast_to(array.astype(np.float64), (len(x_t),))
    if isinstance(t, (bool, np.bool_)) or not isinstance(t, (int, float, np.number)):
        raise TypeError(f"{name}: got {described(t)}, expected a number or a tensor of one a chain")
    return np.full(len(x_t), real(t, name, most=sys.float_info.max))


def _read(t: torch.Tensor, name: str) -> Array:
    check_tensor(t, name)
    check_read(t, name)
    check_no_gradient("a conversion", None, **{name: t})
    t = t.detach().cpu().resolve_neg()
    return (t.double() if t.is_floating_point() else t).numpy()


def per_chain(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``values`` ``[B]``, one per chain, reshaped to broadcast over ``like`` ``[B, *shape]``."""
    return values.view(-1, *[1] * (like.dim() - 1))


def check_shape(shape: Sequence[int], name: str = "shape", least: int = 0) -> tuple[int, ...]:
    """``shape`` as a tuple of at least ``least`` sizes above 0. Raises TypeError or ValueError otherwise."""
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) < least:
        raise TypeError(f"{name}: got {described(shape)}, expected the sizes of one sample, such as (3, 32, 32)")
    sizes = tuple(whole_number(name, size) for size in shape)
    if any(size < 1 for size in sizes):
        raise ValueError(f"{name}: got {sizes}, expected sizes of at least 1")
    if math.prod(sizes) > MAX_ELEMENTS:
        raise ValueError(f"{name}: got {sizes}, expected at most 2^30 elements in a sample")
    return sizes


def resolve_device(device: torch.device | str) -> torch.device:
    """The device by its full name, such as cuda:0. Raises ValueError if it is not available."""
    where = check_device(device)
    if where.type == "cpu":
        return torch.device("cpu")
    if where.type != "cuda":
        raise ValueError(f"device: got {described(str(device))}, expected cpu or cuda")
    count = torch.cuda.device_count()
    index = where.index if where.index is not None or not count else torch.cuda.current_device()
    if index is None or index >= count:
        here = f"torch sees {count} CUDA devices here"
        raise ValueError(f"device: got {described(str(device))}, expected cpu or one that is here: {here}")
    return torch.device("cuda", index)
