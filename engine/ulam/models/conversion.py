"""Checkpoints of torch as safetensors: their tensors, found by name; nothing of a pickle but tensors is made."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import safetensors
import safetensors.torch
import torch

from ulam_kernels.arguments import described

from ..files import one_line, whole

Tensors: TypeAlias = dict[str, torch.Tensor]

WRAPPERS = ("module.", "_orig_mod.")  # DataParallel, AveragedModel and the like; torch.compile
MODEL = "model."  # what Lightning modules call their network
AVERAGED = re.compile(r"(^|_)(ema|averaged?|avg|shadow|swa)(_|$)")  # a sub-tree that copies another
# What training keeps beside weights, by its names in Lightning and in common loops.
KEPT_BESIDE = re.compile(
    r"(callbacks|loops|args|config|h(yper_)?param|optim|rng|random|(lr_)?sched|scaler).*|.*_extra_state"
)
NAMED = 8  # names in an error
DEEPEST = 32  # sub-trees inside one another


@dataclass(frozen=True)
class Converted:
    """What was written: how many tensors, what their names lost at the front, how many others the file holds."""

    tensors: int
    prefix: str
    left_out: int


def convert(source: Path, target: Path, prefix: str | None = None) -> Converted:
    """Write the weights in a checkpoint of torch (or safetensors) as safetensors, whole or not at all.

    The file is loaded with ``weights_only=True``. Its weights are the one dict in it that holds tensors by name, such
    as Lightning's ``state_dict``; ``module.``, ``_orig_mod.`` and ``model.`` are taken off where all names have them.
    Where several dicts fit, or names have an averaged copy (``ema``), ``prefix`` says which: the tensors whose names,
    with those of the dicts around them, begin with it. ``""`` takes the names as they are.

    Raises:
        OSError, ValueError, TypeError: no such file, none that torch reads so, no weights in it, several, a tensor that
            safetensors lacks, or a target that cannot be written; in one line.
    """
    if prefix is not None and not isinstance(prefix, str):
        raise TypeError(f"prefix: got {described(prefix)}, expected the beginning of names, or None")
    if target.suffix != ".safetensors" or target.is_dir():
        raise ValueError(f"out: got {target}, expected a file named *.safetensors")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"out: got {target}, expected a folder that is there")
    if target.exists() and source.exists() and os.path.samefile(source, target):
        raise ValueError(f"out: got {target}, which is read, expected another file")
    trees = state_dicts(load_checkpoint(source))
    tensors, front = chosen(trees, None if prefix is None else prefix.rstrip("."), source)
    kept = len(tensors)
    plain = {name: _plain(tensor, name, source) for name, tensor in tensors.items()}
    try:
        with whole(target) as (partial,):
            safetensors.torch.save_file(plain, partial, {"format": "pt"})
    except (OSError, safetensors.SafetensorError) as error:
        raise OSError(f"out: got {target}, expected a file that can be written: {one_line(error)}") from None
    others = sum(len(tree) for tree in trees.values()) - kept
    return Converted(kept, front, others)


def load_checkpoint(path: Path) -> Any:
    """What a file holds, loaded by torch with ``weights_only=True``. Raises OSError or ValueError in one line."""
    if not path.is_file():
        raise FileNotFoundError(f"in: got {path}, which is no file, expected a checkpoint of torch")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        if (named := re.search(r"GLOBAL ([\w.]+)", str(error))) is not None:
            raise ValueError(
                f"in: got {path}, which holds a {named[1]}, expected tensors and plain values, since other objects run "
                "code when they are loaded: save net.state_dict() from Python"
            ) from None
        raise ValueError(f"in: got {path}, expected a checkpoint of torch that is whole") from None
    except Exception as error:  # of any kind: a damaged file reaches every part of the reader
        why = one_line(error).split(". ")[0][:160]
        raise ValueError(f"in: got {path} ({why}), expected a checkpoint of torch that is whole") from None


def state_dicts(checkpoint: object) -> dict[str, Tensors]:
    """The dicts in a checkpoint that hold tensors by name, each by the names that lead to it, joined by dots.

    Dicts by number, as optimizers keep, are not looked into.
    """
    found: dict[str, Tensors] = {}
    for path, holder in _dicts(checkpoint, "", 0):
        tensors = {name: value for name, value in holder.items() if isinstance(value, torch.Tensor)}
        if tensors:
            found[path] = tensors
    return found


def _dicts(value: object, path: str, depth: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not isinstance(value, Mapping) or depth > DEEPEST or not all(isinstance(name, str) for name in value):
        return
    yield path, value
    for name, part in value.items():
        yield from _dicts(part, f"{path}{'.' if path else ''}{name}", depth + 1)


def chosen(trees: Mapping[str, Tensors], prefix: str | None, path: Path) -> tuple[Tensors, str]:
    """The tensors that ``prefix`` chooses, and what was taken off the front of their names. Raises ValueError."""
    if not trees:
        raise ValueError(f"in: got {path} without a dict of tensors by name, expected a state_dict in it")
    if prefix:
        tensors, front = _with_prefix(trees, prefix, path)
    else:
        front, tensors = _only(trees, path)
        if prefix is None and (copies := _averaged(tensors)):
            raise _several(copies, path)
    if prefix == "":
        return tensors, ""
    return _unwrapped(tensors, f"{front}." if front else "", model=prefix is None)


def _only(trees: Mapping[str, Tensors], path: Path) -> tuple[str, Tensors]:
    """The one dict that can be a network's weights, with the names that lead to it. Raises ValueError for several."""
    fit = {at: tree for at, tree in trees.items() if not KEPT_BESIDE.fullmatch(at)} or dict(trees)
    if len(fit.get("", ())) < max(map(len, fit.values())):  # single tensors beside dicts, such as a generator's state
        fit.pop("", None)
    if len(fit) > 1:
        raise _several({at: len(tree) for at, tree in fit.items()}, path)
    ((front, tensors),) = fit.items()
    return front, tensors


