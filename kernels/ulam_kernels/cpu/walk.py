"""Whole chains of a small network in native code, and its weights as that code reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from ulam_kernels import _cpu
from ulam_kernels.native.addresses import addresses
from ulam_kernels.networks import Linear, Network

NARROW = 12  # columns that lie together for every k, as csrc/cpu/network_plan.h has them
ALIGNED = 16


class Packed(NamedTuple):
    """A network for native code, kept with it.

    code: int64. data: float32. weights: for each matrix two copies, one after another: blocks of 12 columns, and
    panels of as many as the instruction set asks for, each ``[blocks, k, columns]``, with zeros where there are fewer
    columns; panels of bf16 take half the room, and so does all of "bf16_dot", in pairs of k.
    work: multiplications of one evaluation. panel: columns of a panel.
    """

    code: torch.Tensor
    data: torch.Tensor
    weights: torch.Tensor
    work: int
    panel: int


def packed(network: Network) -> Packed:
    found: Packed | None = network.__dict__.get("packed")
    panel = _cpu.panel_columns()
    if found is None or found.panel != panel:
        matrices = [w for i in network.instructions if isinstance(i, Linear) for w in i.weights]
        if network.precision == "bf16_dot":
            matrices = [_pairs(matrix) for matrix in matrices]
        panels = _halves if network.precision == "bf16" else _columns
        parts = [part for matrix in matrices for part in (_columns(matrix, NARROW), panels(matrix, panel))]
        weights = torch.cat(parts) if parts else torch.zeros(ALIGNED)
        work = 1 + sum(matrix.numel() for matrix in matrices)
        found = Packed(torch.tensor(network.code), network.data, weights, work, panel)
        network.__dict__["packed"] = found
    return found


def _columns(matrix: torch.Tensor, columns: int) -> torch.Tensor:
    out, depth = matrix.shape
    blocks = -(-out // columns)
    padded = matrix.new_zeros(blocks * columns, depth)
    padded[:out] = matrix
    flat = padded.view(blocks, columns, depth).transpose(1, 2).flatten()
    return torch.cat([flat, flat.new_zeros(-len(flat) % ALIGNED)])


def _pairs(matrix: torch.Tensor) -> torch.Tensor:
    """Words for products of pairs: column 2 k in the lower half, 2 k + 1 in the upper one, the bits of bf16."""
    even = torch.nn.functional.pad(matrix, (0, matrix.shape[1] % 2)).view(torch.int32)
    return (even[:, 1::2] & -0x10000 | even[:, 0::2] >> 16 & 0xFFFF).contiguous().view(torch.float32)


def _halves(matrix: torch.Tensor, panel: int) -> torch.Tensor:
    """Panels of words: of 32 columns, number j in the lower half and j + 16 in the upper one, the bits of bf16."""
    words = _columns(matrix, panel).view(torch.int32).view(-1, panel // 32, 2, 16)
    return (words[:, :, 1] & -0x10000 | words[:, :, 0] >> 16 & 0xFFFF).flatten().view(torch.float32)


def bound_walk(
    states: torch.Tensor,
    coef: torch.Tensor,
    flags: torch.Tensor,
    cursor: torch.Tensor,
    network: Network,
    *reads: torch.Tensor | None,
    fixed: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> Callable[[int], None]:
    """A walk as a function of the count of rows. reads: net_in, seed, chain and the vectors, in this order."""
    known = packed(network)
    tensors = (states, coef, flags, cursor, *reads, fixed, mask)  # alive: their addresses are held
    registers, chains = states.shape[:2]
    net_in, seed, chain, *vectors = addresses(reads)
    places = states.data_ptr(), coef.data_ptr(), flags.data_ptr(), len(flags), cursor.data_ptr()
    first: tuple[int, ...] = (chains, network.inputs, registers, *places)
    packed_at = known.code.data_ptr(), known.data.data_ptr(), known.weights.data_ptr(), known.work
    each = 0 if mask is None or mask.dim() < states.dim() - 1 else network.inputs  # one mask, or one a chain
    rest: tuple[int, ...] = (net_in, seed, chain, *packed_at, *vectors, *addresses((fixed, mask)), each)

    def run(steps: int) -> None:
        if known.panel != (now := _cpu.panel_columns()):
            raise RuntimeError(f"instruction set: got panels of {now}, expected {known.panel}, or bind anew")
        arguments: tuple[int, ...] = (*first, steps, *rest, torch.get_num_threads())
        _cpu.walk(*arguments)

    run.__dict__["alive"] = tensors, known
    return run


def call_network(
    network: Network,
    x: torch.Tensor,
    row_vector: torch.Tensor | None,
    chain_vectors: torch.Tensor | None,
    out: torch.Tensor,
    energy: torch.Tensor | None,
) -> None:
    """The output at ``x``, and the energy: see :func:`ulam_kernels.evaluate_network`."""
    known = packed(network)
    packed_at = known.code.data_ptr(), known.data.data_ptr(), known.weights.data_ptr(), known.work
    row, chain, energy_at = addresses((row_vector, chain_vectors, energy))
    rest = row, chain, out.data_ptr(), energy_at, torch.get_num_threads()
    _cpu.call_network(len(x), x.data_ptr(), *packed_at, *rest)
