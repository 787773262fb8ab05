"""Weights from safetensors files, loaded strictly. A pickle is never opened."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from ulam_kernels.arguments import described

from ..files import one_line

NAMED = 3  # names in an error


def load_weights(net: object, path: Path) -> None:
    """Load safetensors weights into a network, strictly: the same names, shapes and kinds of numbers (`kind_of`).

    Raises:
        OSError, ValueError, TypeError: no such file, not safetensors (a pickle is never opened), or not this network's.
    """
    if not isinstance(net, torch.nn.Module):
        raise TypeError(f"weights: got a {type(net).__name__} to load them into, expected a torch.nn.Module")
    if not path.is_file():
        raise FileNotFoundError(f"weights: got {path}, which is no file, expected safetensors")
    try:
        tensors = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"weights: got {path} ({one_line(error)}), expected a complete safetensors file: pickles are not opened, "
            "ulam convert makes safetensors of them"
        ) from None
    for key, own in net.state_dict().items():
        if key in tensors and isinstance(own, torch.Tensor) and kind_of(tensors[key]) != kind_of(own):
            came, wanted = tensors[key].dtype, own.dtype
            raise ValueError(f"weights: got {came} as {key} in {path}, expected {wanted} or another type of its kind")
    try:
        net.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise _refused(path, tensors, net.state_dict(), error) from None


def _refused(
    path: Path, tensors: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], error: RuntimeError
) -> ValueError:
    """What is wrong with weights that torch refused: names by a prefix, names, a shape; else what torch said."""
    prefix, names = _prefix(tensors, own), _prefix(own, tensors)
    if prefix or (names and len(own) == len(tensors)):
        there, here, way = "with", "without", prefix and prefix.rstrip(".")
        if not prefix:
            there, here, way = here, there, "'' to keep names as they are"
        return ValueError(
            f"weights: got {path}, whose names begin {there} {prefix or names!r}, expected them {here} it, as this "
            f"network's do: ulam convert IN OUT.safetensors --prefix {way}"
        )
    missing, others = [name for name in own if name not in tensors], [name for name in tensors if name not in own]
    if missing or others:
        got = f"weights: got {path} without {_some(missing)} of this network's {len(own)} tensors"
        return ValueError(f"{got} and with {_some(others)} of others, expected all of them and no others")
    for key, tensor in own.items():
        if isinstance(tensor, torch.Tensor) and tensors[key].shape != tensor.shape:
            came, wanted = list(tensors[key].shape), list(tensor.shape)
            return ValueError(f"weights: got {came} as {key} in {path}, expected {wanted} as this network has")
    return ValueError(f"weights: got {path}, expected weights of this network: {one_line(error)}")


def _prefix(longer: Collection[str], shorter: Collection[str]) -> str | None:
    """What stands before every one of the ``shorter`` names in the ``longer`` ones, such as ``model.``, or None."""
    first = next(iter(shorter), "")
    fronts = {name.removesuffix(first) for name in longer if name.endswith(f".{first}")}
    return next((p for p in sorted(fronts, key=len) if all(f"{p}{name}" in longer for name in shorter)), None)


def _some(names: list[str]) -> str:
    """How many names, and the first of them."""
    shown = ", ".join(described(name) for name in names[:NAMED])
    return f"{len(names)} ({shown}{', ...' if len(names) > NAMED else ''})" if names else "none"


def kinds_in_file(path: Path) -> dict[str, str]:
    """By name, whether the tensors of a safetensors file are complex, float, bool or int. Only its header is read."""
    with safetensors.safe_open(path, framework="pt") as file:
        types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    kinds = {"C": "complex", "F": "float", "B": "bool"}
    return {name: "float" if kind == "BF16" else kinds.get(kind[0], "int") for name, kind in types.items()}


def kind_of(tensor: torch.Tensor) -> str:
    """complex, float, bool or int: a copy into another kind drops the imaginary part or a fraction, or reads codes as
    numbers.
    """
    if tensor.is_complex() or tensor.is_floating_point():
        return "complex" if tensor.is_complex() else "float"
    return "bool" if tensor.dtype == torch.bool else "int"
