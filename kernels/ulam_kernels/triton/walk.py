"""Whole chains of a small network in one launch, in Triton: a program walks a tile of chains over all their rows.

For each row it evaluates the network (see ``network.py``), stops chains whose output is not finite, reduces where rows
do, and executes the row, by the bodies of the kernels of those operations: the arithmetic, its order and the noise are
theirs. Between them outputs, states and cursors pass through memory that the program alone touches while it runs, and
that its multiprocessor's cache holds.

A tile has as many chains as the network alone says, and idle ones where there are fewer, so that a chain's bits do not
depend on the others. A row outside the table stops its chain, as an output does that is not finite; one that reads what
was not given makes it NaN, as in `step`.
"""
# mypy: disable-error-code="assignment, no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ulam_kernels import table
from ulam_kernels.networks import HEADER, LAYER_NORM, LINEAR, UNARY, LayerNormGradient, Linear, Network, Unary
from ulam_kernels.triton.execute import execute
from ulam_kernels.triton.launch import EXACT, blocks_shift, on_device
from ulam_kernels.triton.network import LEAST, evaluate, padded, room, whole_matrices, width, words
from ulam_kernels.triton.reduce import reduce_tile
from ulam_kernels.triton.row import C_NEXT, MATRIX, PER_CHAIN, REDUCED, WRITES, any_of
from ulam_kernels.triton.tick import advance_tile

NARROW = 64  # a network of at most this width has its matrices on chip, whole
PROGRAMS = 528  # of a wider one at a time: four a multiprocessor of the largest GPUs
BYTES = {"float32": 4, "bf16": 2, "bf16_dot": 2, "tf32x3": 8}  # of a number of a matrix in shared memory
HELD_BYTES = 56 * 1024  # at most
LARGE, SMALL = 160 * 1024, 96 * 1024  # bytes of shared memory, of sm_80's 163 KiB and of sm_86's 99
MOST_REGISTERS = 255  # else the assembler may keep to 128, for a second program that shared memory has no room for
# Read one number at a time, or at addresses that are not known when the kernel is compiled.
ANYWHERE = [*PER_CHAIN, "cursor", "net_in", "row_vectors", "chain_vectors", "uncond_vectors", "known", "mask"]
CALLED = ["x", "row_vector", "chain_vectors", "out"]


