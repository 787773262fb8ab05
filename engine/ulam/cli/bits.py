"""The bits per dimension that `ulam check` reports: what the data are, binned or continuous, and their bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .. import bounds
from ..conditioning import rows_at
from ..denoiser import Denoiser
from ..estimation.estimator import Inputs

STEPS = 20  # terms of the bound that are evaluated beside L_0
USUAL = 256  # levels of pictures
OFF_LEVEL = 1e-3  # of the distance between two levels


@dataclass(frozen=True)
class Kind:
    """Data on ``bins`` equal levels between ``ends``, or continuous (None); ``chosen``: by an option, or the data."""

    bins: int | None
    ends: tuple[float, float]
    chosen: str

    def __str__(self) -> str:
        lo, hi = self.ends
        return "density of continuous data" if self.bins is None else f"{self.bins} bins from {lo:g} to {hi:g}"


def kind_of(
    x: torch.Tensor, bins: int | None = None, continuous: bool = False, pixels: tuple[float, float] | None = None
) -> Kind:
    """What the examples ``[N, *shape]`` are, as told, or as found: on 256 levels, else on fewer, else continuous.

    pixels: what black and white were to the network, the two ends of the levels (either first). Without them the ends
    are -1 and 1, of data without negative numbers 0 and 1.

    Raises:
        ValueError: both ``bins`` and ``continuous``, or examples that are not on so many levels.
    """
    if bins is not None and continuous:
        raise ValueError(f"bins: got {bins} beside continuous, expected one of them")
    if bins is not None and not 2 <= bins <= 1 << 16:
        raise ValueError(f"bins: got {bins}, expected 2 to 65536 levels")
    ends = (min(pixels), max(pixels)) if pixels else (-1.0 if float(x.min()) < 0 else 0.0, 1.0)
    if continuous:
        return Kind(None, ends, "--continuous")
    values = torch.unique(x.double())
    if bins is None:
        tried = [USUAL, *range(2, USUAL)] if len(values) <= USUAL else []
        found = next((count for count in tried if _on_levels(values, ends, count)), None)
        return Kind(found, ends, "the data")
    if not _on_levels(values, ends, bins):
        raise ValueError(
            f"bins: got {bins} for data that are not on so many equal levels from {ends[0]:g} to {ends[1]:g}, expected "
            "their own count, or --continuous"
        )
    return Kind(bins, ends, "--bins")


def _on_levels(values: torch.Tensor, ends: tuple[float, float], count: int) -> bool:
    places = (values - ends[0]) / (ends[1] - ends[0]) * (count - 1)
    inside = (places > -OFF_LEVEL) & (places < count - 1 + OFF_LEVEL)
    return bool((inside & ((places - places.round()).abs() < OFF_LEVEL)).all())


def bits_per_dim(
    denoiser: Denoiser, x: torch.Tensor, cond: Inputs, kind: Kind, *, noisy: bool, batch: int, seed: int
) -> dict[str, Any]:
    """The DDPM bound of x from L_0 and ``STEPS`` other terms a chain: value and stderr, or why it is left out.

    Binned data have the discretised decoder and variance beta~, D clipped to their ends; continuous data the density of
    a Gaussian and beta, under which the bound comes down to -log p.
    """
    if noisy:
        return {"left_out": "the bound needs clean data"}
    if denoiser.schedule.steps is None:
        return {"left_out": "the bound is of DDPM's steps, and needs a vp schedule"}
    of: dict[str, Any] = {"decoder": "gaussian", "variance": "beta"}
    if kind.bins is not None:
        of = {"bins": kind.bins, "ends": kind.ends, "clip": kind.ends}
    sampled = min(STEPS, denoiser.schedule.steps - 1) or None
    parts = []
    for begin in range(0, len(x), batch):
        at = slice(begin, min(begin + batch, len(x)))
        given = rows_at(cond, at)
        ids = range(at.start, at.stop)
        parts.append(bounds.vlb(denoiser, x[at], given, sampled=sampled, seed=seed, chains=ids, **of).per_chain)
    per_chain = torch.cat(parts)
    error = float(per_chain.std()) / len(per_chain) ** 0.5
    return {"value": float(per_chain.mean()), "stderr": error, "data": str(kind), "chosen_by": kind.chosen}
