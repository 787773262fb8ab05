"""What one row does to a tile of elements, in Triton: the body that the kernels of the step share, and its parts.

A tile lies inside one chain (LONG), or has many chains and a block of four elements of one in each of its lines. In the
one the row's coefficients are scalars and its branches uniform, so what a row does not use costs neither loads nor
arithmetic. In the other they are gathered for each block; a thread does little but wait for memory, so it asks first
for all that does not depend on the row, together with the row's number, and then for the row: what the row turns out
not to read takes no part. The arithmetic, its order and what is skipped are those of ``csrc/include/ulam/row.h``, bit
for bit.
"""
# ruff: noqa: RUF005, SIM102, SIM108 (Triton knows neither unpacking nor conditional expressions of tensors)
# mypy: disable-error-code="assignment, no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from ulam_kernels import table
from ulam_kernels.triton.noise import floats, key_of, normals, polynomial, tile_of_normals

KX = tl.constexpr(table.KX)
KM = tl.constexpr(table.KM)
LO = tl.constexpr(table.LO)
HI = tl.constexpr(table.HI)
LV_M = tl.constexpr(table.LV_M)
LV_B = tl.constexpr(table.LV_B)
C_NEXT = tl.constexpr(table.C_NEXT)
MATRIX = tl.constexpr(table.MATRIX)
READS_M = tl.constexpr(table.READS_M)
READS_Z = tl.constexpr(table.READS_Z)
USES_D = tl.constexpr(table.USES_D)
LEARNED = tl.constexpr(table.LEARNED)
NORMALISE = tl.constexpr(table.NORMALISE)
REDUCED = tl.constexpr(table.THRESHOLD | table.NORMALISE)
WRITES = tl.constexpr((1 << table.MAX_REGISTERS) - 1)

EXP = floats("0x1.6a4d6p-10 0x1.12398ep-7 0x1.5558bp-5 0x1.555492p-3 0x1.fffffcp-2 0x1p+0 0x1p+0")
EXP_SCALE = tl.constexpr(float.fromhex("0x1.715476p+0"))
EXP_SHIFT = tl.constexpr(float.fromhex("0x1.8p+23"))
EXP_HIGH = tl.constexpr(float.fromhex("-0x1.62e4p-1"))
EXP_LOW = tl.constexpr(float.fromhex("-0x1.7f7d1cp-20"))

# Read one number at a time: slices of them, at whatever address, must not compile the kernel again.
PER_CHAIN = ["row", "guidance", "seed", "chain", "draw", "scales"]


@triton.jit
def splat(x, like):
    """A scalar, ``[P, 1]`` or ``[1, 4]`` tensor in the shape of ``like``."""
    return tl.broadcast_to(x, like.shape)


@triton.jit
def clip(x, lo, hi):
    """``x < lo ? lo : (x > hi ? hi : x)``, so NaN passes."""
    return tl.where(x < lo, lo, tl.where(x > hi, hi, x))


@triton.jit
def exp(x):
    """exp in correctly rounded operations: see ``csrc/include/ulam/elementary.h``."""
    y = clip(x, -86.0, 88.0)
    shift = tl.full(x.shape, EXP_SHIFT, tl.float32)
    t = tl.fma(y, tl.full(x.shape, EXP_SCALE, tl.float32), shift)
    n = t.to(tl.uint32, bitcast=True) - 0x4B400000
    k = t - shift
    r = tl.fma(k, tl.full(x.shape, EXP_HIGH, tl.float32), y)
    r = tl.fma(k, tl.full(x.shape, EXP_LOW, tl.float32), r)
    p = polynomial(r, EXP, 6).to(tl.uint32, bitcast=True) + (n << 23)
    return tl.where(x != x, x, p.to(tl.float32, bitcast=True))


@triton.jit
def any_of(present):
    """Whether one of the tile's chains has it: a uniform condition."""
    if len(present.shape) == 0:
        result = present
    else:
        result = tl.max(present.to(tl.int32)) != 0
    return result


