"""The public operations: validated once here, executed by one of the backends.

Every operation works on a batch of independent chains: the leading dimension (the second of ``state``) counts
chains, and per-chain arguments are one-dimensional tensors of that length.
"""

from __future__ import annotations

import torch

from ulam_kernels.dispatch import select
from ulam_kernels.table import Table

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
MAX_ELEMENTS = 1 << 30  # noise-v1 counts a chain's elements in 30 bits


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
    backend: str | None = None,
) -> None:
    """Execute one row of ``table`` on every chain, in place on ``state``.

    For chain b at row n = row[b], in fp32 with one rounding an operation and in this order::

        m   = uncond + w (model - uncond)                     w = guidance[b]; w = 1 and w = 0 take their side as it is
        D   = clip(kx r_0 + km m, lo, hi)
        z   = exp(lv_m v + lv_b) z                            rows with a learned variance
        r_i = sum_j A_ij r_j + A_iD D + A_im m + A_iz z       for each register the row writes
        net_in = c_next r_0

    A term whose coefficient is 0 is not read. A row that writes no register leaves its chain alone wholly. z is
    noise-v1 normal number e of (seed, chain, draw), tag 0, at element e.

    Args:
        state: ``[R, B, *shape]`` registers, contiguous; float32, bfloat16 or float16 (float64: reference backend).
        table: the rows; float32 (float64 with a float64 state).
        row: ``[B]`` int64, indices into the table.
        model: ``[B, *shape]`` network output, or ``[B, 2 C, ...]`` for ``shape = [C, ...]``: m, then v. Any float
            type and any strides; may be ``state[0]`` itself.
        uncond: the unconditional output, like ``model``; needs ``guidance``.
        guidance: ``[B]`` float32 weights.
        seed, chain, draw: ``[B]`` int64, read as unsigned; draw = 16 * noise row + stage.
        noise: ``[B, *shape]`` float32 (float64 with a float64 state), used in place of the generated z.
        net_in: ``[B, *shape]`` float32, bfloat16 or float16, contiguous: receives the next row's network input.
        backend: see :func:`ulam_kernels.backends`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or layout.
        IndexError: a row outside the table (checked on the CPU).
    """
    if torch.compiler.is_compiling():  # the graph keeps one operator, which comes back here when it runs
        torch.ops.ulam.step(
            state, table.coef, table.flags, row, model, uncond, guidance, seed, chain, draw, noise, net_in, backend
        )
        return
    if state.dim() < 2:
        raise ValueError(f"state: got shape {list(state.shape)}, expected [R, B, *shape]")
    registers, sample = state.shape[0], state.shape[1:]
    per_chain, device, dtype = sample[:1], state.device, state.dtype
    if registers != table.registers:
        raise ValueError(f"state: got {registers} registers, but the table has {table.registers}")
    if dtype not in FLOATS and dtype != torch.float64:
        raise TypeError(f"state: got dtype {dtype}, expected float32, bfloat16, float16 or float64")
    if not state.is_contiguous():
        raise ValueError("state: must be contiguous, it is updated in place")
    if state.numel() > registers * sample[0] * MAX_ELEMENTS:
        raise ValueError(f"state: got shape {list(state.shape)}, a chain may have at most 2^30 elements")
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    coef = table.coef
    if coef.dtype != wanted or coef.device != device:
        raise ValueError(f"table: is {coef.dtype} on {coef.device}, expected {wanted} on {device}")
    _check(row, "row", torch.int64, device, per_chain)
    model = _model(model, "model", state, sample)
    if uncond is not None:
        uncond = _model(uncond, "uncond", state, sample)
        if model is None or uncond is None or model.dtype != uncond.dtype or model.shape != uncond.shape:
            raise ValueError("uncond: must have the shape and dtype of model")
        if guidance is None:
            raise ValueError("guidance: got None, expected float32 weights [B] beside uncond")
        _check(guidance, "guidance", torch.float32, device, per_chain)
    if seed is not None:
        _check(seed, "seed", torch.int64, device, per_chain)
    if chain is not None:
        _check(chain, "chain", torch.int64, device, per_chain)
    if draw is not None:
        _check(draw, "draw", torch.int64, device, per_chain)
    if noise is not None:
        _check(noise, "noise", wanted, device, sample)
    if net_in is not None:
        _check(net_in, "net_in", net_in.dtype if dtype == torch.float64 else None, device, sample)
    select(backend, device.type, dtype).step(
        state, coef, table.flags, row, model, uncond, guidance, seed, chain, draw, noise, net_in
    )


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
        offset: index of the first element, for samples that are sharded.

    Returns:
        ``out``.

    Raises:
        TypeError, ValueError: as :func:`step`.
    """
    if torch.compiler.is_compiling():
        torch.ops.ulam.fill_normal(out, seed, chain, draw, tag, scale, offset, backend)
        return out
    if out.dim() < 1:
        raise ValueError("out: got a scalar, expected [B, *shape]")
    chains = out.shape[0]
    if out.dtype not in FLOATS and out.dtype != torch.float64:
        raise TypeError(f"out: got dtype {out.dtype}, expected float32, bfloat16, float16 or float64")
    if not out.is_contiguous():
        raise ValueError("out: must be contiguous")
    if not 0 <= tag <= 14:
        raise ValueError(f"tag: got {tag}, expected 0 to 14")
    elements = out.numel() // chains if chains else 0
    if offset < 0 or offset + elements > MAX_ELEMENTS:
        raise ValueError(f"offset: elements {offset} to {offset + elements} reach beyond [0, 2^30]")
    for name, ids in (("seed", seed), ("chain", chain), ("draw", draw)):
        _check(ids, name, torch.int64, out.device, (chains,))
    select(backend, out.device.type, out.dtype).fill_normal(out, seed, chain, draw, tag, scale, offset)
    return out


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

    Args:
        x, m: ``[B, *shape]``, any float types. a, b: ``[B]`` float32 (float64 where x or m is). A zero coefficient's
            term is not read.
        out: ``[B, *shape]``, contiguous; by default a new tensor of the promoted dtype of x and m.

    Raises:
        TypeError, ValueError: as :func:`step`.
    """
    if torch.compiler.is_compiling():
        if out is None:
            return torch.ops.ulam.affine(x, m, a, b, backend)  # type: ignore[no-any-return]
        torch.ops.ulam.affine_out(x, m, a, b, out, backend)
        return out
    if x.shape != m.shape or x.dim() < 1:
        raise ValueError(f"m: got shape {list(m.shape)}, expected that of x, {list(x.shape)}, with chains first")
    for name, tensor in (("x", x), ("m", m)):
        if tensor.dtype not in FLOATS and tensor.dtype != torch.float64:
            raise TypeError(f"{name}: got dtype {tensor.dtype}, expected a float type")
    if out is None:
        out = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, m.dtype), device=x.device)
    wide = torch.float64 in (x.dtype, m.dtype, out.dtype)
    wanted = torch.float64 if wide else torch.float32
    _check(m, "m", m.dtype, x.device, x.shape, contiguous=False)
    _check(out, "out", out.dtype if wide else None, x.device, x.shape)
    _check(a, "a", wanted, x.device, x.shape[:1])
    _check(b, "b", wanted, x.device, x.shape[:1])
    select(backend, x.device.type, wanted).affine(x.contiguous(), m.contiguous(), a, b, out)
    return out


