"""Random arguments of the Triton backend, and the ways in which its step is compiled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ulam_kernels import Table

ARCHITECTURES = (80, 90, 100)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
Case = dict[str, Any]


def random_table(
    rng: np.random.Generator, registers: int, learned: bool, scaled: bool = False, rows: int = 12
) -> Table:
    """Rows with terms missing at random; row 0 is idle; ``scaled`` gives some of them a reduction."""
    shape = (rows, registers, registers + 3)
    matrix = rng.normal(size=shape) * (rng.random(shape) < 0.7)
    writes = rng.random((rows, registers)) < 0.8
    writes[0] = False
    bound = np.where(rng.random(rows) < 0.5, np.inf, 0.7)
    kx, km = (rng.normal(size=rows) * (rng.random(rows) < 0.8) for _ in range(2))
    lv_m, lv_b, c_next = rng.normal(size=rows) * 0.5, rng.normal(size=rows), rng.normal(size=rows)
    learns = (rng.random(rows) < 0.4) & learned
    kind = rng.integers(0, 3, rows) * scaled
    threshold, normalise = kind == 1, (kind == 2) & ~learns
    bound[normalise] = np.inf
    lo, hi = np.where(threshold, 0.9, -bound), np.where(threshold, np.inf, bound)
    flags = {"threshold": threshold, "normalise": normalise}
    return Table.pack(kx, km, lo, hi, lv_m, lv_b, c_next, matrix, writes, learns, **flags)


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    values = torch.from_numpy(rng.normal(size=shape)).to(dtype)
    values.view(-1)[: values.numel() // 50] = 0
    return values


def random_scales(rng: np.random.Generator, chains: int) -> torch.Tensor:
    """(lo, hi, D_scale, z_scale) ``[chains, 4]``, as a reduction leaves them."""
    hi, scale = rng.uniform(0.2, 2, (2, chains))
    return torch.from_numpy(np.stack([-hi, hi, scale, np.sqrt(scale)], axis=1)).float()


@dataclass(frozen=True)
class Variant:
    """One way in which the step is compiled."""

    registers: int = 1
    types: tuple[torch.dtype, torch.dtype, torch.dtype] = (torch.float32,) * 3  # state, model, net_in
    guided: bool = False
    learned: bool = False
    net_in: bool = False
    noise: str = "generated"  # or "given"
    scaled: bool = False
    source: bool = False

    def __str__(self) -> str:
        types = [str(dtype).removeprefix("torch.") for dtype in dict.fromkeys(self.types)]
        options = [name for name in ("guided", "learned", "net_in", "scaled", "source") if getattr(self, name)]
        return "-".join([f"R{self.registers}", *types, *options, f"noise_{self.noise}"])

    def case(self, rng: np.random.Generator, chains: int, n: int) -> Case:
        """Random arguments of a backend's ``step``."""
        table = random_table(rng, self.registers, self.learned, self.scaled)
        shape = (chains, 2 if self.learned else 1, n)
        ids = {name: torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, chains)) for name in ("seed", "chain", "draw")}
        ids["draw"][::3] &= 0xFFFFFFFF
        ids["draw"][1::3] &= 2**40 - 1
        weights = torch.tensor([0.0, 1.0, 2.5, -1.0]).repeat(-(-chains // 4))[:chains].contiguous()
        given = ids if self.noise == "generated" else {}
        return {
            "state": normal(rng, (self.registers, chains, 1, n), self.types[0]),
            "coef": table.coef,
            "flags": table.flags,
            "row": torch.from_numpy(rng.integers(0, len(table), chains)),
            "model": normal(rng, shape, self.types[1]),
            "uncond": normal(rng, shape, self.types[1]) if self.guided else None,
            "guidance": weights if self.guided else None,
            **{name: given.get(name) for name in ("seed", "chain", "draw")},
            "noise": normal(rng, (chains, 1, n), torch.float32) if self.noise == "given" else None,
            "net_in": torch.full((chains, 1, n), float("nan"), dtype=self.types[2]) if self.net_in else None,
            "scales": random_scales(rng, chains) if self.scaled else None,
            "source": normal(rng, (chains, 1, n), self.types[0]) if self.source else None,
        }


SAME = {dtype: (dtype,) * 3 for dtype in FLOATS}
MIXED = (torch.float32, torch.bfloat16, torch.float16)
PLAIN = [Variant(types=SAME[dtype]) for dtype in FLOATS]
VARIANTS = [
    *PLAIN,
    Variant(types=MIXED, net_in=True),
    Variant(noise="given", net_in=True),
    *(Variant(registers, guided=True, learned=True, net_in=True) for registers in range(1, 6)),
    *(Variant(registers, SAME[torch.bfloat16], guided=True, learned=True, net_in=True) for registers in (1, 5)),
    Variant(3, SAME[torch.float16], guided=True),
    Variant(5, MIXED),
    Variant(scaled=True),
    Variant(noise="given", source=True),
    Variant(3, MIXED, net_in=True, source=True),
    Variant(2, MIXED, guided=True, learned=True, net_in=True, noise="given", scaled=True),
]


def copy_of(case: Case) -> Case:
    return {name: value.clone() if torch.is_tensor(value) else value for name, value in case.items()}


def fill_case(rng: np.random.Generator, chains: int, n: int, dtype: torch.dtype, **options: Any) -> Case:
    ids = {name: torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, chains)) for name in ("seed", "chain", "draw")}
    ids["draw"][::2] &= 0xFFFFFFFF
    out = torch.full((chains, n), float("nan"), dtype=dtype)
    return {"out": out, **ids, **({"tag": 0, "scale": 1.0, "offset": 0} | options)}
