"""Execute a row on a tile of elements, in Triton: the body that the kernels of the step share.

A tile lies inside one chain (LONG), or has many chains, with a block of four elements of one chain in each of its
lines. In a LONG tile the row's coefficients are scalars and its branches uniform, so what a row does not use costs
neither loads nor arithmetic. In the other kind they are gathered for each block; a thread does little but wait for
memory, so it first loads all that does not depend on the row, together with the row's number, and then the row: what
the row turns out not to read takes no part. Arithmetic, its order and what is skipped are those of
``csrc/include/ulam/row.h``, bit for bit.
"""
# ruff: noqa: RUF005, SIM102 (Triton knows neither unpacking nor conditional expressions of tensors)
# mypy: disable-error-code="assignment, no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from ulam_kernels.triton.noise import key_of, normals
from ulam_kernels.triton.row import (
    C_NEXT,
    KX,
    LEARNED,
    MATRIX,
    NORMALISE,
    READS_M,
    READS_Z,
    USES_D,
    WRITES,
    add_term,
    add_x0,
    any_of,
    column,
    empty_sum,
    generated_noise,
    guide,
    scaled_noise,
    splat,
)
from ulam_kernels.triton.squares import recorded_noise


@triton.jit
def load_row(coef, flags, row, b, exists, rows, R: tl.constexpr, MISSING: tl.constexpr):
    """(flags, pointer to the coefficients, whether they may be read, kx, A) of the row that each chain is at.

    A row that is outside the table, or reads what was not given (MISSING), becomes one that makes its chain NaN: it
    cannot be reported without waiting for the device.
    """
    at = tl.load(row + b, mask=exists, other=-1)
    usable = (at >= 0) & (at < rows)
    flag = tl.load(flags + at, mask=usable, other=WRITES)
    usable = usable & ((flag & MISSING) == 0)
    flag = tl.where(usable, flag, flag & WRITES)
    c = coef + at * (MATRIX + R * (R + 3))
    kx = tl.load(c + KX, mask=(flag & USES_D) != 0, other=0.0)
    A = ()
    for k in tl.static_range(R * (R + 3)):
        A = A + (tl.load(c + (MATRIX + k), mask=usable, other=float("nan")),)
    return flag, c, usable, kx, A


@triton.jit
def load_whole_row(coef, flags, at, rows, R: tl.constexpr, MISSING: tl.constexpr):
    """What :func:`load_row` returns, and all columns before A: nothing waits for the flags."""
    usable = (at >= 0) & (at < rows)
    flag = tl.load(flags + at, mask=usable, other=WRITES)
    c = coef + at * (MATRIX + R * (R + 3))
    columns = ()
    for k in tl.static_range(MATRIX):
        columns = columns + (tl.load(c + k, mask=usable, other=float("nan")),)
    A = ()
    for k in tl.static_range(R * (R + 3)):
        A = A + (tl.load(c + (MATRIX + k), mask=usable, other=float("nan")),)
    if MISSING != 0:
        usable = usable & ((flag & MISSING) == 0)
        flag = tl.where(usable, flag, flag & WRITES)
        present = A
        A = ()
        for k in tl.static_range(R * (R + 3)):
            A = A + (tl.where(usable, present[k], float("nan")),)
    kx = tl.where((flag & USES_D) != 0, columns[KX], 0.0)
    return flag, c, usable, kx, A, columns


@triton.jit
def ask(at, base, place, block, size, exists, mask, SINGLY: tl.constexpr):
    """A tile of short chains. SINGLY: one element of a block at a time.

    Where chains are not aligned to wide accesses, a load of the whole tile would be dealt out among the threads
    otherwise than what is made of it; it would be waited for at once, to be exchanged through shared memory.
    """
    if SINGLY:
        first = at + base + 4 * block
        x = ()
        for k in tl.static_range(4):
            x = x + (tl.load(first + k, mask=exists & (4 * block + k < size)),)
        tile = tl.reshape(tl.join(tl.join(x[0], x[2]), tl.join(x[1], x[3])), mask.shape)  # type: ignore[misc]
    else:
        tile = tl.load(at + base + place, mask=mask)
    return tile


