"""The noise of a step: what diffusers would draw from the generator, or ulam's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

import ulam_kernels

from ...arguments import chain_ids, seed_int64

Generators = torch.Generator | list[torch.Generator] | None
NOISES = ("torch", "noise-v1")


def drawn(
    out: torch.Tensor | None,
    shape: torch.Size,
    generator: Generators,
    device: torch.device,
    dtype: torch.dtype,
    wide: torch.dtype,
) -> torch.Tensor:
    """Standard normal noise that diffusers would draw in `dtype`, as `wide`; written to `out` where that fits."""
    check_generators(generator, shape[0])
    cpu = device.type == "cpu" and not isinstance(generator, list)
    if cpu and dtype == wide == torch.float32:
        if out is None or out.shape != shape or out.device != device:
            out = torch.empty(shape)
        return ulam_kernels.torch_normal(out, generator)  # type: ignore[arg-type]
    return randn_tensor(shape, generator=generator, device=device, dtype=dtype).to(wide)  # type: ignore[no-any-return]


def check_generators(generator: Any, chains: int) -> None:
    """Raises TypeError for what is no generator, ValueError for a list that has neither one nor one a sample."""
    given = generator if isinstance(generator, list) else [generator]
    if wrong := [one for one in given if not (one is None or isinstance(one, torch.Generator))]:
        raise TypeError(f"generator: got a {type(wrong[0]).__name__}, expected a torch.Generator or a list of them")
    if isinstance(generator, list) and len(generator) != 1 and len(generator) < chains:
        raise ValueError(f"generator: got {len(generator)} generators, expected one, or {chains}, one a sample")


@dataclass(frozen=True)
class Streams:
    """The seed and the chain ids of noise-v1; None stands for 0, 1, ..."""

    seed: int
    chains: torch.Tensor | None

    @classmethod
    def of(cls, seed: object, chains: Any) -> Streams:
        """The streams of these arguments. Raises TypeError or ValueError for an invalid one."""
        return cls(seed_int64(seed), None if chains is None else chain_ids(chains))  # type: ignore[arg-type]

    def operands(self, chains: int, device: torch.device) -> dict[str, torch.Tensor]:
        """`seed` and `chain` [B] of the fused step. Raises ValueError unless there is one id a sample."""
        ids = torch.arange(chains) if self.chains is None else self.chains
        if len(ids) != chains:
            raise ValueError(f"chains: got {len(ids)} ids for {chains} samples, expected one a sample of the batch")
        return {"seed": torch.full((chains,), self.seed, device=device), "chain": ids.to(device)}
