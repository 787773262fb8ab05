"""Whole chains of a small network in one call: their rows, the network included."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from ulam_kernels.arguments import described, whole
from ulam_kernels.autograd import check_no_gradient, written
from ulam_kernels.dispatch import name_of, select_for_networks
from ulam_kernels.networks import Network
from ulam_kernels.table import Table
from ulam_kernels.tick import CURSOR_LINES
from ulam_kernels.tracing import check_not_recorded, outside_graphs
from ulam_kernels.validation import apart, check, check_ids, check_memory_of_its_own, check_tensor, refuse_table

MAX_STEPS = (1 << 31) - 1
Tensor = torch.Tensor | None


@outside_graphs
def walk(
    states: torch.Tensor, table: Table, cursor: torch.Tensor, network: Network, *, steps: int,
    net_in: Tensor = None, seed: Tensor = None, chain: Tensor = None,
    row_vectors: Tensor = None, chain_vectors: Tensor = None, uncond_vectors: Tensor = None, guidance: Tensor = None,
    known: Tensor = None, mask: Tensor = None, backend: str | None = None,
) -> None:  # fmt: skip
    """Execute ``steps`` rows of every chain with an evaluation of the network before each, in place.

    The same as so many times :func:`ulam_kernels.advance` with :func:`ulam_kernels.step`::

        m      = network(net_in, row_vectors[row], chain_vectors), where net_in is given, else of states[0]
        uncond = network(net_in, row_vectors[row], uncond_vectors), where they are given
        now    = (row, draw); chains whose outputs are not finite stop, the others go on: see `advance`
        states, net_in = what the row at ``now`` makes of them: see `step`; rows with a reduction included
        states[0] = known where mask, net_in = c_next known there, if the row writes

    A chain at row 0, the idle row, is left as it is, and costs nothing if its row does not advance. Chains at weight 1
    do not need the unconditional output, nor those at weight 0 the conditional one, unless its second half holds v.
    A chain's bits depend on nothing but its own numbers.

    Args:
        states: ``[R, B, *shape]`` registers of n elements, float32 (float64: reference backend), contiguous.
        table: the rows; float32 (float64 with float64 states).
        cursor: ``[6, B]`` int64, contiguous: as `advance` has it. Every row on the way must be in the table.
        network: of n inputs; n outputs (m), or 2 n (m, then v).
        steps: how many rows each chain executes.
        net_in: ``[B, *shape]`` like states[0]: what the network reads; receives c_next r_0 of every row.
        seed, chain: ``[B]`` int64, the ids of the noise; needed where a row reads noise.
        row_vectors: ``[rows, network.row_width]``, what the network reads of each row; None where the width is 0.
        chain_vectors: ``[B, network.chain_width]``, what it reads of each chain; None where the width is 0.
        uncond_vectors: like ``chain_vectors``, of the other branch of guidance; needs ``guidance``.
        guidance: ``[B]`` float32 weights; read where ``uncond_vectors`` are given.
        known: ``[B, *shape]`` like states[0]: elements that are written back after each row, those of ``mask``, as
            planners hold the states that they know [Janner 2022]. The caller writes them before the first row.
        mask: bool ``[*shape]``, or ``[B, *shape]`` for each chain its own.
        backend: "cpu", "triton" or "reference"; others do not have this operation.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or layout; a row that reads what is
            not there (native: before anything is written; Triton: that chain becomes NaN).
        IndexError: a row outside the table (Triton: that chain stops before it).
        RuntimeError: an argument requires grad while gradients are recorded, or torch records or transforms the call.
    """
    given = {"net_in": net_in, "row_vectors": row_vectors, "chain_vectors": chain_vectors,
             "uncond_vectors": uncond_vectors, "guidance": guidance, "known": known, "mask": mask}  # fmt: skip
    check_no_gradient("walk", states=states, **given)
    check_not_recorded("walk", states, cursor, seed, chain, *given.values())
    _check(states, table, cursor, network, seed, chain, **given)
    steps = whole(steps, "steps", 0, MAX_STEPS)
    module = select_for_networks(backend, states.device.type, states.dtype)
    _check_written(states, cursor, net_in)
    reads = (seed, chain, row_vectors, chain_vectors, uncond_vectors, guidance, table.coef, table.flags, known, mask)
    reads = apart(apart(reads, 0, states, net_in), 0, cursor)
    seed, chain, row_vectors, chain_vectors, uncond_vectors, guidance, coef, flags, known, mask = reads
    if states.numel() and steps:
        run = module.bound_walk(states, coef, flags, cursor, network, net_in, seed, chain, row_vectors, chain_vectors,
                                uncond_vectors, guidance, **_options(module, known, mask))  # fmt: skip
        run(steps)
    written((states, cursor) if net_in is None else (states, cursor, net_in))


class BoundWalk:
    """:func:`walk` on tensors that stay where they are: what does not change is checked once, here.

    Arguments, errors and results are those of :func:`walk`; what is written shares no memory with what is read.
    reduces: whether a row on the way has a reduction. By default the table says so here, for which the host waits for
    a GPU; a reduction that was denied makes its chain NaN there.
    """

    def __init__(
        self, states: torch.Tensor, table: Table, cursor: torch.Tensor, network: Network, *,
        net_in: Tensor = None, seed: Tensor = None, chain: Tensor = None, row_vectors: Tensor = None,
        chain_vectors: Tensor = None, uncond_vectors: Tensor = None, guidance: Tensor = None,
        known: Tensor = None, mask: Tensor = None, backend: str | None = None, reduces: bool | None = None,
    ) -> None:  # fmt: skip
        given = {"net_in": net_in, "row_vectors": row_vectors, "chain_vectors": chain_vectors,
                 "uncond_vectors": uncond_vectors, "guidance": guidance, "known": known, "mask": mask}  # fmt: skip
        self._given = {name: tensor for name, tensor in {"states": states, **given}.items() if tensor is not None}
        check_no_gradient("walk", **self._given)
        check_not_recorded("walk", states, cursor, seed, chain, *given.values())
        _check(states, table, cursor, network, seed, chain, **given)
        module = select_for_networks(backend, states.device.type, states.dtype)
        _check_written(states, cursor, net_in)
        reads = (
            seed,
            chain,
            row_vectors,
            chain_vectors,
            uncond_vectors,
            guidance,
            known,
            mask,
            table.coef,
            table.flags,
        )
        names = ("seed", "chain", *list(given)[1:], "coef", "flags")
        for other in (states, cursor, *(() if net_in is None else (net_in,))):
            for name, tensor, private in zip(names, reads, apart(reads, 0, other), strict=True):
                if tensor is not private:
                    raise ValueError(f"{name}: got memory shared with what is written, expected memory of its own")
        self._written = (states, cursor) if net_in is None else (states, cursor, net_in)
        vectors = row_vectors, chain_vectors, uncond_vectors, guidance
        self._run = module.bound_walk(states, table.coef, table.flags, cursor, network, net_in, seed, chain, *vectors,
                                      **_options(module, known, mask, reduces))  # fmt: skip

    def __call__(self, steps: int) -> None:
        """Execute ``steps`` rows of every chain.

        Raises:
            TypeError, ValueError, IndexError, RuntimeError: see :func:`walk`.
        """
        check_no_gradient("walk", **self._given)
        check_not_recorded("walk")
        steps = whole(steps, "steps", 0, MAX_STEPS)
        if self._written[0].numel() and steps:
            self._run(steps)
        written(self._written)


def prepare(network: Network, device: torch.device, backend: str | None = None) -> None:
    """Put the network's numbers on a GPU, for which the host waits: the first walk there need not. Else nothing."""
    if device.type == "cuda":
        select_for_networks(backend, device.type, torch.float32).packed(network, device)


