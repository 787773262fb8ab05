"""Reprs of what holds tensors: at most ten lines, shapes for numbers, sizes for networks, nothing at its default."""

from __future__ import annotations

import dataclasses
import functools
import textwrap
from typing import Any

import numpy as np
import torch

LINES, WIDTH = 10, 110


def short_repr(self: Any) -> str:
    """The ``__repr__`` of a dataclass, by the line ``__repr__ = short_repr`` in its body."""
    parts = [f"{name}={brief(value)}".replace(" ", "\0") for name, value in _told(self)]  # wrapped between fields
    text = f"{type(self).__name__}({', '.join(parts)})"
    lines = textwrap.wrap(text, WIDTH, subsequent_indent="    ", break_on_hyphens=False)
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], "    ...)"]
    return "\n".join(lines).replace("\0", " ")


def brief(value: Any) -> str:
    """A value in a few words: ``float32 [16, 2]`` of a tensor, class and size of a network, the first of many items."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return _numbers(value)
    if isinstance(value, torch.nn.Module):
        lazy = torch.nn.parameter.UninitializedParameter
        count = sum(weight.numel() for weight in value.parameters() if not isinstance(weight, lazy))
        return f"<{type(value).__name__} of {count:,} parameters>"
    if isinstance(value, dict):
        return "{" + _first([f"{key}: {brief(item)}" for key, item in value.items()]) + "}"
    if isinstance(value, list | tuple):
        inside = _first([brief(item) for item in value])
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"
    if isinstance(value, functools.partial):
        return brief(value.func)
    if callable(value) and hasattr(value, "__qualname__"):
        return str(value.__qualname__)
    text = repr(value)
    if "\n" in text:
        return f"{type(value).__name__}(...)"
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 30]}..."


def _told(self: Any) -> list[tuple[str, Any]]:
    """The fields that are shown, with their values: none that is private, None, empty, or a number at its default."""
    found = []
    for field in dataclasses.fields(self):
        value = getattr(self, field.name, None)
        if not field.repr or field.name.startswith("_") or value is None:
            continue
        if isinstance(value, dict | list | tuple) and not value:
            continue
        simple = isinstance(value, bool | int | float) and type(field.default) is type(value)
        if not (simple and value == field.default):
            found.append((field.name, value))
    return found


def _numbers(value: torch.Tensor | np.ndarray[Any, Any]) -> str:
    where = f" on {value.device}" if isinstance(value, torch.Tensor) and value.device.type != "cpu" else ""
    if value.ndim == 0 and not where:
        return f"{value.item():.6g}" if value.dtype in (torch.float32, np.float32) else repr(value.item())
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}{where}"


def _first(items: list[str]) -> str:
    return ", ".join(items if len(items) <= 6 else [*items[:5], f"... {len(items)} in all"])
