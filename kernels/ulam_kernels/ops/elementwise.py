"""The operations that work element by element with numbers of a chain: inpainting, noise, affine maps."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.autograd import forward_ad

from ulam_kernels.arguments import LARGEST_FLOAT32, real, whole
from ulam_kernels.autograd import (
    check_no_gradient,
    forward_mode,
    of_affine,
    recorded,
    save_for_affine,
    written,
)
from ulam_kernels.dispatch import select
from ulam_kernels.operator import BACKEND, IDS, library, operator
from ulam_kernels.tracing import by_operator, compiling, eager, transformed
from ulam_kernels.validation import (
    FLOATS,
    MAX_ELEMENTS,
    MAX_STAGE,
    NEGATIVE,
    apart,
    check,
    check_ids,
    check_net_in,
    check_noise_ids,
    check_state,
    check_tensor,
)

__all__ = ["affine", "blend", "fill_normal"]


@operator(
    "blend(Tensor(a!) state, Tensor known, Tensor mask, Tensor a, Tensor b, Tensor? seed, Tensor? chain, "
    f"Tensor? draw, Tensor? noise=None, Tensor(b!)? net_in=None, Tensor? c_next=None, {BACKEND}, Tensor? row=None, "
    "SymInt stage=0) -> ()"
)
def blend(
    state: torch.Tensor, known: torch.Tensor, mask: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *,
    seed: torch.Tensor | None, chain: torch.Tensor | None, draw: torch.Tensor | None,
    noise: torch.Tensor | None = None, net_in: torch.Tensor | None = None, c_next: torch.Tensor | None = None,
    row: torch.Tensor | None = None, stage: int = 0, backend: str | None = None,
) -> None:  # fmt: skip
    """Put a known image, noised, where a mask says so: inpainting, in place on ``state[0]``.

    For chain c and each of its elements, in fp32 with one rounding an operation::

        k      = fma(b, z, mul(a, known))                  a term whose coefficient is 0 is not read, z then not made
        r_0    = mask == 1 ? k : mask == 0 ? r_0 : fma(mask, sub(k, r_0), r_0)
        net_in = mul(c_next, r_0)                          of the r_0 just stored

    A chain with a = b = 0 is left untouched. z is noise-v1 normal number e of (seed, chain, draw + stage), tag 0.
    Lugmayr et al. 2022 (RePaint), equation 8.

    Args:
        state: ``[R, B, *shape]``, as :func:`step`; only r_0 is touched.
        known, mask: ``[B, *shape]`` float32, contiguous; mask in [0, 1], 1 where the image is known.
        a, b: ``[B]`` float32: signal and noise of the known image at the state's noise level.
        seed, chain, draw: ``[B]`` int64, read as unsigned; None only where ``noise`` is given.
        noise: ``[B, *shape]`` float32, used in place of the generated z.
        net_in: ``[B, *shape]``, as :func:`step`; needs ``c_next``.
        c_next: ``[B]`` float32, the scale of ``net_in``.
        row: ``[B]`` int64: ``a``, ``b`` and ``c_next`` are then tables ``[rows]``, and those of chain b are in row[b].
        stage: 0 to 15, of the noise in its row.

        float32 is float64 with a float64 state (reference backend).

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or layout, or a missing one.
        IndexError: a row outside the tables, before anything is written (checked on the CPU). On a GPU such rows make
            their chain and its ``net_in`` NaN.
        RuntimeError: as :func:`step`.
    """
    if torch.is_grad_enabled() or forward_ad._current_level >= 0:
        check_no_gradient("blend", state=state, known=known, mask=mask, a=a, b=b, noise=noise)
    given = (state, known, mask, a, b, seed, chain, draw, noise, net_in, c_next, row)
    if compiling() or (not eager(*given) and by_operator("blend", *given)):
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
    for name, tensor, shape in (("known", known, sample), ("mask", mask, sample), ("a", a, factors), ("b", b, factors)):
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
    written((state,) if net_in is None else (state, net_in))


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

    >>> ids, zero = torch.tensor([0, 7]), torch.tensor([0, 0])
    >>> z = ulam_kernels.fill_normal(torch.empty(2, 3), seed=zero, chain=ids, draw=zero)

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
    if torch.is_grad_enabled() or forward_ad._current_level >= 0:
        check_no_gradient("fill_normal", out=out)
    given = (out, seed, chain, draw)
    if compiling() or (not eager(*given) and by_operator("fill_normal", *given)):
        torch.ops.ulam.fill_normal(out, seed, chain, draw, tag, scale, offset, backend)
        return out
    check_tensor(out, "out")
    if out.dim() < 1:
        raise ValueError("out: got a scalar, expected [B, *shape]")
    chains = out.shape[0]
    if out.dtype not in FLOATS and out.dtype != torch.float64:
        raise TypeError(f"out: got dtype {out.dtype}, expected float32, bfloat16, float16 or float64")
    if not out.is_contiguous():
        raise ValueError(f"out: got strides {out.stride()}, expected a contiguous tensor")
    if out.is_neg():
        raise ValueError(f"out: {NEGATIVE}")
    tag = whole(tag, "tag", 0, 14)
    scale = real(scale, "scale", most=sys.float_info.max if out.dtype == torch.float64 else LARGEST_FLOAT32)
    elements = out.numel() // chains if chains else 0
    offset = whole(offset, "offset", 0, MAX_ELEMENTS)
    if offset + elements > MAX_ELEMENTS:
        raise ValueError(f"offset: got {offset} before {elements} elements, expected 2^30 at most in all")
    check_noise_ids(out, seed, chain, draw)
    seed, chain, draw = apart((seed, chain, draw), 0, out)
    select(backend, out.device.type, out.dtype).fill_normal(out, seed, chain, draw, tag, scale, offset)
    written((out,))
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
    compiles, given = compiling(), (x, m, a, b, out)
    derived = recorded(x, m, a, b)
    if derived and not compiles and transformed() is not None:
        raise RuntimeError("affine: got a derivative of torch.func, expected one of torch.autograd")
    if compiles or derived or (not eager(*given) and by_operator("affine", *given, pure=out is None)):
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
    written((out,))
    return out


torch.library.register_autograd("ulam::affine", of_affine, setup_context=save_for_affine, lib=library)
