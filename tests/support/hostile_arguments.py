"""What callers pass by mistake in place of one argument of a valid call, and what must happen then."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

Given = dict[str, Any]
# Never a crash, nor an error raised by another library.
RAISED = (TypeError, ValueError, IndexError, OverflowError, RuntimeError, NotImplementedError)


def others() -> dict[str, Any]:
    """Values of any type. Some are valid for some arguments."""
    return {
        "None": None, "str": "x", "lines": "a\nb", "empty str": "", "bytes": b"x", "list": [1.0], "empty list": [],
        "dict": {"a": 1}, "object": object(), "nan": math.nan, "inf": math.inf, "-inf": -math.inf, "minus one": -1,
        "minus half": -0.5, "half": 0.5, "2^63": 2**63, "1e300": 1e300, "10^400": 10**400, "-10^400": -(10**400),
        "True": True, "complex": 1j, "NumPy complex": np.complex64(1), "complex array": np.ones(2) * 1j,
        "NumPy number": np.float32(0.5), "array": np.ones(2), "0-dim": torch.tensor(1.0),
        "0-dim int": torch.tensor(1), "empty tensor": torch.empty(0), "type": int, "nan tensor": torch.tensor(math.nan),
    }  # fmt: skip


def changed(x: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of another type, shape or kind."""
    for dtype in (torch.complex64, torch.bool, torch.int64, torch.int32, torch.float64, torch.float16, torch.float32):
        if dtype != x.dtype:
            yield str(dtype), x.to(dtype)
    yield "one dimension more", x[None].clone()
    yield "one number", x.flatten()[:1].sum() if x.numel() else x.sum()
    if x.dim():
        yield "one fewer", x[1:].clone()
        yield "one more", torch.cat([x, x[:1]])
        yield "none", x[:0].clone()
    if x.dim() > 1:
        yield "flat", x.flatten().clone()
    yield "meta", x.to("meta")
    yield "fake", FakeTensorMode().from_tensor(x)
    yield "sparse", x.to_sparse()
    if x.is_floating_point():
        yield "requires grad", x.clone().requires_grad_()
        yield "a parameter", torch.nn.Parameter(x.clone())


def same_numbers(x: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors with the values of x in other memory layouts."""
    if x.dim():
        spread = torch.stack([x, x], -1).flatten(-2)
        yield "every second", spread[..., ::2]
    if x.dim() > 1:
        yield "transposed", x.transpose(0, -1).contiguous().transpose(0, -1)
    if x.dtype != torch.bool:
        yield "negative bit", torch._neg_view(-x)
    if x.dtype in (torch.float32, torch.float64):
        yield "imaginary part of a conjugate", torch.complex(torch.zeros_like(x), -x).conj().imag
    if x.dim() and len(x) and bool((x == x[:1]).all()):
        yield "expanded", x[:1].expand(x.shape)


def as_plain(x: torch.Tensor) -> torch.Tensor:
    return x.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)


def copied(given: Given) -> Given:
    return {name: x.clone() if type(x) is torch.Tensor else x for name, x in given.items()}


def bits(tree: Any) -> list[Any]:
    """What to compare: a call's result, or its arguments, whatever they are."""
    leaves = [x for x in tree_leaves(tree) if type(x) is torch.Tensor and x.layout is torch.strided and not x.is_meta]
    return [as_plain(x.detach()).view(-1).view(torch.uint8) for x in leaves]


def check_raised(error: BaseException, names: tuple[str, ...], what: str) -> None:
    """The message must be one line of the form NAME: got X, expected Y, with the name of an argument."""
    message = str(error)
    assert type(error) in RAISED, f"{what}: raised {type(error).__name__}: {message}"
    assert "\n" not in message and len(message) < 400, f"{what}: {message}"
    front = re.match(r"[\w, ]+?(?=(\[[^:]*\])?: got .*, expected .)", message)
    assert front and set(front[0].split(", ")) <= set(names), f"{what}: {type(error).__name__}: {message}"


def trials(given: Given, name: str) -> Iterator[tuple[str, Any, Any]]:
    """What replaces the argument, by name, and a plain tensor with the same numbers where there is one."""
    for label, value in others().items():
        yield label, value, None
    x = given[name]
    if isinstance(x, torch.Tensor):
        for label, value in changed(x):
            yield label, value, None
        for label, value in same_numbers(x):
            yield label, value, as_plain(value)
        for other, y in given.items():
            if other != name and isinstance(y, torch.Tensor) and (y.shape, y.dtype) == (x.shape, x.dtype):
                yield f"memory of {other}", y, y.clone()


def failures(call: Callable[..., Any], make: Callable[[], Given], name: str, extra: tuple[str, ...]) -> list[str]:
    """What goes wrong where one argument is replaced."""
    found = []
    names = (*make(), *extra)
    for label, value, plain in trials(make(), name):
        given = make()
        if label.startswith("memory of "):
            given[name] = given[label.removeprefix("memory of ")]
        else:
            given[name] = value
        before, what = bits(given), f"{name} = {label}"
        try:
            result = call(**given)
        except Exception as error:
            try:
                check_raised(error, names, what)
                assert all(map(torch.equal, bits(given), before)), f"{what}: refused, but an argument has changed"
            except AssertionError as wrong:
                found.append(str(wrong).splitlines()[0])
            continue
        if plain is not None:
            apart = make() | {name: plain}
            expected = bits(call(**apart)), bits({k: v for k, v in apart.items() if k != name})
            ours = bits(result), bits({k: v for k, v in given.items() if k != name})
            shared = label.startswith("memory of ")
            same = all(map(torch.equal, ours[0], expected[0]))
            if not same or not (shared or all(map(torch.equal, ours[1], expected[1]))):
                found.append(f"{what}: gave other numbers than a plain tensor")
    return found
