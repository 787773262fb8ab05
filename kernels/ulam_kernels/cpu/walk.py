"""Whole chains of a small network in native code, and its weights as that code reads them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ulam_kernels import _cpu
from ulam_kernels.native.addresses import address
from ulam_kernels.networks import Linear, Network

NARROW, PANEL = 8, 128  # columns that lie together for every k, as csrc/cpu/network_plan.h has them
ALIGNED = 16


class Packed(NamedTuple):
    """A network for native code, kept with it.

    code: int64. data: float32. weights: for each matrix two copies, one after another: blocks of 8 columns, and panels
    of 32, each ``[columns / 8 or 32, k, 8 or 32]``, with zeros where there are fewer columns. work: multiplications of
    one evaluation.
    """

    code: torch.Tensor
    data: torch.Tensor
    weights: torch.Tensor
    work: int


def packed(network: Network) -> Packed:
    found: Packed | None = network.__dict__.get("packed")
    if found is None:
        matrices = [w for i in network.instructions if isinstance(i, Linear) for w in i.weights]
        parts = [_columns(matrix, columns) for matrix in matrices for columns in (NARROW, PANEL)]
        weights = torch.cat(parts) if parts else torch.zeros(ALIGNED)
        work = 1 + sum(matrix.numel() for matrix in matrices)
        found = Packed(torch.tensor(network.code), network.data, weights, work)
        network.__dict__["packed"] = found
    return found


def _columns(matrix: torch.Tensor, columns: int) -> torch.Tensor:
    out, depth = matrix.shape
    blocks = -(-out // columns)
    padded = matrix.new_zeros(blocks * columns, depth)
    padded[:out] = matrix
    flat = padded.view(blocks, columns, depth).transpose(1, 2).flatten()
    return torch.cat([flat, flat.new_zeros(-len(flat) % ALIGNED)])


def walk(
    states: torch.Tensor,
    coef: torch.Tensor,
    flags: torch.Tensor,
    cursor: torch.Tensor,
    network: Network,
    steps: int,
    net_in: torch.Tensor | None,
    seed: torch.Tensor | None,
    chain: torch.Tensor | None,
    row_vectors: torch.Tensor | None,
    chain_vectors: torch.Tensor | None,
    uncond_vectors: torch.Tensor | None,
    guidance: torch.Tensor | None,
) -> None:
    known = packed(network)
    registers, chains = states.shape[:2]
    _cpu.walk(
        chains,
        network.inputs,
        registers,
        states.data_ptr(),
        coef.data_ptr(),
        flags.data_ptr(),
        len(flags),
        cursor.data_ptr(),
        steps,
        address(net_in),
        address(seed),
        address(chain),
        known.code.data_ptr(),
        known.data.data_ptr(),
        known.weights.data_ptr(),
        known.work,
        address(row_vectors),
        address(chain_vectors),
        address(uncond_vectors),
        address(guidance),
        torch.get_num_threads(),
    )
