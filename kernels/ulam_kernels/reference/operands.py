"""What a row may read, on the host in the working precision, and how results go back to a tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ulam_kernels.reference import noise as noise_v1
from ulam_kernels.reference.arithmetic import Real, RealArray, fma, mul, sub
from ulam_kernels.table import KM, KX

UInt64Array = npt.NDArray[np.uint64]
Chains = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Operands:
    """What rows may read, on the host: ``[B, n]`` in the working precision, or None where not given."""

    model: RealArray | None
    uncond: RealArray | None
    guidance: RealArray | None
    noise: RealArray | None
    seed: UInt64Array | None
    chain: UInt64Array | None
    draw: UInt64Array | None
    size: int

    @classmethod
    def on_host(
        cls,
        state: torch.Tensor,
        model: torch.Tensor | None,
        uncond: torch.Tensor | None,
        guidance: torch.Tensor | None,
        seed: torch.Tensor | None,
        chain: torch.Tensor | None,
        draw: torch.Tensor | None,
        noise: torch.Tensor | None,
    ) -> Operands:
        """The operands of a ``state`` ``[R, B, *shape]`` that has elements; float64 where the state is."""
        working, batch = working_dtype(state), state.shape[1]
        return cls(
            model=to_host(model, working, batch),
            uncond=to_host(uncond, working, batch) if guidance is not None else None,
            guidance=to_host(guidance, working, batch),
            noise=to_host(noise, working, batch),
            seed=to_uint64(seed),
            chain=to_uint64(chain),
            draw=to_uint64(draw),
            size=state[0, 0].numel(),
        )

    def guided(self, chains: Chains) -> RealArray:
        """``m`` ``[chains, size]``: the model's output after guidance."""
        if self.model is None:
            raise ValueError("model: got None, expected the network's output, which a row of the batch reads")
        conditional = self.model[chains, : self.size]
        if self.uncond is None or self.guidance is None:
            return conditional
        unconditional = self.uncond[chains, : self.size]
        weight = self.guidance[chains]
        mixed = fma(weight, sub(conditional, unconditional), unconditional)
        return np.where(weight == 1, conditional, np.where(weight == 0, unconditional, mixed))

    def variance(self, chains: Chains) -> RealArray:
        """``v`` ``[chains, size]``: the second half of the conditional output."""
        if self.model is None or self.model.shape[1] != 2 * self.size:
            came = "None" if self.model is None else "as many channels as the state"
            why = "a row of the batch has a learned variance"
            raise ValueError(f"model: got {came}, expected twice as many (m, then v): {why}")
        return self.model[chains, self.size :]

    def normal(self, chains: Chains, dtype: np.dtype[Any]) -> RealArray:
        """``z`` ``[chains, size]``: the noise that was given, else noise-v1 with tag 0."""
        if self.noise is not None:
            return self.noise[chains]
        if self.seed is None or self.chain is None or self.draw is None:
            raise ValueError(
                "seed, chain, draw: got None, expected int64 tensors [B] (or noise): a row of the batch reads noise"
            )
        z = noise_v1.normals(self.seed[chains], self.chain[chains], self.draw[chains], tag=0, offset=0, count=self.size)
        return z.astype(dtype)


def estimate(coef: RealArray, r0: RealArray, m: RealArray | None) -> RealArray:
    """The x0 estimate before any clip: ``fma(km, m, mul(kx, r0))``."""
    return combine(coef[[KX, KM]], [r0, m], like=r0)


def combine(factors: RealArray, terms: list[RealArray | None], like: RealArray) -> RealArray:
    """The sum of factor times term over the nonzero factors, in order; every operation rounds once."""
    total: RealArray | None = None
    for factor, term in zip(factors, terms, strict=True):
        if factor == 0 or term is None:  # None only where the flags say that no factor needs it
            continue
        total = mul(factor, term) if total is None else fma(factor, term, total)
    return np.zeros_like(like) if total is None else total


def clip(x: RealArray, lo: Real, hi: Real) -> RealArray:
    """``x < lo ? lo : (x > hi ? hi : x)``: NaN passes both comparisons and so is not hidden."""
    return np.where(x < lo, lo, np.where(x > hi, hi, x))


def rows_of(coef: torch.Tensor, flags: torch.Tensor, row: torch.Tensor) -> tuple[RealArray, Any, Any]:
    """(coef, flags, row) on the host.

    Raises:
        IndexError: a row outside the table.
    """
    flag, index = flags.cpu().numpy(), row.cpu().numpy()
    if index.min() < 0 or index.max() >= len(flag):
        raise IndexError(f"row: got {index.min()} to {index.max()}, expected 0 to {len(flag) - 1}")
    return coef.cpu().numpy(), flag, index


def rows_inside(row: torch.Tensor, rows: int) -> Any:
    """``row`` ``[B]`` on the host.

    Raises:
        IndexError: one outside a table of so many rows.
    """
    index = row.cpu().numpy()
    outside = np.flatnonzero((index < 0) | (index >= rows))
    if outside.size:
        b = outside[0]
        raise IndexError(f"row: got {index[b]} for chain {b}, expected a row of the table of {rows}")
    return index


def working_dtype(tensor: torch.Tensor) -> torch.dtype:
    """float64 is computed in float64, every other type in float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def store(out: torch.Tensor, values: RealArray) -> None:
    """Round ``values`` ``[B, n]`` once to the dtype of ``out`` and write them whatever its layout is."""
    out.copy_(torch.from_numpy(values).to(out.dtype).reshape(out.shape))


def to_host(tensor: torch.Tensor | None, dtype: torch.dtype, batch: int) -> RealArray | None:
    """``[batch, n]`` on the host, elements in logical order, widened exactly."""
    if tensor is None:
        return None
    widened: RealArray = tensor.detach().to("cpu", dtype).reshape(batch, -1).numpy()
    return widened


def to_uint64(tensor: torch.Tensor | None) -> UInt64Array | None:
    return None if tensor is None else tensor.cpu().numpy().view(np.uint64)
