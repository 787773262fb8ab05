"""The fused step, exact and readable: one masked update for each distinct row of the table in the batch.

This is the oracle that every other backend is held against, bit for bit. It trusts its arguments (shapes,
dtypes, devices and ranges are checked once, above the backends) and computes on the host whatever device they
are on.
"""

from __future__ import annotations

import numpy as np
import torch

from ulam_kernels.reference.arithmetic import RealArray, exp, fma, mul
from ulam_kernels.reference.operands import Chains, Operands, clip, combine, estimate, rows_of, to_host, working_dtype
from ulam_kernels.reference.squares import with_noise
from ulam_kernels.table import (
    C_NEXT,
    HI,
    IDLE,
    LEARNED,
    LO,
    LV_B,
    LV_M,
    MATRIX,
    NORMALISE,
    READS_M,
    READS_Z,
    THRESHOLD,
    USES_D,
)


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
    scales: torch.Tensor | None = None,
    source: torch.Tensor | None = None,
    squares: torch.Tensor | None = None,
) -> None:
    """Execute row ``row[b]`` of the table on chain ``b``, in place on ``state``.

    Per element, each operation rounded once to float32 (float64 state: plain float64 throughout)::

        m      = fma(w, sub(m_cond, m_uncond), m_uncond)   w == 1 is m_cond, w == 0 is m_uncond, untouched
        D      = fma(km, m, mul(kx, r0)), then D < lo ? lo : (D > hi ? hi : D)
        z      = mul(exp(fma(lv_m, v, lv_b)), z)           rows with a learned noise scale
        D      = mul(D_scale, D), z = mul(z_scale, z)      rows with a reduction: lo, hi too are of the chain; z is
                                                           scaled where it normalises
        r_i    = sum of A[i] over r_0.., D, m, z           first present term: mul, others: fma; none: +0
        net_in = mul(c_next, r0)                           of the r0 just stored

    A term whose coefficient is zero is absent: what it multiplies is not read, so its NaN does not spread.

    Args:
        state: ``[R, B, *shape]`` float32, bfloat16, float16 or float64; r0 is the chain's x.
        coef, flags: the table. row: ``[B]`` int64. Idle rows (``flags == 0``) leave state and net_in alone.
        model, uncond: ``[B, *shape]``, or ``[B, 2C, ...]`` for ``shape = [C, ...]``: m first, then v.
        guidance: ``[B]``. seed, chain, draw: ``[B]`` int64 read as uint64.
        noise: ``[B, *shape]`` that takes the place of z. net_in: ``[B, *shape]``, any float dtype.
        scales: ``[B, 4]`` of (lo, hi, D_scale, z_scale). source: ``[B, *shape]``, r0's old value where given.
        squares: ``[B]`` int64, to which those of the noise are added.

    Raises:
        ValueError: a row of the batch reads an argument that is None. IndexError: a row outside the table.
            Nothing has been written then.
    """
    if state.numel() == 0:
        return
    registers, batch = state.shape[:2]
    working = working_dtype(state)
    operands = Operands.on_host(state, model, uncond, guidance, seed, chain, draw, noise)
    coefficients, flag, index = rows_of(coef, flags, row)
    stored = state.cpu()  # the state itself when it is on the host
    current: RealArray = stored.to(working).numpy().reshape(registers, batch, -1)
    if source is not None:
        current = np.concatenate([source.cpu().to(working).numpy().reshape(1, batch, -1), current[1:]])
    bounds = to_host(scales, working, batch)

    updates = []
    for number in np.unique(index):
        if flag[number] != IDLE:
            chains = np.flatnonzero(index == number)
            scale = None if bounds is None else bounds[chains]
            row_flags = int(flag[number])
            values = _run_row(coefficients[number], row_flags, current[:, chains], operands, chains, scale)
            updates.append((number, chains, values))
    if squares is not None:
        squares.copy_(with_noise(squares, operands, flag[index]))

    for number, chains, values in updates:
        where, r0 = torch.from_numpy(chains), current[0, chains]
        for register, value in values.items():
            rounded = torch.from_numpy(value).to(state.dtype).reshape(len(chains), *state.shape[2:])
            stored[register, where] = rounded
            r0 = rounded.to(working).numpy() if register == 0 else r0
        if net_in is not None:
            scaled = torch.from_numpy(mul(coefficients[number, C_NEXT], r0)).reshape(len(chains), *state.shape[2:])
            net_in[where.to(net_in.device)] = scaled.to(net_in.dtype).to(net_in.device)
    if stored is not state:
        state.copy_(stored)


def _run_row(
    coef: RealArray, flags: int, registers: RealArray, operands: Operands, chains: Chains, scales: RealArray | None
) -> dict[int, RealArray]:
    """New values ``[chains, size]`` of the registers the row writes, from old ones ``[R, chains, size]``."""
    count = len(registers)
    m = operands.guided(chains) if flags & READS_M else None
    x0 = estimate(coef, registers[0], m) if flags & USES_D else None
    z = operands.normal(chains, registers.dtype) if flags & READS_Z else None
    if z is not None and flags & LEARNED:
        z = mul(exp(fma(coef[LV_M], operands.variance(chains), coef[LV_B])), z)
    if flags & (THRESHOLD | NORMALISE):
        if scales is None:
            raise ValueError("scales: got None, expected what reduce() gives: a row of the batch has a reduction")
        lo, hi, x0_scale, z_scale = (column[:, None] for column in scales.T)
        x0 = None if x0 is None else mul(x0_scale, clip(x0, lo, hi))
        z = mul(z_scale, z) if z is not None and flags & NORMALISE else z
    elif x0 is not None:
        x0 = clip(x0, coef[LO], coef[HI])
    terms = [*registers, x0, m, z]
    matrix = coef[MATRIX:].reshape(count, count + 3)
    return {i: combine(matrix[i], terms, like=registers[0]) for i in range(count) if flags >> i & 1}