def _options(module: ModuleType, known: Tensor, mask: Tensor, reduces: bool | None = None) -> dict[str, Any]:
    """What a backend takes beside the rest: what it is told of the rows, and elements that are known."""
    given: dict[str, Any] = {} if known is None else {"fixed": known, "mask": mask}
    return given if name_of(module) in ("cpu", "reference") else given | {"reduces": reduces}


def _check_written(states: torch.Tensor, cursor: torch.Tensor, net_in: Tensor) -> None:
    if net_in is None:
        check_memory_of_its_own(states=states, cursor=cursor)
    else:
        check_memory_of_its_own(states=states, cursor=cursor, net_in=net_in)


def _check(
    states: torch.Tensor, table: Table, cursor: torch.Tensor, network: Network, seed: Tensor, chain: Tensor, *,
    net_in: Tensor, row_vectors: Tensor, chain_vectors: Tensor, uncond_vectors: Tensor, guidance: Tensor,
    known: Tensor, mask: Tensor,
) -> None:  # fmt: skip
    if not isinstance(table, Table):
        refuse_table(table)
    if not isinstance(network, Network):
        raise TypeError(f"network: got {described(network)}, expected an ulam_kernels.networks.Network")
    check_tensor(states, "states")
    if states.dtype not in (torch.float32, torch.float64) or states.dim() < 3:
        raise TypeError(f"states: got {described(states)}, expected a float32 tensor [R, B, *shape]")
    check(states, "states", states.dtype, states.device, states.shape)
    device, dtype, chains = states.device, states.dtype, states.shape[1:2]
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"states: got a tensor on {device}, expected one on cpu or cuda")
    if states.shape[0] != table.registers:
        raise ValueError(f"states: got {states.shape[0]} registers, expected {table.registers} like the table")
    if states.shape[2:].numel() != network.inputs:
        raise ValueError(f"states: got shape {list(states.shape)}, expected {network.inputs} elements a chain")
    if table.coef.dtype != dtype or table.coef.device != device:
        raise ValueError(f"table: got {table.coef.dtype} on {table.coef.device}, expected {dtype} on {device}")
    check(cursor, "cursor", torch.int64, device, (CURSOR_LINES, *chains))
    check_ids(seed, chain, None, device, chains)
    if (seed is None) != (chain is None):
        raise ValueError("seed, chain: got one of them, expected both or neither")
    if net_in is not None:
        check(net_in, "net_in", dtype, device, states.shape[1:])
    for name, vectors, count, width in (
        ("row_vectors", row_vectors, len(table), network.row_width),
        ("chain_vectors", chain_vectors, *chains, network.chain_width),
    ):
        if vectors is not None:
            check(vectors, name, dtype, device, (count, width))
        elif width:
            raise ValueError(f"{name}: got None, expected a tensor [{count}, {width}], which the network reads")
    if (known is None) != (mask is None):
        raise ValueError("known, mask: got one of them, expected both or neither")
    if known is not None and mask is not None:
        check(known, "known", dtype, device, states.shape[1:])
        check_tensor(mask, "mask")
        own = mask.dim() == states.dim() - 1
        check(mask, "mask", torch.bool, device, states.shape[1:] if own else states.shape[2:])
    if uncond_vectors is None:
        if guidance is not None:
            raise ValueError("uncond_vectors: got None, expected a tensor like chain_vectors beside guidance")
        return
    check(uncond_vectors, "uncond_vectors", dtype, device, (*chains, network.chain_width))
    if guidance is None:
        raise ValueError("guidance: got None, expected float32 weights [B] beside uncond_vectors")
    check(guidance, "guidance", torch.float32, device, chains)