@triton.jit
def evaluate_branches(
    x, at_row, row_vectors, chain_vectors, uncond_vectors, guidance, model, uncond, held, weights, numbers, own,
    b, live, CODE: tl.constexpr, PLACES: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the outputs of chains ``b`` that are ``live``; where ``at_row`` is -1, outside the table, they are NaN."""
    OUTPUTS: tl.constexpr = width(CODE, CODE[3])
    CROWDED: tl.constexpr = PRECISION == "tf32x3" and STAGES == 1  # else what is ahead of the loop fills local memory
    for branch in tl.range(0, 1 if uncond is None else 2, disable_licm=CROWDED):
        vectors = chain_vectors
        out = model
        reads = live
        if uncond is not None:
            w = tl.load(guidance + b, mask=live, other=1.0)
            if branch == 0:
                if CODE[0] == OUTPUTS:
                    reads = live & (w != 0)
            else:
                vectors = uncond_vectors
                out = uncond
                reads = live & (w != 1)
        if any_of(reads):
            of_chain = vectors + tl.where(live, b, 0) * CODE[2]
            at = weights, numbers, row_vectors, of_chain, own, tl.maximum(at_row, 0), CODE[1]
            y = evaluate(x, held, at, CODE, PLACES, DEPTH, STAGES, PRECISION)
            j = tl.arange(0, room(OUTPUTS))[None, :]
            tl.store(out + b * OUTPUTS + j, tl.where(at_row >= 0, y, float("nan")), mask=reads & (j < OUTPUTS))


@triton.jit
def write_back(state, net_in, known, mask, mask_stride, coef, flags, now, c, moves, i, N, COLUMNS: tl.constexpr):
    """Chains ``c`` whose row has written have their known elements again, in x and, scaled, in what the network reads.

    mask_stride: how far the masks of two chains are apart, 0 where they share one.
    """
    row = tl.load(now + c, mask=moves, other=0)
    stays = ((tl.load(flags + row, mask=moves, other=0) & WRITES) != 0) & (i < N)
    stays = stays & (tl.load(mask + c.to(tl.int64) * mask_stride + i, mask=stays, other=0) != 0)
    at = c.to(tl.int64) * N + i
    y = tl.load(known + at, mask=stays, other=0.0)
    tl.store(state + at, y, mask=stays)
    if net_in is not None:
        scale = tl.load(coef + row * COLUMNS + C_NEXT, mask=moves, other=0.0)
        tl.store(net_in + at, scale * y, mask=stays)


@triton.jit
def walk_row(
    state, coef, flags, cursor, net_in, seed, chain, row_vectors, chain_vectors, uncond_vectors, guidance,
    known, mask, mask_stride, held, weights, numbers, own, now, model, uncond, scales, first, chains, rows,
    R: tl.constexpr, MISSING: tl.constexpr, CODE: tl.constexpr, PLACES: tl.constexpr, CHAINS: tl.constexpr,
    SHIFT: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A row of the chains from ``first`` on, each of at most 2^SHIFT blocks of four elements."""
    N: tl.constexpr = CODE[0]
    HALVES: tl.constexpr = width(CODE, CODE[3]) // N
    lines = first + tl.arange(0, CHAINS)
    b = lines.to(tl.int64)[:, None]
    row = tl.load(cursor + b, mask=b < chains, other=0)
    live = (b < chains) & (row != 0)
    k = tl.arange(0, room(N))[None, :]
    x_at = net_in
    if net_in is None:
        x_at = state
    x = tl.load(x_at + b * N + k, mask=live & (k < N), other=0.0)
    at_row = tl.where((row >= 0) & (row < rows), row, -1).to(tl.int32)
    evaluate_branches(x, at_row, row_vectors, chain_vectors, uncond_vectors, guidance, model, uncond, held, weights,
                      numbers, own, b, live, CODE, PLACES, DEPTH, STAGES, PRECISION)  # fmt: skip
    tl.debug_barrier()
    n = tl.full([], N, tl.int32)
    advance_tile(cursor, now, model, uncond, guidance, lines.to(tl.int64), chains, n * HALVES, n * HALVES, n * HALVES,
                 (4 << SHIFT) * HALVES)  # fmt: skip
    tl.debug_barrier()

    if scales is not None:
        moves = tl.load(now + lines, mask=lines < chains, other=0) != 0
        reduce_tile(
            state, coef, flags, now, model, uncond, guidance, seed, chain, now + chains, None, scales, lines, moves, n,
            rows, MATRIX + R * (R + 3), HALVES, MISSING, CHAINS, 4 << SHIFT,
        )  # fmt: skip
        tl.debug_barrier()
    p = tl.arange(0, CHAINS << SHIFT)[:, None]
    c = first + (p >> SHIFT)
    moves = tl.load(now + c, mask=c < chains, other=0) != 0
    block = p & ((1 << SHIFT) - 1)
    i = 4 * block + tl.arange(0, 4)[None, :]
    size = n.to(tl.int64)
    execute(
        state, coef, flags, now, model, uncond, guidance, seed, chain, now + chains, None, net_in, scales, None,
        None, rows, chains * size, size, c, moves, c.to(tl.int64) * size, i, i, size, i, block, moves & (i < N),
        R, HALVES, MISSING, False, False, N % 8 != 0, 0,
    )  # fmt: skip
    tl.debug_barrier()
    if known is not None:
        write_back(state, net_in, known, mask, mask_stride, coef, flags, now, c, moves, i, N, MATRIX + R * (R + 3))
        tl.debug_barrier()


@triton.jit(do_not_specialize=["mask_stride", "chains", "rows", "steps"], do_not_specialize_on_alignment=ANYWHERE)
def walk_tiles(
    state, coef, flags, cursor, net_in, seed, chain, row_vectors, chain_vectors, uncond_vectors, guidance,
    known, mask, mask_stride, weights, numbers, scratch, now, model, uncond, scales, chains, rows, steps,
    R: tl.constexpr, MISSING: tl.constexpr, CODE: tl.constexpr, PLACES: tl.constexpr, ROOM: tl.constexpr,
    CHAINS: tl.constexpr, SHIFT: tl.constexpr, HELD: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (programs), each with tiles of CHAINS chains, and ROOM numbers of scratch for each of these."""
    own = scratch + (tl.program_id(0) * CHAINS + tl.arange(0, CHAINS)[:, None]).to(tl.int64) * ROOM
    held = whole_matrices(weights, CODE, HELD, PRECISION)
    for first in range(tl.program_id(0) * CHAINS, chains, tl.num_programs(0) * CHAINS):
        for _ in tl.range(0, steps, disable_licm=True):
            walk_row(
                state, coef, flags, cursor, net_in, seed, chain, row_vectors, chain_vectors, uncond_vectors, guidance,
                known, mask, mask_stride, held, weights, numbers, own, now, model, uncond, scales, first, chains, rows,
                R, MISSING, CODE, PLACES, CHAINS, SHIFT, DEPTH, STAGES, PRECISION,
            )  # fmt: skip


@triton.jit(do_not_specialize=["chains"], do_not_specialize_on_alignment=CALLED)
def call_tiles(
    x, row_vector, chain_vectors, out, weights, numbers, scratch, chains, CODE: tl.constexpr, PLACES: tl.constexpr,
    ROOM: tl.constexpr, CHAINS: tl.constexpr, HELD: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The network alone, at states ``x`` and one row: programs, tiles and scratch are those of `walk_tiles`."""
    N: tl.constexpr = CODE[0]
    own = scratch + (tl.program_id(0) * CHAINS + tl.arange(0, CHAINS)[:, None]).to(tl.int64) * ROOM
    held = whole_matrices(weights, CODE, HELD, PRECISION)
    for first in range(tl.program_id(0) * CHAINS, chains, tl.num_programs(0) * CHAINS):
        b = (first + tl.arange(0, CHAINS)).to(tl.int64)[:, None]
        live = b < chains
        k = tl.arange(0, room(N))[None, :]
        states = tl.load(x + b * N + k, mask=live & (k < N), other=0.0)
        evaluate_branches(states, tl.zeros([CHAINS, 1], tl.int32), row_vector, chain_vectors, None, None, out, None,
                          held, weights, numbers, own, b, live, CODE, PLACES, DEPTH, STAGES, PRECISION)  # fmt: skip


class Shape(NamedTuple):
    """A program's tile of chains, the depth of blocks of matrices, how many are under way at once, its warps.

    held: up to which depth matrices stay in shared memory from row to row: the depth, or 0 where they are too many.
    """

    chains: int
    depth: int
    stages: int
    warps: int
    held: int = 0


class Packed(NamedTuple):
    """A network for the kernel, on a device.

    code: as `Network.code`, but instruction k writes value k + 1, and a matrix is in ``weights``, ``[padded(out),
    padded(in)]`` with zeros beyond. numbers: the rest of `Network.data`. places: where scratch has each value that is
    streamed, or -1; room: the numbers of scratch for each chain.
    """

    code: tuple[int, ...]
    weights: torch.Tensor
    numbers: torch.Tensor
    places: tuple[int, ...]
    room: int


def room_on(device: torch.device) -> int:
    """The shared memory that a program may count on; on the host, where kernels are compiled alone, a large GPU's."""
    if device.type != "cuda" or torch.version.hip:
        return LARGE
    found = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0)
    return LARGE if found >= LARGE else SMALL


def shape_of(network: Network, shared: int = LARGE) -> Shape:
    """Of network and kind of GPU alone: it settles the order of sums. What fits registers: bench/walk_model.py."""
    widest, precision = padded(max(network.widths)), network.precision
    half = precision in ("bf16", "bf16_dot")
    if widest <= NARROW:
        shape = Shape(32, 16, 1, 4) if precision == "float32" else Shape(64, NARROW, 1, 4)
    else:
        depth, stages = {"float32": (16, 2), "tf32x3": (32, 3 if shared >= LARGE else 2)}.get(precision, (64, 3))
        if half and widest == 256 and shared >= LARGE and not torch.version.hip:
            depth = 128  # half of a matrix at once, in the fewest registers; AMD's have less shared memory
        shape = Shape(16, max(LEAST, depth * 256 // max(widest, 256)), stages, 8)
    sizes = [
        [padded(size) for size in w.shape] for i in network.instructions if isinstance(i, Linear) for w in i.weights
    ]
    numbers = sum(out * into for out, into in sizes if into <= shape.depth)
    streamed = max((out for out, into in sizes if into > shape.depth), default=0) * shape.depth * (2 if half else 4)
    most = min(HELD_BYTES, shared - (shape.stages - 1) * (streamed + streamed // 16))  # in rows with gaps
    return shape._replace(held=shape.depth if numbers * BYTES[precision] <= most else 0)


def packed(network: Network, device: torch.device) -> Packed:
    """Kept with the network; the host waits until it is there, so that any stream may read it.

    Raises:
        ValueError: an instruction of energies' gradients, which this backend does not have.
    """
    kept: dict[torch.device, Packed] = network.__dict__.setdefault("packed_for_triton", {})
    if device not in kept:
        for one in network.instructions:
            name = one.function if isinstance(one, Unary) else type(one).__name__
            if name.endswith("_slope") or isinstance(one, LayerNormGradient):
                expected = "expected instructions that the backend 'triton' has: no gradients"
                raise ValueError(f"network: got {name}, {expected}")
        kept[device] = _pack(network, device)
    return kept[device]


def _pack(network: Network, device: torch.device) -> Packed:
    head = HEADER + len(network.widths)
    number = {0: 0} | {instruction.out: k + 1 for k, instruction in enumerate(network.instructions)}
    code = [*network.code[:head]]
    code[3] = number[network.output]
    for value, place in number.items():
        code[HEADER + place] = network.widths[value]
    matrices: list[torch.Tensor] = []
    streamed: set[int] = set()
    depth = shape_of(network, room_on(device)).depth
    length = 0
    for k, instruction in enumerate(network.instructions):
        line = [*words(network.code, k)]
        line[1] = k + 1
        if isinstance(instruction, Linear):
            line[2:4] = [number[value] for value in instruction.inputs] + [-1] * (2 - len(instruction.inputs))
            for place, matrix in enumerate(instruction.weights):
                out, into = (padded(size) for size in matrix.shape)
                whole = matrix.new_zeros(out, into)
                whole[: matrix.shape[0], : matrix.shape[1]] = matrix
                matrices.append(whole.flatten())
                line[4 + place], length = length, length + out * into
                if into > depth:
                    streamed.add(line[2 + place])
        for at in _values_in(line):
            line[at] = number[line[at]]
        code += line
    dtype = torch.bfloat16 if network.precision in ("bf16", "bf16_dot") else torch.float32
    weights = torch.cat([*matrices, torch.zeros(LEAST)]).to(device, dtype)
    places, taken = [-1] * len(number), 0
    for value in sorted(streamed):
        places[value], taken = taken, taken + padded(code[HEADER + value])
    return Packed(tuple(code), weights, network.data.to(device), tuple(places), taken)


def _values_in(line: list[int]) -> list[int]:
    """Which words of an instruction that is not linear are numbers of values."""
    if line[0] == LINEAR:
        return []
    if line[0] in (UNARY, LAYER_NORM):
        return [2]
    return [at + 1 for at in (3, 5) if line[at] == 0]


def _programs(known: Packed, shape: Shape, chains: int) -> tuple[int, torch.Tensor]:
    """How many programs share these chains, and their scratch."""
    programs = -(-chains // shape.chains)
    if known.room:
        programs = min(programs, PROGRAMS)
    return programs, known.weights.new_empty(max(programs * shape.chains * known.room, 1))


def _constants(network: Network, known: Packed, shape: Shape) -> dict[str, object]:
    """What kernels that hold the network are compiled with."""
    registers = {"maxnreg": MOST_REGISTERS} if shape.warps == 8 and not torch.version.hip else {}
    return {"CODE": known.code, "PLACES": known.places, "ROOM": known.room, "CHAINS": shape.chains, "HELD": shape.held,
            "DEPTH": shape.depth, "STAGES": shape.stages, "PRECISION": network.precision.removesuffix("_dot"),
            "num_warps": shape.warps, **EXACT, **registers}  # fmt: skip


def call_network(
    network: Network,
    x: torch.Tensor,
    row_vector: torch.Tensor | None,
    chain_vectors: torch.Tensor | None,
    out: torch.Tensor,
    energy: torch.Tensor | None,
) -> None:
    """The output at ``x``, in tiles of chains as a walk has them: see :func:`ulam_kernels.evaluate_network`.

    Raises:
        ValueError: a network with an energy, or with gradients, which this backend does not have.
    """
    if energy is not None:
        raise ValueError("network: got one with an energy, expected one without: the backend 'triton' has none")
    known, shape = packed(network, x.device), shape_of(network, room_on(x.device))
    programs, scratch = _programs(known, shape, len(x))
    row, chain = (t if t is not None and t.numel() else known.numbers for t in (row_vector, chain_vectors))
    with on_device(x):
        call_tiles[(programs,)](
            x, row, chain, out, known.weights, known.numbers, scratch, len(x), **_constants(network, known, shape)
        )


def bound_walk(
    states: torch.Tensor,
    coef: torch.Tensor,
    flags: torch.Tensor,
    cursor: torch.Tensor,
    network: Network,
    net_in: torch.Tensor | None,
    seed: torch.Tensor | None,
    chain: torch.Tensor | None,
    row_vectors: torch.Tensor | None,
    chain_vectors: torch.Tensor | None,
    uncond_vectors: torch.Tensor | None,
    guidance: torch.Tensor | None,
    fixed: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    reduces: bool | None = None,
) -> Callable[[int], None]:
    """A walk as a function of the count of rows: see :func:`ulam_kernels.walk`.

    fixed: the known elements. reduces: whether any row does; None: look, for which the host waits.

    Raises:
        ValueError: an instruction of energies' gradients, which this backend does not have.
    """
    known, shape = packed(network, states.device), shape_of(network, room_on(states.device))
    shift = blocks_shift(network.inputs)
    registers, chains = states.shape[:2]
    guided, reduces = uncond_vectors is not None, bool((flags & REDUCED.value).any()) if reduces is None else reduces
    programs, scratch = _programs(known, shape, chains)
    missing = (0 if seed is not None else table.READS_Z) | (0 if network.learned else table.LEARNED)
    missing |= 0 if reduces else REDUCED.value
    now = torch.empty(2, chains, dtype=torch.int64, device=states.device)
    model = states.new_empty(chains, network.output_width or 0)
    uncond = torch.empty_like(model) if guided else None
    scales = states.new_empty(chains, 4) if reduces else None
    vectors = [t if t is not None and t.numel() else known.numbers for t in (row_vectors, chain_vectors)]
    bits = None if mask is None else mask.view(torch.uint8)
    stride = 0 if mask is None or mask.dim() < states.dim() - 1 else network.inputs  # one mask, or one a chain
    other = known.numbers if guided and not network.chain_width else uncond_vectors
    options = {"R": registers, "MISSING": missing, "SHIFT": shift, **_constants(network, known, shape)}

    def run(steps: int) -> None:
        with on_device(states):
            walk_tiles[(programs,)](
                states, coef, flags, cursor, net_in, seed, chain, *vectors, other, guidance if guided else None,
                fixed, bits, stride, known.weights, known.numbers, scratch, now, model, uncond, scales, chains,
                len(flags), steps, **options,
            )  # fmt: skip

    return run
