"""The fused step, exact and readable: one masked update for each distinct row of the table in the batch.

This is the oracle that every other backend is held against, bit for bit. It trusts its arguments (shapes,
dtypes, devices and ranges are checked once, above the backends) and computes on the host whatever device they
are on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ulam_kernels.reference import noise as noise_v1
from ulam_kernels.reference.arithmetic import RealArray, exp, fma, mul, sub
from ulam_kernels.table import (
    C_NEXT,
    HI,
    IDLE,
    KM,
    KX,
    LEARNED,
    LO,
    LV_B,
    LV_M,
    MATRIX,
    READS_M,
    READS_Z,
    USES_D,
)

UInt64Array = npt.NDArray[np.uint64]
Chains = npt.NDArray[np.intp]


def step(
    state: torch.Tensor,
    coef: torch.Tensor,
    flags: torch.Tensor,
    row: torch.Tensor,
    model: torch.Tensor | None,
    uncond: torch.Tensor | None,
    guidance: torch.Tensor | None,
    seed: torch.Tensor | None,
    chain: torch.Tensor | None,
    draw: torch.Tensor | None,
    noise: torch.Tensor | None,
    net_in: torch.Tensor | None,
) -> None:
    """Execute row ``row[b]`` of the table on chain ``b``, in place on ``state``.

    Per element, each operation rounded once to float32 (float64 state: plain float64 throughout)::

        m      = fma(w, sub(m_cond, m_uncond), m_uncond)   w == 1 is m_cond, w == 0 is m_uncond, untouched
        D      = fma(km, m, mul(kx, r0)), then D < lo ? lo : (D > hi ? hi : D)
        z      = mul(exp(fma(lv_m, v, lv_b)), z)           rows with a learned noise scale
        r_i    = sum of A[i] over r_0.., D, m, z           first present term: mul, others: fma; none: +0
        net_in = mul(c_next, r0)                           of the r0 just stored

    A term whose coefficient is zero is absent: what it multiplies is not read, so its NaN does not spread.

    Args:
        state: ``[R, B, *shape]`` float32, bfloat16, float16 or float64; r0 is the chain's x.
        coef, flags: the table. row: ``[B]`` int64. Idle rows (``flags == 0``) leave state and net_in alone.
        model, uncond: ``[B, *shape]``, or ``[B, 2C, ...]`` for ``shape = [C, ...]``: m first, then v.
        guidance: ``[B]``. seed, chain, draw: ``[B]`` int64 read as uint64.
        noise: ``[B, *shape]`` that takes the place of z. net_in: ``[B, *shape]``, any float dtype.

    Raises:
        ValueError: a row of the batch reads an argument that is None. IndexError: a row outside the table.
            Nothing has been written then.
    """
    registers, batch = state.shape[:2]
    size = state[0, 0].numel() if registers and batch else 0
    if size == 0:
        return
    working = torch.float64 if state.dtype == torch.float64 else torch.float32
    operands = Operands(
        model=_to_host(model, working, batch),
        uncond=_to_host(uncond, working, batch) if guidance is not None else None,
        guidance=_to_host(guidance, working, batch),
        noise=_to_host(noise, working, batch),
        seed=_to_uint64(seed),
        chain=_to_uint64(chain),
        draw=_to_uint64(draw),
        size=size,
    )
    coefficients = coef.to("cpu", working).numpy()
    flag = flags.cpu().numpy()
    index = row.cpu().numpy()
    if index.min() < 0 or index.max() >= len(flag):
        raise IndexError(f"row: got {index.min()} to {index.max()}, expected 0 to {len(flag) - 1}")
    stored = state.cpu()  # the state itself when it is on the host
    current: RealArray = stored.to(working).numpy().reshape(registers, batch, size)

    updates = []
    for number in np.unique(index):
        if flag[number] != IDLE:
            chains = np.flatnonzero(index == number)
            values = _run_row(coefficients[number], int(flag[number]), current[:, chains], operands, chains)
            updates.append((number, chains, values))

    for number, chains, values in updates:
        where = torch.from_numpy(chains)
        for register, value in values.items():
            rounded = torch.from_numpy(value).to(state.dtype).reshape(len(chains), *state.shape[2:])
            stored[register, where] = rounded
        if net_in is not None:
            r0 = stored[0, where].to(working).numpy()
            scaled = torch.from_numpy(mul(coefficients[number, C_NEXT], r0))
            net_in[where.to(net_in.device)] = scaled.to(net_in.dtype).to(net_in.device)
    if stored is not state:
        state.copy_(stored)


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

    def guided(self, chains: Chains) -> RealArray:
        """``m`` ``[chains, size]``: the model's output after guidance."""
        if self.model is None:
            raise ValueError("model: got None, but a row in the batch reads the model's output")
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
            raise ValueError("model: a row with a learned noise scale needs twice the state's channels (m, then v)")
        return self.model[chains, self.size :]

    def normal(self, chains: Chains, dtype: np.dtype[Any]) -> RealArray:
        """``z`` ``[chains, size]``: the noise that was given, else noise-v1 with tag 0."""
        if self.noise is not None:
            return self.noise[chains]
        if self.seed is None or self.chain is None or self.draw is None:
            raise ValueError("seed, chain, draw: a row in the batch reads noise, so they (or noise=) must be given")
        z = noise_v1.normals(self.seed[chains], self.chain[chains], self.draw[chains], tag=0, offset=0, count=self.size)
        return z.astype(dtype)