@triton.jit
def load_all_registers(
    state, source, stride, base, i, block, size, exists, mask, R: tl.constexpr, SINGLY: tl.constexpr
):
    """Every register, in its own type."""
    r = ()
    for j in tl.static_range(R):
        at = state + j * stride
        if j == 0:
            if source is not None:
                at = source
        r = r + (ask(at, base, i, block, size, exists, mask, SINGLY),)
    return r


@triton.jit
def load_registers(state, source, stride, base, i, mask, flag, kx, A, R: tl.constexpr, NET_IN: tl.constexpr):
    """The registers that a row reads, in their own type, so that the loads are under way while the noise is made."""
    r = ()
    for j in tl.static_range(R):
        reads = A[j] != 0
        for k in tl.static_range(1, R):
            reads = reads | (A[k * (R + 3) + j] != 0)
        if j == 0:
            reads = reads | (kx != 0)
            if NET_IN:
                reads = reads | ((flag & 1) == 0)
        at = state + j * stride
        if j == 0:
            if source is not None:
                at = source
        r = r + (tl.load(at + base + i, mask=mask & reads),)
    return r


@triton.jit
def widened(r, R: tl.constexpr):
    """A tuple of tensors in fp32."""
    wide = ()
    for j in tl.static_range(R):
        wide = wide + (r[j].to(tl.float32),)
    return wide


@triton.jit
def combine(k: tl.constexpr, A, c, columns, chain_scales, kx, flag, r, m, z, R: tl.constexpr, LONG: tl.constexpr):
    """The new register k: ``sum_j A_kj r_j + A_kD D + A_km m + A_kz z`` over the present terms, in order."""
    some = A[k * (R + 3)] != 0
    for j in tl.static_range(1, R + 3):
        some = some | (A[k * (R + 3) + j] != 0)
    t = empty_sum(some, z)
    for j in tl.static_range(R):
        t = add_term(t, A[k * (R + 3) + j], r[j], LONG)
    t = add_x0(t, A[k * (R + 3) + R], c, columns, chain_scales, kx, flag, r[0], m, LONG)
    t = add_term(t, A[k * (R + 3) + R + 1], m, LONG)
    return add_term(t, A[k * (R + 3) + R + 2], z, LONG)


@triton.jit
def noise_of_row(
    noise, seed, chain, draw, ids, b, at, block, mask, reads_z, PAIRS: tl.constexpr, LONG: tl.constexpr
):  # fmt: skip
    """The tile's z: the noise that is given, or generated; not LONG: from ``ids``, which are loaded already."""
    z = tl.zeros(mask.shape, tl.float32)
    if noise is not None:
        z = tl.load(noise + at, mask=mask & reads_z)
    elif seed is not None:
        if any_of(reads_z):
            if LONG:
                z = generated_noise(seed, chain, draw, b, reads_z, block, z, PAIRS)
            else:
                k0, k1 = key_of(ids[0], ids[2])
                z = tl.reshape(normals(k0, k1, ids[1], ids[2], block), z.shape)
    return z


