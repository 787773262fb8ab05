"""Shapes of launches: plain functions of the sizes, the same on every call and never tuned at run time."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

TILE = 1024  # elements of one chain in a program of a long-chain kernel
BLOCKS = 128  # blocks of four elements, of one or many chains, in a program of a short-chain kernel
LONGEST_SHORT = 512  # above it a chain fills at least half a TILE
MAX_GRID_Y = 65535
EXACT = {"enable_fp_fusion": False}  # a product fused into a sum changes bits: never left to a default


def elements_per_chain(tensor: torch.Tensor) -> int:
    """Elements of one chain in ``[B, *shape]``, 0 for no chains."""
    return tensor.numel() // tensor.shape[0] if tensor.shape[0] else 0


def long_grid(chains: int, elements: int) -> tuple[int, int, int]:
    """(tiles of a chain, chains in y, y slices): the last slice may reach beyond the chains."""
    slices = -(-chains // MAX_GRID_Y)
    return -(-elements // TILE), -(-chains // slices), slices


def blocks_shift(elements: int) -> int:
    """log2 of the blocks of four that a short chain gets: enough of them, a power of two."""
    return (-(-elements // 4) - 1).bit_length()


def short_grid(chains: int, shift: int) -> tuple[int]:
    """Programs that hold every short chain, 2^shift blocks each."""
    return (-(-chains // (BLOCKS >> shift)),)


def long_options(registers: int = 1) -> dict[str, object]:
    """Compile options of a long-chain kernel: 16 elements a thread, 8 where more would not fit its registers."""
    return {"num_warps": 2 if registers == 1 else 4, **EXACT}


def short_options() -> dict[str, object]:
    """Compile options of a short-chain kernel: one block a thread, which holds its chain's coefficients."""
    return {"num_warps": BLOCKS // 32, **EXACT}


def on_device(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device: make that the tensor's, at no cost where it is already."""
    if not tensor.is_cuda or tensor.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)