def _run_row(
    coef: RealArray, flags: int, registers: RealArray, operands: Operands, chains: Chains
) -> dict[int, RealArray]:
    """New values ``[chains, size]`` of the registers the row writes, from old ones ``[R, chains, size]``."""
    count = len(registers)
    m = operands.guided(chains) if flags & READS_M else None
    x0 = _estimate(coef, registers[0], m) if flags & USES_D else None
    z = operands.normal(chains, registers.dtype) if flags & READS_Z else None
    if z is not None and flags & LEARNED:
        z = mul(exp(fma(coef[LV_M], operands.variance(chains), coef[LV_B])), z)
    terms = [*registers, x0, m, z]
    matrix = coef[MATRIX:].reshape(count, count + 3)
    return {i: _combine(matrix[i], terms, like=registers[0]) for i in range(count) if flags >> i & 1}


def _estimate(coef: RealArray, r0: RealArray, m: RealArray | None) -> RealArray:
    """The clipped x0 estimate D. NaN passes both comparisons of the clip and so is not hidden."""
    estimate = _combine(coef[[KX, KM]], [r0, m], like=r0)
    lo, hi = coef[LO], coef[HI]
    return np.where(estimate < lo, lo, np.where(estimate > hi, hi, estimate))


def _combine(factors: RealArray, terms: list[RealArray | None], like: RealArray) -> RealArray:
    """The sum of factor times term over the nonzero factors, in order; every operation rounds once."""
    total: RealArray | None = None
    for factor, term in zip(factors, terms, strict=True):
        if factor == 0 or term is None:  # None only where the flags say that no factor needs it
            continue
        total = mul(factor, term) if total is None else fma(factor, term, total)
    return np.zeros_like(like) if total is None else total


def fill_normal(
    out: torch.Tensor,
    seed: torch.Tensor,
    chain: torch.Tensor,
    draw: torch.Tensor,
    tag: int,
    scale: float,
    offset: int,
) -> None:
    """``out[b, i] = mul(scale, z)`` with z the noise-v1 normal of element ``offset + i`` of chain ``b``.

    ``out`` is ``[B, *shape]`` of any float dtype and layout; ``seed``, ``chain``, ``draw`` are ``[B]`` int64
    read as uint64. The scale is rounded to float32 first, the product to float32 and then to a narrower dtype
    (float64 ``out``: all in float64).
    """
    if out.numel() == 0:
        return
    working = np.float64 if out.dtype == torch.float64 else np.float32
    z = noise_v1.normals(
        *(tensor.cpu().numpy().view(np.uint64) for tensor in (seed, chain, draw)),
        tag=tag,
        offset=offset,
        count=out[0].numel(),
    )
    _store(out, mul(np.asarray(scale, dtype=working), z.astype(working)))


def affine(x: torch.Tensor, m: torch.Tensor, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """``out = fma(b, m, mul(a, x))`` with ``a``, ``b`` per chain ``[B]``; a zero factor's term is not read.

    ``x``, ``m``, ``out`` are ``[B, *shape]`` of any float dtype; computed in float64 where one of them is
    float64, else in float32.
    """
    if out.numel() == 0:
        return
    wide = torch.float64 in (x.dtype, m.dtype, out.dtype)
    working = torch.float64 if wide else torch.float32
    batch = len(out)
    terms = [_to_host(x, working, batch), _to_host(m, working, batch)]
    factors = torch.stack([a, b], dim=1).to("cpu", working).numpy()
    rows = [
        _combine(
            factors[i],
            [None if t is None else t[i] for t in terms],
            like=np.zeros(out[0].numel(), factors.dtype),
        )
        for i in range(batch)
    ]
    _store(out, np.stack(rows))


def _store(out: torch.Tensor, values: RealArray) -> None:
    """Round ``values`` ``[B, n]`` once to the dtype of ``out`` and write them whatever its layout is."""
    out.copy_(torch.from_numpy(values).to(out.dtype).reshape(out.shape))


def _to_host(tensor: torch.Tensor | None, dtype: torch.dtype, batch: int) -> RealArray | None:
    """``[batch, n]`` on the host, elements in logical order, widened exactly."""
    if tensor is None:
        return None
    widened: RealArray = tensor.detach().to("cpu", dtype).reshape(batch, -1).numpy()
    return widened


def _to_uint64(tensor: torch.Tensor | None) -> UInt64Array | None:
    return None if tensor is None else tensor.cpu().numpy().view(np.uint64)