@triton.jit
def recorded(
    squares, noise, names, ids, b, at, block, size, mask, active, reads_z,
    PAIRS: tl.constexpr, LONG: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """:func:`noise_of_row`, whose squares are added to those of its chains; names: seed, chain and draw."""
    if LONG and names[0] is not None:
        ids = (
            tl.load(names[0] + b, mask=reads_z),
            tl.load(names[1] + b, mask=reads_z),
            tl.load(names[2] + b, mask=reads_z),
        )
    return recorded_noise(
        squares, noise, ids, b, at, block, size, mask & reads_z, active & reads_z, PAIRS, LONG, SHIFT
    )  # fmt: skip


@triton.jit
def execute(
    state, coef, flags, row, model, uncond, guidance, seed, chain, draw, noise, net_in, scales, source, squares,
    rows, stride, size, b, exists, base, i, place, behind, net_place, block, mask,
    R: tl.constexpr, HALVES: tl.constexpr, MISSING: tl.constexpr, PAIRS: tl.constexpr, LONG: tl.constexpr,
    SINGLY: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """Execute one row of each chain on one tile.

    Beside the arguments of :func:`ulam_kernels.step`: rows, of the table; stride, B n, from one register to the
    next; size, n. b: the tile's chain (LONG) or its chains ``[P, 1]``; exists: which of them there are. base: where
    each of them begins in ``[B, n]``; i: the tile's elements from there, so that ``base + i`` has the tile's shape,
    ``[N]`` (LONG) or ``[P, 4]``; mask: which elements there are. place, net_place: where they lie in a chain of the
    model's output and of net_in: i where these are contiguous; behind: how far v is behind m. block: the first of
    the tile's blocks of noise (``[N]``), or all of them ``[P, 1]``. HALVES: 2 where the model's output holds v
    behind m. MISSING: the flags of what was not given. PAIRS: see
    :func:`ulam_kernels.triton.noise.tile_of_normals`. SINGLY: see :func:`ask`. SHIFT: of a step that records, log2
    of the lines that a short chain has.
    """
    ids = ()
    if LONG:
        flag, c, usable, kx, A = load_row(coef, flags, row, b, exists, rows, R, MISSING)
        columns = ()
    else:
        at = tl.load(row + b, mask=exists, other=-1)
        if seed is not None:
            ids = tl.load(seed + b, mask=exists), tl.load(chain + b, mask=exists), tl.load(draw + b, mask=exists)
        held = load_all_registers(state, source, stride, base, i, block, size, exists, mask, R, SINGLY)
        if uncond is not None:
            w = tl.load(guidance + b, mask=exists, other=1.0)
            other = ask(uncond, HALVES * base, place, block, size, exists, mask, SINGLY)
        if model is not None:
            cond = ask(model, HALVES * base, place, block, size, exists, mask, SINGLY)
        flag, c, usable, kx, A, columns = load_whole_row(coef, flags, at, rows, R, MISSING)
    active = exists & ((flag & WRITES) != 0)
    mask = mask & active
    reads_m = (flag & READS_M) != 0
    reads_z = (flag & READS_Z) != 0
    learned = reads_z & ((flag & LEARNED) != 0)
    if LONG:
        held = load_registers(state, source, stride, base, i, mask, flag, kx, A, R, net_in is not None)
        if uncond is not None:
            w = tl.load(guidance + b, mask=active, other=1.0)
            other = tl.load(uncond + HALVES * base + place, mask=mask & reads_m & (w != 1))
            cond = tl.load(model + HALVES * base + place, mask=mask & reads_m & (w != 0))
        elif model is not None:
            cond = tl.load(model + HALVES * base + place, mask=mask & reads_m)
    if HALVES == 2:
        v = tl.load(model + (2 * base + behind) + place, mask=mask & learned)
    if squares is None:
        z = noise_of_row(noise, seed, chain, draw, ids, b, base + i, block, mask, reads_z, PAIRS, LONG)
    else:
        names = (seed, chain, draw)
        z = recorded(squares, noise, names, ids, b, base + i, block, size, mask, active, reads_z, PAIRS, LONG, SHIFT)
    if HALVES == 2:
        if any_of(learned):
            z = tl.where(learned, scaled_noise(z, c, learned, v.to(tl.float32)), z)
    chain_scales = scales
    if scales is not None:
        chain_scales = scales + 4 * b.to(tl.int64)
        z = z * splat(tl.load(chain_scales + 3, mask=(flag & NORMALISE) != 0, other=1.0), z)
    m = z  # not read by any row where there is no model
    if uncond is not None:
        m = guide(cond.to(tl.float32), other.to(tl.float32), w, LONG)
    elif model is not None:
        m = cond.to(tl.float32)

    r = widened(held, R)
    x = r[0]
    for k in tl.static_range(R):
        written = (flag & (1 << k)) != 0
        stored = combine(k, A, c, columns, chain_scales, kx, flag, r, m, z, R, LONG).to(state.dtype.element_ty)
        tl.store(state + k * stride + base + i, stored, mask=mask & written)
        if k == 0:
            x = tl.where(written, stored.to(tl.float32), x)
    if net_in is not None:
        scale = column(c, columns, C_NEXT, usable & active, float("nan"))
        if not LONG:
            scale = tl.where(usable, scale, float("nan"))
        tl.store(net_in + base + net_place, (splat(scale, x) * x).to(net_in.dtype.element_ty), mask=mask)
