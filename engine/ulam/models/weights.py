"""Weights from safetensors files, loaded strictly. A pickle is never opened."""

from __future__ import annotations

from pathlib import Path

import safetensors
import safetensors.torch
import torch

from ..files import one_line


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
            f"weights: got {path} ({one_line(error)}), expected a complete safetensors file: pickles are not opened"
        ) from None
    for key, own in net.state_dict().items():
        if key in tensors and isinstance(own, torch.Tensor) and kind_of(tensors[key]) != kind_of(own):
            came, wanted = tensors[key].dtype, own.dtype
            raise ValueError(f"weights: got {came} as {key} in {path}, expected {wanted} or another type of its kind")
    try:
        net.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise ValueError(f"weights: got {path}, expected weights of this network: {one_line(error)}") from None


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