@triton.jit
def add_term(t, a, x, LONG: tl.constexpr):
    """``fma(a, x, t)`` where the coefficient is not 0; else t, whatever x is."""
    if LONG:
        if a != 0:
            t = tl.fma(splat(a, t), x, t)
    else:
        t = tl.where(a != 0, tl.fma(splat(a, t), x, t), t)
    return t


@triton.jit
def empty_sum(some, like):
    """What a sum starts from: -0, since fma(a, x, -0) is mul(a, x) to the sign of zero; +0 if it gets no term."""
    sign = some.to(tl.uint32) << 31  # the literal -0.0 would lose its sign
    return splat(sign.to(tl.float32, bitcast=True), like)


@triton.jit
def guide(cond, uncond, w, LONG: tl.constexpr):
    """``fma(w, cond - uncond, uncond)``, but w = 1 and w = 0 take their side untouched."""
    if LONG:
        m = cond
        if w != 1:
            m = uncond
            if w != 0:
                m = tl.fma(splat(w, cond), cond - uncond, uncond)
    else:
        m = tl.fma(splat(w, cond), cond - uncond, uncond)
        m = tl.where(w == 1, cond, tl.where(w == 0, uncond, m))
    return m


@triton.jit
def unclipped_x0(kx, km, x, m, LONG: tl.constexpr):
    """``fma(km, m, mul(kx, x))``."""
    d = empty_sum((kx != 0) | (km != 0), x)
    d = add_term(d, kx, x, LONG)
    return add_term(d, km, m, LONG)


@triton.jit
def column(c, held, K: tl.constexpr, mask, other):
    """A number of the row: where all of it was asked for at once it is held."""
    if len(held) == 0:
        number = tl.load(c + K, mask=mask, other=other)
    else:
        number = held[K]
    return number


@triton.jit
def bounded_x0(c, columns, own, kx, flag, x, m, LONG: tl.constexpr):
    """``clip(fma(km, m, mul(kx, x)), lo, hi)``; on a row with a reduction by the chain's own bounds, and scaled."""
    uses = (flag & USES_D) != 0
    d = unclipped_x0(kx, column(c, columns, KM, uses, 0.0), x, m, LONG)
    lo = column(c, columns, LO, uses, 0.0)
    hi = column(c, columns, HI, uses, 0.0)
    if own is not None:
        reduced = (flag & REDUCED) != 0
        lo = tl.where(reduced, tl.load(own, mask=reduced, other=0.0), lo)
        hi = tl.where(reduced, tl.load(own + 1, mask=reduced, other=0.0), hi)
    d = clip(d, splat(lo, d), splat(hi, d))
    if own is not None:
        d = d * splat(tl.load(own + 2, mask=reduced, other=1.0), d)
    return d


@triton.jit
def add_x0(t, a, c, columns, own, kx, flag, x, m, LONG: tl.constexpr):
    """``fma(a, D, t)`` with D of :func:`bounded_x0`, where the coefficient is not 0."""
    if LONG:
        if a != 0:
            t = tl.fma(splat(a, t), bounded_x0(c, columns, own, kx, flag, x, m, LONG), t)
    else:
        t = add_term(t, a, bounded_x0(c, columns, own, kx, flag, x, m, LONG), LONG)
    return t


@triton.jit
def scaled_noise(z, c, learned, v):
    """``exp(lv_m v + lv_b) z``."""
    lv_m = tl.load(c + LV_M, mask=learned, other=0.0)
    lv_b = tl.load(c + LV_B, mask=learned, other=0.0)
    return exp(tl.fma(splat(lv_m, z), v, splat(lv_b, z))) * z