def _check(
    tensor: torch.Tensor,
    name: str,
    dtype: torch.dtype | None,
    device: torch.device,
    shape: tuple[int, ...],
    contiguous: bool = True,
) -> None:
    """Raise unless the tensor has this dtype (None: one of FLOATS), device and shape."""
    if tensor.shape != shape:
        raise ValueError(f"{name}: got shape {list(tensor.shape)}, expected {list(shape)}")
    if tensor.dtype != dtype and (dtype is not None or tensor.dtype not in FLOATS):
        raise TypeError(f"{name}: got dtype {tensor.dtype}, expected {dtype or 'float32, bfloat16 or float16'}")
    if tensor.device != device:
        raise ValueError(f"{name}: is on {tensor.device}, expected {device} like the other tensors")
    if contiguous and not tensor.is_contiguous():
        raise ValueError(f"{name}: must be contiguous")


def _model(model: torch.Tensor | None, name: str, state: torch.Tensor, sample: torch.Size) -> torch.Tensor | None:
    """Check a network output; return it contiguous, and apart from the registers unless it is r_0 exactly."""
    if model is None:
        return None
    if model.shape != sample:
        doubled = (*sample[:1], 2 * sample[1], *sample[2:]) if len(sample) > 1 else sample
        if model.shape != doubled:
            raise ValueError(f"{name}: got shape {list(model.shape)}, expected {list(sample)} (or twice the channels)")
    if model.dtype not in FLOATS and model.dtype != torch.float64:
        raise TypeError(f"{name}: got dtype {model.dtype}, expected a float type")
    if model.device != state.device:
        raise ValueError(f"{name}: is on {model.device}, expected {state.device} like the other tensors")
    if model.dtype == torch.float64 != state.dtype:
        model = model.to(torch.float32)
    if not model.is_contiguous():
        return model.contiguous()
    if model.untyped_storage().data_ptr() == state.untyped_storage().data_ptr():
        exact = model.data_ptr() == state.data_ptr() and model.dtype == state.dtype and model.shape == sample
        return model if exact else model.clone()
    return model
