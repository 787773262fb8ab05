"""What is printed of a result, a denoiser or a job fits a screen: at most ten lines."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from typing import Any

import numpy as np
import torch

import ulam
from ulam_kernels.reprs import LINES, WIDTH, short_repr


def public_dataclasses() -> list[type]:
    """Of the modules that users import from."""
    found = {}
    for name in dir(ulam):
        value = getattr(ulam, name)
        if inspect.isclass(value) and dataclasses.is_dataclass(value):
            found[value] = None
    for info in pkgutil.iter_modules(ulam.__path__):
        if info.name.startswith("_") or info.name in ("cli", "training", "integrations"):
            continue
        module = importlib.import_module(f"ulam.{info.name}")
        for name in getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")]):
            value = getattr(module, name, None)
            if inspect.isclass(value) and dataclasses.is_dataclass(value) and value.__module__.startswith("ulam."):
                found[value] = None
    return list(found)


def holds_much(cls: type) -> bool:
    types = " ".join(str(field.type) for field in dataclasses.fields(cls) if field.repr)
    return any(word in types for word in ("Tensor", "Array", "Module", "Denoiser"))


def test_public_classes_that_hold_tensors_have_short_reprs() -> None:
    classes = public_dataclasses()
    assert {ulam.Denoiser, ulam.Result, ulam.mcmc.Chains} <= set(classes)
    long = [cls for cls in classes if holds_much(cls) and hasattr(cls.__repr__, "__wrapped__")]  # the dataclass's own
    assert not long


@dataclasses.dataclass
class Much:
    x: torch.Tensor
    more: Any = None
    rate: float = 0.5

    __repr__ = short_repr


def test_reprs_tell_shapes_and_leave_out_defaults() -> None:
    assert repr(Much(torch.zeros(3, 2))) == "Much(x=float32 [3, 2])"
    assert repr(Much(torch.tensor(2), rate=0.25)) == "Much(x=2, rate=0.25)"
    assert repr(Much(np.zeros(4), {"y": [torch.zeros(1)] * 9})).endswith("... 9 in all]})")
    assert (
        repr(Much(torch.zeros(1, device="meta"), torch.nn.Linear(1, 1)))
        == "Much(x=float32 [1] on meta, more=<Linear of 2 parameters>)"
    )
    assert repr(Much(torch.zeros(1), (1,))) == "Much(x=float32 [1], more=(1,))"
    assert repr(Much(torch.zeros(1), public_dataclasses)) == "Much(x=float32 [1], more=public_dataclasses)"
    assert repr(Much(torch.zeros(1), Much(torch.zeros(1)))) == "Much(x=float32 [1], more=Much(x=float32 [1]))"


def test_no_repr_is_longer_than_a_screen() -> None:
    longest = dataclasses.make_dataclass(
        "Longest", [(f"field_{i}", Any) for i in range(200)], namespace={"__repr__": short_repr}
    )
    lines = repr(longest(*["x" * 100] * 200)).splitlines()
    assert len(lines) == LINES and max(map(len, lines)) <= WIDTH and lines[-1] == "    ...)"
