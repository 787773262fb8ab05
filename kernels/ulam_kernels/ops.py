"""The public operations: validated once here, executed by one of the backends.

Every operation works on a batch of independent chains: the leading dimension (the second of ``state``) counts
chains, and per-chain arguments are one-dimensional tensors of that length.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch

from ulam_kernels.arguments import LARGEST_FLOAT32, real, whole
from ulam_kernels.autograd import (
    check_no_gradient,
    forward_mode,
    of_affine,
    recorded,
    recording,
    save_for_affine,
    written,
)
from ulam_kernels.dispatch import select
from ulam_kernels.operator import BACKEND, IDS, Values, library, operator
from ulam_kernels.table import READS_Z, Table
from ulam_kernels.tracing import by_operator, eager, transformed
from ulam_kernels.validation import FLOATS as FLOATS
from ulam_kernels.validation import MAX_ELEMENTS as MAX_ELEMENTS
from ulam_kernels.validation import (
    MAX_STAGE,
    NEGATIVE,
    apart,
    check,
    check_ids,
    check_net_in,
    check_row,
    check_state,
    check_tensor,
    of_table,
    operands,
    ready,
)

__all__ = ["affine", "blend", "fill_normal", "reduce", "step"]

ROWS = (
    "Tensor coef, Tensor flags, Tensor row, Tensor? model, Tensor? uncond, Tensor? guidance, Tensor? seed, "
    "Tensor? chain, Tensor? draw, Tensor? noise"
)


def _with_table(values: Values) -> None:
    values["table"] = Table(values.pop("coef"), values.pop("flags"), values["state"].shape[0])


@operator(
    f"step(Tensor(a!) state, {ROWS}, Tensor(b!)? net_in, Tensor? scales=None, {BACKEND}, Tensor? source=None) -> ()",
    pack=_with_table,
)
def step(
    state: torch.Tensor,
    table: Table,
    row: torch.Tensor,
    *,
    model: torch.Tensor | None = None,
    uncond: torch.Tensor | None = None,
    guidance: torch.Tensor | None = None,
    seed: torch.Tensor | None = None,
    chain: torch.Tensor | None = None,
    draw: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
    net_in: torch.Tensor | None = None,
    scales: torch.Tensor | None = None,
    source: torch.Tensor | None = None,
    backend: str | None = None,
) -> None:
    """Execute one row of ``table`` on every chain, in place on ``state``.

    For chain b at row n = row[b], in fp32 with one rounding an operation and in this order::

        m   = uncond + w (model - uncond)                     w = guidance[b]; w = 1 and w = 0 take their side as it is
        D   = clip(kx r_0 + km m, lo, hi)
        z   = exp(lv_m v + lv_b) z                            rows with a learned variance
        r_i = sum_j A_ij r_j + A_iD D + A_im m + A_iz z       for each register the row writes
        net_in = c_next r_0

    On a row with a reduction (a threshold, or normalising) the bounds are the chain's, and D and z are scaled after
    all of this, z only where the row normalises: with (lo, hi, D_scale, z_scale) = scales[b],
    ``D = mul(D_scale, clip(D, lo, hi))`` and ``z = mul(z_scale, z)``.

    A term whose coefficient is 0 takes no part. A row that writes no register leaves its chain alone wholly. z is
    noise-v1 normal number e of (seed, chain, draw), tag 0, at element e, counted as if all were contiguous.

    What is read may share memory with what is written, and is then copied first (``state[0]`` itself need not be).

    Args:
        state: ``[R, B, *shape]`` registers, contiguous; float32, bfloat16 or float16 (float64: reference backend).
        table: the rows; float32 (float64 with a float64 state).
        row: ``[B]`` int64, indices into the table.
        model: ``[B, *shape]`` network output, or ``[B, 2 C, ...]`` for ``shape = [C, ...]``: m, then v. Any float
            type and any strides; may be ``state[0]`` itself. Contiguous outputs, and those of four or five dimensions
            in ``torch.channels_last`` (``channels_last_3d``), are read as they lie; others are made contiguous first.
        uncond: the unconditional output, like ``model``; needs ``guidance``.
        guidance: ``[B]`` float32 weights.
        seed, chain, draw: ``[B]`` int64, read as unsigned; draw = 16 * noise row + stage.
        noise: ``[B, *shape]`` float32 (float64 with a float64 state), used in place of the generated z.
        net_in: ``[B, *shape]`` float32, bfloat16 or float16, receives the next row's network input. Contiguous, or of
            four or five dimensions in ``torch.channels_last`` (``channels_last_3d``): written as it lies, whatever the
            layout of ``model``. Shares no memory with ``state``.
        scales: ``[B, 4]`` float32 (float64 with a float64 state) from :func:`reduce`; rows with a reduction need it,
            the others do not read it.
        source: ``[B, *shape]`` like ``state[0]``, contiguous: r_0 is read from here, and ``state[0]`` only receives
            what rows write to it; ``noise`` may then be ``state[0]`` itself. :func:`reduce` has no source: copy r_0
            to ``state[0]`` before it.
        backend: see :func:`ulam_kernels.backends`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or layout; a row that reads what was
            not given (checked on the CPU).
        IndexError: a row outside the table (checked on the CPU). On a GPU such rows make their chain NaN.
        RuntimeError: an argument requires grad while gradients are recorded: the operation has no derivative.
    """
    if recording():
        check_no_gradient(
            "step", state=state, model=model, uncond=uncond, guidance=guidance, noise=noise, source=source
        )
    coef, flags = of_table(table)
    given = (state, net_in, row, seed, chain, draw, model, uncond, noise, source, guidance, scales, coef, flags)
    compiling = torch.compiler.is_compiling()
    quick = not compiling and ready(*given)
    if compiling or (not quick and by_operator("step", *given)):
        # the graph keeps one operator, which comes back here when it runs
        torch.ops.ulam.step(
            state,
            coef,
            flags,
            row,
            model,
            uncond,
            guidance,
            seed,
            chain,
            draw,
            noise,
            net_in,
            scales,
            backend,
            source,
        )
        return
    model, uncond = operands(state, table, model, uncond, guidance, noise, last=True)
    device, dtype = state.device, state.dtype
    if net_in is not None:
        check_net_in(net_in, state)
    if scales is not None:
        check(scales, "scales", coef.dtype, device, (state.shape[1], 4))
    if source is not None:
        check(source, "source", dtype, device, state.shape[1:])
    if not quick:
        check_row(row, seed, chain, draw, state)
        model, uncond, noise, source, row, seed, chain, draw, guidance, scales, coef, flags = apart(
            (model, uncond, noise, source, row, seed, chain, draw, guidance, scales, coef, flags), 4, state, net_in
        )
    if state.numel() == 0:
        return
    if not table.uses & READS_Z:
        seed = chain = draw = None
    select(backend, device.type, dtype).step(
        state, coef, flags, row, model, uncond, guidance, seed, chain, draw, noise, net_in, scales, source
    )
    written(state, net_in)


@operator(f"reduce(Tensor state, {ROWS}, Tensor(a!) out, {BACKEND}) -> ()", pack=_with_table)
def reduce(
    state: torch.Tensor,
    table: Table,
    row: torch.Tensor,
    *,
    model: torch.Tensor | None = None,
    uncond: torch.Tensor | None = None,
    guidance: torch.Tensor | None = None,
    seed: torch.Tensor | None = None,
    chain: torch.Tensor | None = None,
    draw: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
    out: torch.Tensor,
    backend: str | None = None,
) -> torch.Tensor:
    """What :func:`step` needs as ``scales``: (lo, hi, D_scale, z_scale) of every chain, for the row that it is at.

    With D the x0 estimate before any clip, ``D = fma(km, m, mul(kx, r_0))``, over the n elements of the chain::

        rows with a threshold   s = min(max(quantile(|D|, p), 1), cap)            (-s, s, 1 / s, 1)
        rows that normalise     g = (|z| / |D|)^2, 0 where |D| = 0                (-inf, inf, g, sqrt(g))
        other rows                                                                (-inf, inf, 1, 1)

    Dynamic thresholding, ``D <- clip(D, -s, s) / s``: Saharia et al. 2022 (Imagen), section 2.3. The step size of a
    Langevin corrector, with norms per chain: Song et al. 2021b, algorithms 4 and 5. Every backend gives the same bits:

    - The quantile is exact: with position ``p (n - 1)`` (one float64 product) = k + t, t rounded to fp32, and a <= b
      the order statistics k and k + 1, it is ``fma(t, sub(b, a), a)``, and a alone where t = 0 or a = b. NaN anywhere
      in D makes it NaN. ``1 / s`` is rounded once.
    - The norms are Euclidean. Squares are summed in float64, where those of fp32 numbers are exact: lane l of 1024
      adds the elements e with e mod 1024 = l in order of e, then lane l adds lane l + w for w = 512, 256, ... 1. g and
      sqrt(g) are computed in float64 and each rounded once to fp32.

    Args:
        state, table, row, model, uncond, guidance, seed, chain, draw, noise: as :func:`step`; nothing is written to
            them. Noise is read by rows that normalise, the model's output by rows whose D has it.
        out: ``[B, 4]`` float32 (float64 with a float64 state), contiguous.

    Returns:
        ``out``.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: as :func:`step`.
    """
    if recording():
        check_no_gradient("reduce", state=state, model=model, uncond=uncond, guidance=guidance, noise=noise, out=out)
    coef, flags = of_table(table)
    reads = (state, coef, flags, row, model, uncond, guidance, seed, chain, draw, noise)
    if torch.compiler.is_compiling() or (not eager(*reads, out) and by_operator("reduce", *reads, out)):
        torch.ops.ulam.reduce(*reads, out, backend)
        return out
    model, uncond = operands(state, table, model, uncond, guidance, noise, last=False)
    check_row(row, seed, chain, draw, state)
    check(out, "out", coef.dtype, state.device, (*state.shape[1:2], 4))
    if state.numel() == 0:
        return out.copy_(out.new_tensor([-math.inf, math.inf, 1, 1]).expand_as(out))
    state, coef, flags, row, model, uncond, guidance, seed, chain, draw, noise = apart(
        (state, coef, flags, row, model, uncond, guidance, seed, chain, draw, noise), 0, out
    )
    select(backend, state.device.type, state.dtype).reduce(
        state, coef, flags, row, model, uncond, guidance, seed, chain, draw, noise, out
    )
    written(out)
    return out


@operator(
    "blend(Tensor(a!) state, Tensor known, Tensor mask, Tensor a, Tensor b, Tensor? seed, Tensor? chain, "
    f"Tensor? draw, Tensor? noise=None, Tensor(b!)? net_in=None, Tensor? c_next=None, {BACKEND}, Tensor? row=None, "
    "SymInt stage=0) -> ()"
)
def blend(
    state: torch.Tensor,
    known: torch.Tensor,
    mask: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    seed: torch.Tensor | None,
    chain: torch.Tensor | None,
    draw: torch.Tensor | None,
    noise: torch.Tensor | None = None,
    net_in: torch.Tensor | None = None,
    c_next: torch.Tensor | None = None,
    row: torch.Tensor | None = None,
    stage: int = 0,
    backend: str | None = None,
) -> None:
    """Put a known image, noised, where a mask says so: inpainting, in place on ``state[0]``.

    For chain c and each of its elements, in fp32 with one rounding an operation::

        k      = fma(b, z, mul(a, known))                  a term whose coefficient is 0 is not read, z then not made
        r_0    = mask == 1 ? k : mask == 0 ? r_0 : fma(mask, sub(k, r_0), r_0)
        net_in = mul(c_next, r_0)                          of the r_0 just stored

    A chain with a = b = 0 is left alone wholly. z is noise-v1 normal number e of (seed, chain, draw + stage), tag 0.
    Lugmayr et al. 2022 (RePaint), equation 8.

    Args:
        state: ``[R, B, *shape]``, as :func:`step`; only r_0 is touched.
        known, mask: ``[B, *shape]`` float32, contiguous; mask in [0, 1], 1 where the image is known.
        a, b: ``[B]`` float32: signal and noise of the known image at the state's noise level.
        seed, chain, draw: ``[B]`` int64, read as unsigned; None only where ``noise`` is given.
        noise: ``[B, *shape]`` float32, used in place of the generated z.
        net_in: ``[B, *shape]``, as :func:`step`; needs ``c_next``, ``[B]`` float32.
        row: ``[B]`` int64: ``a``, ``b`` and ``c_next`` are then tables ``[rows]``, and those of chain b are in row[b].
        stage: 0 to 15, of the noise in its row.

        float32 is float64 with a float64 state (reference backend).

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or layout, or a missing one.
        IndexError: a row outside the tables, before anything is written (checked on the CPU). On a GPU such rows make
            their chain and its ``net_in`` NaN.
        RuntimeError: as :func:`step`.
    """
    if recording():
        check_no_gradient("blend", state=state, known=known, mask=mask, a=a, b=b, noise=noise)
    given = (state, known, mask, a, b, seed, chain, draw, noise, net_in, c_next, row)
    if torch.compiler.is_compiling() or (not eager(*given) and by_operator("blend", *given)):
        torch.ops.ulam.blend(state, known, mask, a, b, seed, chain, draw, noise, net_in, c_next, backend, row, stage)
        return
    check_state(state)
    sample, device, dtype = state.shape[1:], state.device, state.dtype
    per_chain, wanted = sample[:1], torch.float64 if dtype == torch.float64 else torch.float32
    if not state.shape[0]:
        raise ValueError(f"state: got shape {list(state.shape)}, expected [R, B, *shape] with a register")
    factors: tuple[int, ...] = per_chain
    if row is not None:
        check(row, "row", torch.int64, device, per_chain)
        check_tensor(a, "a")
        factors = tuple(a.shape[:1]) or (1,)
    for name, tensor, shape in (
        ("known", known, sample),
        ("mask", mask, sample),
        ("a", a, factors),
        ("b", b, factors),
    ):
        check(tensor, name, wanted, device, shape)
    if noise is not None:
        check(noise, "noise", wanted, device, sample)
    elif seed is None or chain is None or draw is None:
        raise ValueError("seed, chain, draw: got None, expected int64 tensors [B] (or noise)")
    check_ids(seed, chain, draw, device, per_chain)
    stage = whole(stage, "stage", 0, MAX_STAGE)
    if net_in is not None:
        check_net_in(net_in, state)
        if c_next is None:
            raise ValueError("c_next: got None, expected float32 scales [B] beside net_in")
        check(c_next, "c_next", wanted, device, factors)
    known, mask, noise, a, b, seed, chain, draw, c_next, row = apart(
        (known, mask, noise, a, b, seed, chain, draw, c_next, row), 3, state, net_in
    )
    plain = None if net_in is None else net_in.contiguous()
    select(backend, device.type, dtype).blend(
        state[0], known, mask, a, b, seed, chain, draw, noise, plain, c_next, row, stage
    )
    if net_in is not None and plain is not None and plain is not net_in:
        net_in.copy_(plain)
    written(state, net_in)


@operator(f"fill_normal(Tensor(a!) out, {IDS}, SymInt tag=0, float scale=1.0, SymInt offset=0, {BACKEND}) -> ()")
def fill_normal(
    out: torch.Tensor,
    *,
    seed: torch.Tensor,
    chain: torch.Tensor,
    draw: torch.Tensor,
    tag: int = 0,
    scale: float = 1.0,
    offset: int = 0,
    backend: str | None = None,
) -> torch.Tensor:
    """Fill ``out`` with noise-v1: element i of chain b gets ``mul(fp32(scale), z)`` of element ``offset + i``.

    Args:
        out: ``[B, *shape]``, contiguous, float32, bfloat16 or float16 (float64: reference backend).
        seed, chain, draw: ``[B]`` int64, read as unsigned; draw = 16 * noise row + stage.
        tag: 0 step noise, 1 initial state, up to 14.
        scale: a finite number.
        offset: index of the first element, for samples that are sharded.

    Returns:
        ``out``.

    Raises:
        TypeError, ValueError, OverflowError: as :func:`step`; a number of the wrong type or out of range.
        RuntimeError: as :func:`step`.
    """
    if recording():
        check_no_gradient("fill_normal", out=out)
    given = (out, seed, chain, draw)
    if torch.compiler.is_compiling() or (not eager(*given) and by_operator("fill_normal", *given)):
        torch.ops.ulam.fill_normal(out, seed, chain, draw, tag, scale, offset, backend)
        return out
    check_tensor(out, "out")
    if out.dim() < 1:
        raise ValueError("out: got a scalar, expected [B, *shape]")
    chains = out.shape[0]
    if out.dtype not in FLOATS and out.dtype != torch.float64:
        raise TypeError(f"out: got dtype {out.dtype}, expected float32, bfloat16, float16 or float64")
    if not out.is_contiguous():
        raise ValueError("out: must be contiguous")
    if out.is_neg():
        raise ValueError(f"out: {NEGATIVE}")
    tag = whole(tag, "tag", 0, 14)
    scale = real(scale, "scale", most=sys.float_info.max if out.dtype == torch.float64 else LARGEST_FLOAT32)
    elements = out.numel() // chains if chains else 0
    offset = whole(offset, "offset", 0, MAX_ELEMENTS)
    if offset + elements > MAX_ELEMENTS:
        raise ValueError(f"offset: elements {offset} to {offset + elements} reach beyond [0, 2^30]")
    for name, ids in (("seed", seed), ("chain", chain), ("draw", draw)):
        check(ids, name, torch.int64, out.device, (chains,))
    seed, chain, draw = apart((seed, chain, draw), 0, out)
    select(backend, out.device.type, out.dtype).fill_normal(out, seed, chain, draw, tag, scale, offset)
    written(out)
    return out


def _promoted(x: torch.Tensor, m: torch.Tensor, **_: Any) -> torch.Tensor:
    return torch.empty(x.shape, dtype=torch.promote_types(x.dtype, m.dtype), device=x.device)


@operator(f"affine_out(Tensor x, Tensor m, Tensor a, Tensor b, Tensor(a!) out, {BACKEND}) -> ()")
@operator(f"affine(Tensor x, Tensor m, Tensor a, Tensor b, {BACKEND}) -> Tensor", _promoted)
def affine(
    x: torch.Tensor,
    m: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    out: torch.Tensor | None = None,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """``out = a x + b m`` with one pair of coefficients a chain: ``fma(b, m, mul(a, x))`` in fp32, rounded once.

    Gradients flow to x, m, a and b, of any order in reverse mode.

    Args:
        x, m: ``[B, *shape]``, any float types. a, b: ``[B]`` float32 (float64 where x or m is). A zero coefficient's
            term is not read.
        out: ``[B, *shape]``, contiguous; by default a new tensor of the promoted dtype of x and m.

    Raises:
        TypeError, ValueError: as :func:`step`.
        RuntimeError: an input requires grad while gradients are recorded, and ``out`` is given; forward mode.
    """
    if out is not None or forward_mode():
        check_no_gradient("affine with out or in forward mode", x=x, m=m, a=a, b=b, out=out)
    compiling, given = torch.compiler.is_compiling(), (x, m, a, b, out)
    derived = recorded(x, m, a, b)
    if derived and not compiling and transformed() is not None:
        raise RuntimeError("affine: got a derivative of torch.func, expected one of torch.autograd")
    if compiling or derived or (not eager(*given) and by_operator("affine", *given, pure=out is None)):
        if out is None:
            return torch.ops.ulam.affine(x, m, a, b, backend)  # type: ignore[no-any-return]
        torch.ops.ulam.affine_out(x, m, a, b, out, backend)
        return out
    check_tensor(x, "x")
    check_tensor(m, "m")
    if x.shape != m.shape or x.dim() < 1:
        raise ValueError(f"m: got shape {list(m.shape)}, expected that of x, {list(x.shape)}, with chains first")
    for name, tensor in (("x", x), ("m", m)):
        if tensor.dtype not in FLOATS and tensor.dtype != torch.float64:
            raise TypeError(f"{name}: got dtype {tensor.dtype}, expected a float type")
    if out is None:
        out = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, m.dtype), device=x.device)
    check_tensor(out, "out")
    wide = torch.float64 in (x.dtype, m.dtype, out.dtype)
    wanted = torch.float64 if wide else torch.float32
    check(m, "m", m.dtype, x.device, x.shape, contiguous=False)
    check(out, "out", out.dtype if wide else None, x.device, x.shape)
    check(a, "a", wanted, x.device, x.shape[:1])
    check(b, "b", wanted, x.device, x.shape[:1])
    if x.is_neg() or m.is_neg():
        x, m = x.resolve_neg(), m.resolve_neg()
    x, m = x.contiguous(), m.contiguous()
    x, m, a, b = apart((x, m, a, b), 2, out)
    select(backend, x.device.type, wanted).affine(x, m, a, b, out)
    written(out)
    return out


torch.library.register_autograd("ulam::affine", of_affine, setup_context=save_for_affine, lib=library)