def _with_prefix(trees: Mapping[str, Tensors], prefix: str, path: Path) -> tuple[Tensors, str]:
    """The tensors whose full names begin with a prefix, else those of one dict whose names in it do."""
    full = {f"{at}.{name}" if at else name: tensor for at, tree in trees.items() for name, tensor in tree.items()}
    if len(full) < sum(map(len, trees.values())):
        raise ValueError(f"in: got {path} with one name in two ways, as a.b and b inside a, expected each once")
    if found := _below(full, prefix):
        return found, prefix
    inside = {f"{at}.{prefix}": found for at, tree in trees.items() if (found := _below(tree, prefix))}
    if len(inside) == 1:
        ((front, tensors),) = inside.items()
        return tensors, front
    if inside:
        raise _several({front: len(tensors) for front, tensors in inside.items()}, path)
    there = _counts(full) | {at: len(tree) for at, tree in trees.items() if at}
    raise ValueError(f"prefix: got {described(prefix)} for {path}, expected the beginning of names, of {_list(there)}")


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> Tensors:
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def _counts(names: Iterable[str]) -> dict[str, int]:
    """How many names begin with each first part."""
    counts: dict[str, int] = {}
    for name in names:
        first, dot, _ = name.partition(".")
        if dot:
            counts[first] = counts.get(first, 0) + 1
    return counts


def _averaged(tensors: Tensors) -> dict[str, int]:
    """The sub-trees of which one is called an average and holds the same names and shapes as another, with counts."""
    parts = {first: _unwrapped(_below(tensors, first), "", model=False)[0] for first in _counts(tensors)}
    shapes = {first: {name: tensor.shape for name, tensor in part.items()} for first, part in parts.items()}
    for first in parts:
        twins = [other for other in parts if shapes[other] == shapes[first]]
        if AVERAGED.search(first) and len(twins) > 1:
            return {name: len(parts[name]) for name in twins}
    return {}


def _unwrapped(tensors: Tensors, front: str, model: bool) -> tuple[Tensors, str]:
    """Without what wrappers put before all names, and ``model.`` too; and ``front`` with what came off."""
    while True:
        counted = {name: tensor for name, tensor in tensors.items() if name != "n_averaged"}  # of AveragedModel
        known = (*WRAPPERS, MODEL) if model else WRAPPERS
        taken = next((part for part in known if counted and all(name.startswith(part) for name in counted)), None)
        if taken is None:
            break
        tensors, front = {name[len(taken) :]: tensor for name, tensor in counted.items()}, front + taken
    inner = {name.replace("._orig_mod.", "."): tensor for name, tensor in tensors.items()}  # parts that were compiled
    return (inner if len(inner) == len(tensors) else tensors), front


def _several(counts: Mapping[str, int], path: Path) -> ValueError:
    return ValueError(f"in: got {path} with several weights, expected --prefix with one of {_list(counts)}")


def _list(counts: Mapping[str, int]) -> str:
    """Names that a prefix may have, with the number of tensors of each."""
    shown = [f"{described(name)} ({count} tensors)" for name, count in [*counts.items()][:NAMED]]
    return ", ".join(shown) + (", ..." if len(counts) > NAMED else "") or "none"


def _plain(tensor: torch.Tensor, name: str, path: Path) -> torch.Tensor:
    """A tensor with memory of its own. Raises ValueError for one that safetensors lacks."""
    kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else str(tensor.layout)
    kind = str(tensor.dtype) if tensor.dtype == torch.complex128 else kind
    if kind != "torch.strided":
        raise ValueError(f"in: got a {kind} tensor as {described(name)} in {path}, expected those of safetensors")
    return tensor.detach().resolve_conj().resolve_neg().contiguous().clone()