@triton.jit
def generated_noise(seed, chain, draw, b, reads, block, like, PAIRS: tl.constexpr, stage=0):
    """noise-v1 in the shape of ``like``. block: ``[P, 1]``, or the first of a long tile's blocks."""
    d = tl.load(draw + b, mask=reads, other=0) + stage
    k0, k1 = key_of(tl.load(seed + b, mask=reads, other=0), d)
    ids = tl.load(chain + b, mask=reads, other=0)
    if len(block.shape) == 0:
        z = tile_of_normals(k0, k1, ids, d, block, like.shape[0], PAIRS)
    else:
        z = normals(k0, k1, ids, d, block)
    return tl.reshape(z, like.shape)


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
def combine(k: tl.constexpr, A, c, columns, own, kx, flag, r, m, z, R: tl.constexpr, LONG: tl.constexpr):
    """The new register k: ``sum_j A_kj r_j + A_kD D + A_km m + A_kz z`` over the present terms, in order."""
    some = A[k * (R + 3)] != 0
    for j in tl.static_range(1, R + 3):
        some = some | (A[k * (R + 3) + j] != 0)
    t = empty_sum(some, z)
    for j in tl.static_range(R):
        t = add_term(t, A[k * (R + 3) + j], r[j], LONG)
    t = add_x0(t, A[k * (R + 3) + R], c, columns, own, kx, flag, r[0], m, LONG)
    t = add_term(t, A[k * (R + 3) + R + 1], m, LONG)
    return add_term(t, A[k * (R + 3) + R + 2], z, LONG)


@triton.jit
def execute(
    state, coef, flags, row, model, uncond, guidance, seed, chain, draw, noise, net_in, scales, source,
    rows, stride, size, b, exists, base, i, place, behind, net_place, block, mask,
    R: tl.constexpr, HALVES: tl.constexpr, MISSING: tl.constexpr, PAIRS: tl.constexpr, LONG: tl.constexpr,
    SINGLY: tl.constexpr,
):  # fmt: skip
    """Execute one row of each chain on one tile.

    Args, beside those of :func:`ulam_kernels.step`:
        rows: of the table. stride: B n, from one register to the next. size: n.
        b: the tile's chain (LONG) or its chains ``[P, 1]``; exists: which of them there are.
        base: where each of them begins in ``[B, n]``; i: the tile's elements from there, so that ``base + i`` has the
            tile's shape, ``[N]`` (LONG) or ``[P, 4]``; mask: which elements there are.
        place, net_place: where they lie in a chain of the model's output and of net_in: i where these are contiguous.
            behind: how far v is behind m.
        block: the first of the tile's blocks of noise (``[N]``), or all of them ``[P, 1]``.
        HALVES: 2 where the model's output holds v behind m. MISSING: the flags of what was not given. PAIRS: see
            :func:`ulam_kernels.triton.noise.tile_of_normals`. SINGLY: see :func:`ask`.
    """
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

    z = tl.zeros(mask.shape, tl.float32)
    if noise is not None:
        z = tl.load(noise + base + i, mask=mask & reads_z)
    elif seed is not None:
        if any_of(reads_z):
            if LONG:
                z = generated_noise(seed, chain, draw, b, reads_z, block, z, PAIRS)
            else:
                k0, k1 = key_of(ids[0], ids[2])
                z = tl.reshape(normals(k0, k1, ids[1], ids[2], block), z.shape)
    if HALVES == 2:
        if any_of(learned):
            z = tl.where(learned, scaled_noise(z, c, learned, v.to(tl.float32)), z)
    own = scales
    if scales is not None:
        own = scales + 4 * b.to(tl.int64)
        z = z * splat(tl.load(own + 3, mask=(flag & NORMALISE) != 0, other=1.0), z)
    m = z  # not read by any row where there is no model
    if uncond is not None:
        m = guide(cond.to(tl.float32), other.to(tl.float32), w, LONG)
    elif model is not None:
        m = cond.to(tl.float32)

    r = widened(held, R)
    x = r[0]
    for k in tl.static_range(R):
        written = (flag & (1 << k)) != 0
        stored = combine(k, A, c, columns, own, kx, flag, r, m, z, R, LONG).to(state.dtype.element_ty)
        tl.store(state + k * stride + base + i, stored, mask=mask & written)
        if k == 0:
            x = tl.where(written, stored.to(tl.float32), x)
    if net_in is not None:
        scale = column(c, columns, C_NEXT, usable & active, float("nan"))
        if not LONG:
            scale = tl.where(usable, scale, float("nan"))
        tl.store(net_in + base + net_place, (splat(scale, x) * x).to(net_in.dtype.element_ty), mask=mask)
