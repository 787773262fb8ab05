"""Digests of what has no parts: numbers, strings, arrays, tensors."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

CHUNK = 1 << 26  # bytes of a tensor that are copied at a time, where it must be copied


class Unreadable(TypeError):
    """Says what was expected instead."""


def node(kind: str, *parts: bytes) -> bytes:
    """The digest of a kind and its parts, none of which can be taken for another."""
    sha = hashlib.sha256()
    for part in (kind.encode(), *parts):
        sha.update(struct.pack("<q", len(part)))
        sha.update(part)
    return sha.digest()


def encoded(value: str) -> bytes:
    return value.encode("utf-8", "surrogatepass")


def printed(value: Any) -> bytes:
    return encoded(str(value))


# What has no parts, by exact type: a subclass may compute otherwise.
ATOMS: dict[type, Callable[[Any], bytes]] = {
    type(None): printed,
    type(...): printed,
    type(NotImplemented): printed,
    bool: printed,
    int: lambda value: hex(value).encode(),  # Python refuses the decimals of very long ones
    float: lambda value: struct.pack("<d", value),
    complex: lambda value: struct.pack("<dd", value.real, value.imag),
    str: encoded,
    bytes: bytes,
    bytearray: bytes,
    range: printed,
    torch.dtype: printed,
    torch.device: printed,
    torch.memory_format: printed,
    torch.layout: printed,
    torch.Size: printed,
    TypeVar: printed,
    torch._ops.OpOverload: printed,
    torch._ops.OpOverloadPacket: printed,
}
PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter)


def tensor(value: torch.Tensor) -> bytes:
    """By dtype, shape and bytes, on any device. Raises Unreadable where it has no bytes, or others than these."""
    if type(value) not in PLAIN_TENSORS or value.layout != torch.strided or value.is_quantized:
        raise Unreadable("a dense tensor of torch's own class, not quantised")
    if value.is_meta:
        raise Unreadable("one with data, not on the meta device")
    sha, data = hashlib.sha256(), value.detach().resolve_conj().resolve_neg()
    rows = data if data.dim() else data.reshape(1)
    if rows.numel():  # whole where that needs no copy
        whole = rows.is_contiguous() and rows.device.type == "cpu"
        step = len(rows) if whole else max(1, CHUNK * len(rows) // (rows.numel() * rows.element_size()))
        for part in torch.split(rows, step):
            sha.update(part.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return node("tensor", printed(value.dtype), printed(list(value.shape)), sha.digest())


def array(value: np.ndarray[Any, Any]) -> bytes:
    """By dtype, shape and bytes. Raises Unreadable for a longdouble, whose bytes are in part anything."""
    if value.dtype.char in "gG":
        raise Unreadable("a float64")
    data = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
    return node("array", encoded(value.dtype.str), printed(list(value.shape)), hashlib.sha256(data).digest())
