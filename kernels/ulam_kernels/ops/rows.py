"""The operations that read rows of a table: the fused step, and the reductions that some of its rows need."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.autograd import forward_ad

from ulam_kernels.autograd import check_no_gradient, written
from ulam_kernels.dispatch import select
from ulam_kernels.operator import BACKEND, Values, operator
from ulam_kernels.table import READS_Z, Table
from ulam_kernels.tracing import by_operator, compiling, eager
from ulam_kernels.validation import apart, check, check_row, check_squares, operands, ready, refuse_table

__all__ = ["reduce", "step"]

ROWS = (
    "Tensor coef, Tensor flags, Tensor row, Tensor? model, Tensor? uncond, Tensor? guidance, Tensor? seed, "
    "Tensor? chain, Tensor? draw, Tensor? noise"
)


def _with_table(values: Values) -> None:
    values["table"] = Table(values.pop("coef"), values.pop("flags"), values["state"].shape[0])


OTHERS = f"Tensor? scales=None, {BACKEND}, Tensor? source=None, Tensor(c!)? squares=None"
STEP = f"step(Tensor(a!) state, {ROWS}, Tensor(b!)? net_in, {OTHERS}) -> ()"


@operator(STEP, pack=_with_table)
def step(
    state: torch.Tensor, table: Table, row: torch.Tensor, *,
    model: torch.Tensor | None = None, uncond: torch.Tensor | None = None, guidance: torch.Tensor | None = None,
    seed: torch.Tensor | None = None, chain: torch.Tensor | None = None, draw: torch.Tensor | None = None,
    noise: torch.Tensor | None = None, net_in: torch.Tensor | None = None, scales: torch.Tensor | None = None,
    source: torch.Tensor | None = None, squares: torch.Tensor | None = None, backend: str | None = None,
) -> None:  # fmt: skip
    """Execute one row of ``table`` on every chain, in place on ``state``.

    For chain b at row n = row[b], in fp32 with one rounding an operation and in this order::

        m   = uncond + w (model - uncond)                  w = guidance[b]; w = 1 and w = 0 give their side untouched
        D   = clip(kx r_0 + km m, lo, hi)
        z   = exp(lv_m v + lv_b) z                         rows with a learned variance
        r_i = sum_j A_ij r_j + A_iD D + A_im m + A_iz z    for each register the row writes
        net_in = c_next r_0

    A row with a reduction takes bounds and scales of the chain, (lo, hi, D_scale, z_scale) = scales[b]:
    ``D = mul(D_scale, clip(D, lo, hi))``, and ``z = mul(z_scale, z)`` where the row normalises.

    A term whose coefficient is 0 is not read. A row that writes no register leaves its chain untouched. z is the
    noise-v1 normal number e of (seed, chain, draw), tag 0, at element e in contiguous order. Inputs may share memory
    with outputs and are then copied first (``state[0]`` itself need not be).

    Args:
        state: ``[R, B, *shape]`` registers, contiguous; float32, bfloat16 or float16 (float64: reference backend).
        table: the rows; float32 (float64 with a float64 state).
        row: ``[B]`` int64, indices into the table.
        model: ``[B, *shape]`` network output, or ``[B, 2 C, ...]`` for ``shape = [C, ...]``: m, then v. Any float
            type and any strides; may be ``state[0]`` itself. Contiguous outputs, and those of four or five dimensions
            in ``torch.channels_last`` (``channels_last_3d``), are read as they lie; others are made contiguous first.
        uncond: the unconditional output, like ``model``; needs ``guidance``. guidance: ``[B]`` float32 weights.
        seed, chain, draw: ``[B]`` int64, read as unsigned; draw = 16 * noise row + stage.
        noise: ``[B, *shape]`` float32 (float64 with a float64 state), used in place of the generated z.
        net_in: ``[B, *shape]`` float32, bfloat16 or float16, contiguous or channels-last, whatever ``model`` is; takes
            the next row's network input. Shares no memory with ``state``.
        scales: ``[B, 4]`` float32 (float64 with a float64 state) from :func:`reduce`, for rows with a reduction.
        source: ``[B, *shape]`` like ``state[0]``, contiguous: r_0 is read from here and ``state[0]`` only written;
            ``noise`` may then be ``state[0]`` itself. :func:`reduce` has no source: copy r_0 to ``state[0]`` first.
        squares: ``[B]`` int64, contiguous; shares no memory with ``state`` and ``net_in``. The squares of the noise are
            added: see :mod:`ulam_kernels.squares`. backend: see :func:`ulam_kernels.backends`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or layout; a row that reads what was
            not given (checked on the CPU).
        IndexError: a row outside the table (checked on the CPU). On a GPU such rows make their chain NaN.
        RuntimeError: an argument requires grad while gradients are recorded: the operation has no derivative.
    """
    if torch.is_grad_enabled() or forward_ad._current_level >= 0:
        floats = {"state": state, "model": model, "uncond": uncond, "guidance": guidance}
        check_no_gradient("step", **floats, noise=noise, source=source)
    if not isinstance(table, Table):
        refuse_table(table)
    coef, flags = table.coef, table.flags
    given = state, net_in, squares, row, seed, chain, draw, model, uncond, noise, source, guidance, scales, coef, flags
    compiles = compiling()
    quick = not compiles and ready(*given)
    if compiles or (not quick and by_operator("step", *given)):  # the graph keeps one operator, which calls this
        ids = row, model, uncond, guidance, seed, chain, draw, noise
        torch.ops.ulam.step(state, coef, flags, *ids, net_in, scales, backend, source, squares)
        return
    model, uncond = operands(
        state, table, model, uncond, guidance, noise, last=True, net_in=net_in, scales=scales, source=source
    )
    if not quick:
        check_row(row, seed, chain, draw, state)
        model, uncond, noise, source, row, seed, chain, draw, guidance, scales, coef, flags = _put_aside(
            state, net_in, squares, model, uncond, noise, source, row, seed, chain, draw, guidance, scales, coef, flags
        )
    if state.numel() == 0:
        return
    if not table.uses & READS_Z:
        seed = chain = draw = None
    select(backend, state.device.type, state.dtype).step(
        state, coef, flags, row, model, uncond, guidance, seed, chain, draw, noise, net_in, scales, source, squares
    )
    written((state,) if net_in is None else (state, net_in))
    if squares is not None:
        written((squares,))


def _put_aside(
    state: torch.Tensor, net_in: torch.Tensor | None, squares: torch.Tensor | None, *reads: torch.Tensor | None
) -> tuple[Any, ...]:
    """What a step reads, apart from what it writes."""
    if squares is not None:
        check_squares(squares, state, net_in)
    return apart(reads, 4, state, net_in, squares)


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
    if torch.is_grad_enabled() or forward_ad._current_level >= 0:
        check_no_gradient("reduce", state=state, model=model, uncond=uncond, guidance=guidance, noise=noise, out=out)
    if not isinstance(table, Table):
        refuse_table(table)
    coef, flags = table.coef, table.flags
    reads = (state, coef, flags, row, model, uncond, guidance, seed, chain, draw, noise)
    if compiling() or (not eager(*reads, out) and by_operator("reduce", *reads, out)):
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
    written((out,))
    return out
