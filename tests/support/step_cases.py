"""Random steps: tables with everything a row can have, and the tensors that go with them."""

from __future__ import annotations

import numpy as np
import torch

from ulam_kernels import Table

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
ROWS, CHAINS = 12, 5


def random_table(rng: np.random.Generator, registers: int, rows: int = ROWS) -> Table:
    """Rows with terms missing at random; row 0 is idle."""
    matrix = rng.normal(size=(rows, registers, registers + 3)) * (rng.random((rows, registers, registers + 3)) < 0.7)
    writes = rng.random((rows, registers)) < 0.8
    writes[0] = False
    bound = np.where(rng.random(rows) < 0.5, np.inf, 0.7)
    kx, km = (rng.normal(size=rows) * (rng.random(rows) < 0.8) for _ in range(2))
    lv_m, lv_b, c_next = rng.normal(size=rows) * 0.5, rng.normal(size=rows), rng.normal(size=rows)
    return Table.pack(kx, km, -bound, bound, lv_m, lv_b, c_next, matrix, writes, rng.random(rows) < 0.4)


def one_row(**terms: float) -> Table:
    """A table of one row that writes x; absent terms are 0. Terms: x, D, m, z, kx, km, lo, hi, c_next."""
    column = lambda name, default=0.0: np.array([float(terms.get(name, default))])  # noqa: E731
    matrix = np.array([[[terms.get(name, 0.0) for name in ("x", "D", "m", "z")]]])
    return Table.pack(
        column("kx"),
        column("km"),
        column("lo", -np.inf),
        column("hi", np.inf),
        column("lv_m"),
        column("lv_b"),
        column("c_next", 1.0),
        matrix,
        np.array([[True]]),
        np.array(["lv_m" in terms]),
    )


def random_inputs(rng: np.random.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 31)))
    model_shape = (CHAINS, 2 * shape[0], *shape[1:])
    inputs = {
        "model": torch.randn(model_shape, generator=generator).to(dtype),
        "seed": torch.randint(-(2**63), 2**63 - 1, (CHAINS,), generator=generator),
        "chain": torch.randint(0, 2**63 - 1, (CHAINS,), generator=generator),
        "draw": torch.randint(0, 2**40, (CHAINS,), generator=generator),
    }
    if rng.random() < 0.6:
        inputs["uncond"] = torch.randn(model_shape, generator=generator).to(dtype)
        inputs["guidance"] = torch.tensor([0.0, 1.0, 2.5, -1.0, 0.3])
    if rng.random() < 0.2:
        inputs["noise"] = torch.randn(CHAINS, *shape, generator=generator)
    return inputs
