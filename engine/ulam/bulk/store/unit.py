"""A unit: the finished samples of consecutive chains of one job, and their bytes in a file."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch

from ...files import one_line, parse_json

FORMAT = "ulam-unit-1"


@dataclass(frozen=True, eq=False)
class Unit:
    """Finished chains: samples ``x`` [n, *shape], ids ``chains`` int64 [n], ``labels`` int64 [n] or None, their seed.

    failed: for the chains that turned NaN or Inf, by place in ``x``, the row at which they did; of float samples these
    are NaN.
    """

    x: torch.Tensor
    chains: torch.Tensor
    labels: torch.Tensor | None
    seed: int
    failed: dict[int, int]


class Damaged(ValueError):
    """A file whose bytes are not those of a unit."""


def to_bytes(unit: Unit, key: str, format: str) -> bytes:
    """The file of a unit: a pure function of it and its key.

    Tensors ``x``, ``chains`` and ``labels`` (where there are any), and JSON: under "ulam" in safetensors' metadata,
    as a text array "ulam" in an npz.
    """
    tensors = {"x": unit.x.contiguous(), "chains": unit.chains}
    if unit.labels is not None:
        tensors["labels"] = unit.labels
    failed = {str(place): row for place, row in sorted(unit.failed.items())}
    told = {"format": FORMAT, "key": key, "seed": unit.seed, "failed": failed}
    text = json.dumps({**told, "sha256": _hash(tensors, told)})
    if format == "safetensors":
        return safetensors.torch.save(tensors, {"ulam": text})
    file = io.BytesIO()
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
    np.savez(file, ulam=np.array(text), **arrays)
    return file.getvalue()


def from_bytes(data: bytes, key: str, format: str) -> Unit:
    """The unit in a file. Raises Damaged unless every byte is what :func:`to_bytes` wrote for this key."""
    try:
        tensors, text = _read_safetensors(data) if format == "safetensors" else _read_npz(data)
        told = parse_json("ulam", text)
        failed = {int(place): int(row) for place, row in told["failed"].items()}
        unit = Unit(tensors["x"], tensors["chains"], tensors.get("labels"), int(told["seed"]), failed)
        if told["key"] != key:
            raise ValueError(f"the unit {told['key']}")
        whole = to_bytes(unit, key, format) == data  # its hash, its header and nothing behind it
    except Exception as error:  # damaged files raise what their reader happens to meet
        raise Damaged(one_line(error)) from None
    if not whole:
        raise Damaged("other bytes than were written")
    return unit


def _hash(tensors: dict[str, torch.Tensor], told: dict[str, Any]) -> str:
    found = hashlib.sha256(json.dumps(told).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return found.hexdigest()


def _read_safetensors(data: bytes) -> tuple[dict[str, torch.Tensor], str]:
    tensors = safetensors.torch.load(data)
    header = parse_json("header", data[8 : 8 + int.from_bytes(data[:8], "little")].decode())
    return tensors, header["__metadata__"]["ulam"]


def _read_npz(data: bytes) -> tuple[dict[str, torch.Tensor], str]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    text = str(found.pop("ulam"))
    return {name: torch.from_numpy(array) for name, array in found.items()}, text
