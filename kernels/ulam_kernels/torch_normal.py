"""The normals of torch's CPU generator, bit for bit, in a fraction of torch's time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch

from ulam_kernels.arguments import described
from ulam_kernels.autograd import written
from ulam_kernels.operator import operator
from ulam_kernels.tracing import eager
from ulam_kernels.validation import check_tensor


@operator("torch_normal(Tensor(a!) out) -> ()", tags=(torch.Tag.nondeterministic_seeded,))
def torch_normal(out: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Fill ``out`` as ``out.normal_(generator=generator)`` does: the same bits, and the same state afterwards.

    For contiguous ``out`` this is what ``torch.randn(out.shape, dtype=out.dtype, generator=generator)`` gives. Native
    code serves contiguous float32 on the CPU with at least 16 elements: mt19937's words w give
    u = (w mod 2^24) / 2^24, and in every group of 16 the pairs (j, j + 8) become

        sqrt(-2 ln(1 - u_j)) (cos 2 pi u_{j+8}, sin 2 pi u_{j+8})        (Box and Muller 1958)

    in the arithmetic of torch's AVX2 code; an uneven size has its last 16 values drawn anew. All else falls through to
    torch itself: other dtypes, devices and layouts, smaller sizes, tensors that require gradients, processors without
    AVX2, a generator's state of unknown form, and a torch whose normals differ (tried once, on first use).

    Args:
        out: any shape; overwritten. Its transform runs on ``torch.get_num_threads()`` threads, without the GIL.
        generator: a CPU generator, by default torch's own. As with torch's operations on a state
            (``get_state``, ``set_state``), no other thread may draw from it meanwhile.

    Returns:
        ``out``.

    Raises:
        RuntimeError, NotImplementedError: as ``Tensor.normal_``, for example for a generator of another device.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: got {described(generator)}, expected a torch.Generator")
    if torch.compiler.is_compiling():
        if generator is not None:  # which no graph holds
            from ulam_kernels.outside import call

            filled: torch.Tensor = call(torch_normal, out, generator)
            return filled
        torch.ops.ulam.torch_normal(out)
        return out
    # what records, fakes or wraps the call would miss the native code's writing
    apt = (
        isinstance(out, torch.Tensor)
        and eager(out)
        and out.dtype == torch.float32
        and out.device.type == "cpu"
        and out.is_contiguous()
    )
    native = _native() if apt and not out.requires_grad and not out.is_neg() else None
    if native is None or not _filled(native, out, torch.default_generator if generator is None else generator):
        if not isinstance(out, torch.Tensor):
            check_tensor(out, "out")
        try:
            out.normal_(generator=generator)
        except RuntimeError as error:
            said = str(error).splitlines()[0][:200]
            raise type(error)(f"out: got {described(out)}, expected what Tensor.normal_ takes: {said}") from None
    return out


def _filled(native: Callable[..., bool], out: torch.Tensor, generator: torch.Generator) -> bool:
    """Whether native code understood the generator's state, filled `out` and moved the generator on."""
    state = generator.get_state()
    filled = native(out.data_ptr(), out.numel(), state.data_ptr(), state.numel(), torch.get_num_threads())
    if filled:
        generator.set_state(state)
        written((out,))
    return filled


@cache
def _native() -> Callable[..., bool] | None:
    """The native function, if it is there and reproduces this torch: 5000 normals and the state behind them."""
    try:
        from ulam_kernels._cpu import torch_normal as native
    except ImportError:
        return None
    theirs, ours = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    expected = torch.empty(5000).normal_(generator=theirs)
    out = torch.empty_like(expected)
    same = _filled(native, out, ours) and torch.equal(out.view(torch.int32), expected.view(torch.int32))
    if same and torch.equal(ours.get_state(), theirs.get_state()):
        return native
    logging.getLogger("ulam").warning("torch_normal: torch itself draws, since native code does not give its bits here")
    return None
