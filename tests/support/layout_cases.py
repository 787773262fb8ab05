"""Random steps whose model output and network input have their channels innermost in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ulam_kernels import Table

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# Channels 1 to 5 and 8 and more than a block's threads; numbers of pixels that four divides or not.
SHAPES = [(1, 6, 6), (2, 3, 5), (3, 8, 8), (3, 7, 9), (4, 12, 10), (5, 2, 6), (8, 4, 4), (8, 1, 3), (66, 2, 2),
          (3, 2, 4, 6), (2, 3, 3, 3)]  # fmt: skip
LAYOUTS = [(True, True), (True, False), (False, True)]  # of the model's output, of the network's input: innermost?


def random_table(rng: np.random.Generator, registers: int, rows: int = 12, learns: bool = True) -> Table:
    """Rows with all that a row can have, present and absent, a few with a reduction; row 0 is idle."""
    size = (rows, registers, registers + 3)
    matrix = rng.normal(size=size) * (rng.random(size) < 0.7)
    writes = rng.random((rows, registers)) < 0.8
    writes[0] = False
    kx, km, c_next = (rng.normal(size=rows) * (rng.random(rows) < 0.9) for _ in range(3))
    learned, kind = rng.random(rows) < 0.4 * learns, rng.integers(0, 6, rows)
    threshold, normalise = kind == 1, (kind == 2) & ~learned
    bound = np.where(rng.random(rows) < 0.5, np.inf, 0.7)
    bound[normalise] = np.inf
    lo, hi = np.where(threshold, 0.9, -bound), np.where(threshold, np.inf, bound)
    lv_m, lv_b = rng.normal(size=rows) * 0.5, rng.normal(size=rows) * 0.1
    flags = {"threshold": threshold, "normalise": normalise}
    return Table.pack(kx, km, lo, hi, lv_m, lv_b, c_next, matrix, writes, learned, **flags)


def innermost(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers with the channels innermost in memory."""
    return tensor.to(memory_format=torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d)


def normal(rng: np.random.Generator, size: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(rng.normal(size=size)).to(dtype)


def random_case(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    chains: int,
    types: tuple[torch.dtype, ...],
    registers: int,
    learns: bool = True,
) -> tuple[torch.Tensor, Table, torch.Tensor, dict[str, Any]]:
    """(state, table, row, operands), all contiguous; guidance, given noise and a source in some of them.

    ``learns``: the model's output holds v behind m.
    """
    table, doubled = random_table(rng, registers, learns=learns), (chains, (1 + learns) * shape[0], *shape[1:])
    ids = {name: torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, chains)) for name in ("seed", "chain", "draw")}
    ids["draw"][::2] &= 0xFFFFFFFF
    given: dict[str, Any] = {**ids, "model": normal(rng, doubled, types[1])}
    if rng.random() < 0.6:
        given["uncond"] = normal(rng, doubled, types[1])
        given["guidance"] = torch.from_numpy(rng.choice([0.0, 1.0, 2.5, -1.0], chains)).float()
    if rng.random() < 0.3:
        given["noise"] = normal(rng, (chains, *shape), torch.float32)
    if rng.random() < 0.3:
        given["source"] = normal(rng, (chains, *shape), types[0])
    hi, scale = rng.uniform(0.2, 2, (2, chains))
    given["scales"] = torch.from_numpy(np.stack([-hi, hi, scale, np.sqrt(scale)], axis=1)).float()
    given["net_in"] = torch.full((chains, *shape), float("nan"), dtype=types[2])
    row = torch.from_numpy(rng.integers(0, len(table), chains))
    return normal(rng, (registers, chains, *shape), types[0]), table, row, given


def laid_out(given: dict[str, Any], model_last: bool, net_last: bool) -> dict[str, Any]:
    """The operands of a case, with these layouts; net_in anew."""
    last = {"model": model_last, "uncond": model_last, "net_in": net_last}
    return {name: innermost(x) if last.get(name) else x.clone() for name, x in given.items()}


def cases(seed: int) -> Iterator[tuple[tuple[int, ...], int, tuple[torch.dtype, ...]]]:
    """(shape, registers, dtypes of state, model and net_in): every shape, with types and registers in turn."""
    types = list(itertools.product(FLOATS, repeat=3))
    for k, shape in enumerate(SHAPES):
        yield shape, 1 + (seed + k) % 5, types[(7 * seed + 5 * k) % len(types)]


def arguments(state: torch.Tensor, table: Table, row: torch.Tensor, given: dict[str, Any]) -> dict[str, Any]:
    """Those of a backend's ``step``."""
    missing = dict.fromkeys(("uncond", "guidance", "noise", "source"))
    return {"state": state, "coef": table.coef, "flags": table.flags, "row": row, **missing, **given}
