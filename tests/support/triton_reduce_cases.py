"""Random arguments of the Triton backend's reductions and blends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import blend_cases
from bit_comparison import same_bits
from reduce_cases import mixed_table, random_inputs

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
Case = dict[str, Any]
# chains, elements, state, model, guided, noise given
REDUCTIONS = [
    (24, 1, FP32, FP32, False, False), (24, 100, BF16, FP32, True, False), (24, 128, FP32, FP16, True, True),
    (24, 129, FP16, FP16, False, False), (24, 2048, FP32, BF16, True, False), (12, 3007, FP32, FP32, True, True),
    (6, 12_288, FP32, FP32, True, True), (4, 16_381, BF16, BF16, False, False), (3, 17_000, FP32, BF16, True, False),
]  # fmt: skip
# chains, elements, state, network input, noise given
BLENDS = [
    (5, 1, FP32, None, False), (300, 34, BF16, FP32, False), (9, 512, FP32, FP16, True), (7, 1027, FP16, None, False),
    (9, 11_120, FP32, FP32, False), (3, 2048, BF16, BF16, True),
]  # fmt: skip


def reduction(rng: np.random.Generator, chains: int, n: int, state: torch.dtype, model: torch.dtype, guided: bool,
              explicit: bool) -> Case:  # fmt: skip
    """Random arguments of a backend's ``reduce``, every kind of row among them."""
    table, some = mixed_table(2), torch.tensor([4, 8, 3, 9, 10, 6])
    row = torch.from_numpy(rng.permutation(np.arange(chains) % len(table))) if chains > len(some) else some[:chains]
    inputs = random_inputs(rng, (1, n), model, chains, guided, explicit)
    names = ("model", "uncond", "guidance", "seed", "chain", "draw", "noise")
    values = torch.from_numpy(2 * rng.normal(size=(2, chains, 1, n))).to(state)
    return {
        "state": values, "coef": table.coef, "flags": table.flags,
        "row": row,
        **{name: inputs.get(name) for name in names}, "out": torch.full((chains, 4), math.nan),
    }  # fmt: skip


def blending(rng: np.random.Generator, chains: int, n: int, state: torch.dtype, net: torch.dtype | None,
             explicit: bool) -> Case:  # fmt: skip
    """Random arguments of a backend's ``blend``."""
    inputs = blend_cases.random_inputs(rng, (n,), chains)
    values = torch.from_numpy(rng.normal(size=(chains, n))).to(state)
    return {
        "x": values, **inputs, "noise": torch.from_numpy(rng.normal(size=(chains, n))).float() if explicit else None,
        "net_in": None if net is None else torch.full((chains, n), math.nan, dtype=net),
        "c_next": None if net is None else torch.linspace(-2, 2, chains),
    }  # fmt: skip


def agrees(operation: Callable[..., None], of_the_cpu: Callable[..., None], case: Case, *written: str) -> bool:
    """Whether the operation writes the bits of the CPU."""
    expected = {name: value.clone() if torch.is_tensor(value) else value for name, value in case.items()}
    of_the_cpu(**expected)
    operation(**case)
    return all(same_bits(case[name], expected[name]) for name in written)


def by_row(rng: np.random.Generator, case: tuple[Any, ...]) -> dict[str, Any]:
    """A blending whose coefficients are in tables."""
    given = blending(rng, *case)
    given |= {name: torch.from_numpy(rng.normal(size=9)).float() for name in ("a", "b", "c_next")}
    given["a"][1::3], given["b"][1::2] = 0, 0
    return given | {"row": torch.from_numpy(rng.integers(0, 9, case[0])), "stage": 3}
