"""Random blends with a known image."""

from __future__ import annotations

import numpy as np
import torch

CHAINS = 6
A, B = torch.tensor([0.0, 0.9, 0.9, 0.0, 1.0, -0.3]), torch.tensor([0.0, 0.0, 0.4, 2.0, 1e-3, 0.0])


def random_inputs(rng: np.random.Generator, shape: tuple[int, ...], chains: int = CHAINS) -> dict[str, torch.Tensor]:
    """Masks of 0, 1 and values between; the second chain's known image has NaN where the mask is 0."""
    mask = rng.choice([0.0, 1.0, 0.25, 0.7], size=(chains, *shape)).astype(np.float32)
    known = rng.normal(size=(chains, *shape)).astype(np.float32)
    known[1][mask[1] == 0] = np.nan
    ids = {name: torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, chains)) for name in ("seed", "chain", "draw")}
    factors = {name: value.repeat(-(-chains // CHAINS))[:chains].contiguous() for name, value in (("a", A), ("b", B))}
    return {"known": torch.from_numpy(known), "mask": torch.from_numpy(mask), **factors, **ids}
