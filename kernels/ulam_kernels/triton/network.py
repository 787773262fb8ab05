"""A small network on a tile of chains in Triton: see :mod:`ulam_kernels.networks`.

Values are ``[chains, width]`` in registers, filled up with finite numbers to widths of powers of two. A matrix that is
at most DEPTH deep is multiplied whole. A deeper one is streamed: its value lies in scratch, and blocks of DEPTH numbers
of it and of the matrix come through shared memory while earlier ones are multiplied. A sum takes k in ascending
order, block by block, and ends with the start.

In float32 every operation is rounded as on the CPU (on NVIDIA), but LayerNorm sums in another order: without it the
bits are the same. In tf32x3 and bf16 tensor cores multiply, and the device approximates exp and divisions. With e the
error of what is read, a Linear of K numbers is off by

    |W| e + gamma_{K + 2} |W| |x| + gamma_2 |start| + r |W| |x|,    gamma_k = k u / (1 - k u)

at most, u = 2^-24 in float32 and 2^-22 on tensor cores, which cut sums off, r = 0, 2^-20 in tf32x3, 2^-8 in bf16, which
rounds x too; a Unary by L e + 8 u (|f| + 1), L its largest slope. Signs differ, so what is met is far smaller: as
squares add [Higham and Mary 2019], the rule of tests/support/walk_errors.py, to which backends are held.
"""
# ruff: noqa: RUF005, SIM102, SIM108 (Triton knows neither unpacking nor conditional expressions of tensors)
# mypy: disable-error-code="assignment, no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.target_info import is_cuda

from ulam_kernels import networks
from ulam_kernels.triton.activations import activated

LINEAR, UNARY, BINARY = tl.constexpr(networks.LINEAR), tl.constexpr(networks.UNARY), tl.constexpr(networks.BINARY)
NONE, VALUE, ROW, CHAIN, CONSTANT = (tl.constexpr(kind) for kind in range(-1, 4))  # kinds of operands, and none
ADD, SUB = tl.constexpr(0), tl.constexpr(1)
ROWS = tl.constexpr(2**31 - 1)  # beyond any row
LEAST = 16  # the narrowest matrix of a dot product


def padded(width: int) -> int:
    """The columns that a value takes."""
    return max(LEAST, 1 << (int(width) - 1).bit_length())


def words(code: tuple[int, ...], k: int) -> tuple[int, ...]:
    """Instruction k of a network's code."""
    at = networks.HEADER + code[5] + 1 + networks.STRIDE * int(k)
    return code[at : at + networks.STRIDE]


room = triton.constexpr_function(padded)
instruction = triton.constexpr_function(words)


@triton.constexpr_function
def width(CODE, VALUE):
    return CODE[networks.HEADER + VALUE]


@triton.jit
def vector(at, INDEX: tl.constexpr, WIDTH: tl.constexpr):
    """``[chains, room(WIDTH)]`` numbers from ``at + INDEX`` on, zeros beyond; at: ``[chains, 1]`` pointers, or one."""
    j = tl.arange(0, room(WIDTH))[None, :]
    if room(WIDTH) > WIDTH:
        return tl.load(at + INDEX + j, mask=j < WIDTH, other=0.0)
    return tl.load(at + INDEX + j)


@triton.jit
def plus(total, x):
    """total + x. Of an addition Triton would make what the product before it begins with."""
    return tl.fma(total, 1.0, x)


@triton.jit
def add(total, values, at, KIND: tl.constexpr, INDEX: tl.constexpr, WIDTH: tl.constexpr):
    """``total`` and an operand. Of rows one after another, the same for all chains as a rule: a gather is dear."""
    if KIND == ROW:
        row = tl.min(at[5])
        while row != ROWS:
            x = vector(at[2] + row.to(tl.int64) * at[6], INDEX, WIDTH)
            total = tl.where(at[5] == row, plus(total, x), total)
            row = tl.min(tl.where(at[5] > row, at[5], ROWS))
    elif KIND == CHAIN:
        total = plus(total, vector(at[3], INDEX, WIDTH))
    elif KIND == VALUE:
        total = plus(total, values[INDEX])
    elif KIND == CONSTANT:
        total = plus(total, vector(at[1], INDEX, WIDTH))
    return total


@triton.jit
def operand(values, at, KIND: tl.constexpr, INDEX: tl.constexpr, WIDTH: tl.constexpr):
    if KIND == VALUE:
        x = values[INDEX]
    else:
        x = add(tl.zeros([at[5].shape[0], room(WIDTH)], tl.float32), values, at, KIND, INDEX, WIDTH)
    return x


@triton.jit
def high(x):
    """x cut off to the 11 bits that tensor cores take of a float32."""
    return (x.to(tl.uint32, bitcast=True) & 0xFFFFE000).to(tl.float32, bitcast=True)


@triton.jit
def parts(w, PRECISION: tl.constexpr):
    """(w, 0), or in tf32x3 w as a sum of two numbers of 11 bits."""
    if PRECISION == "tf32x3" and is_cuda():
        both = high(w), w - high(w)
    else:
        both = w, 0
    return both


@triton.jit
def product(x, w, total, PRECISION: tl.constexpr):
    """``total + x w``. w: see :func:`parts`."""
    if PRECISION == "bf16":
        total = tl.dot(x.to(tl.bfloat16), w[0], total)
    elif PRECISION == "tf32x3" and is_cuda():  # others have matrix units for float32
        first = high(x)
        total = tl.dot(x - first, w[0], total, input_precision="tf32")
        total = tl.dot(first, w[1], total, input_precision="tf32")
        total = tl.dot(first, w[0], total, input_precision="tf32")
    else:
        total = tl.dot(x, w[0], total, input_precision="ieee")
    return total


@triton.jit
def block(weights, first, AT: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr, DEPTH: tl.constexpr):
    """``[DEPTH, OUT]`` numbers, from k = ``first`` on, of the matrix ``[OUT, IN]`` at AT."""
    k = first + tl.arange(0, DEPTH)[:, None]
    return tl.load(weights + AT + tl.arange(0, OUT)[None, :] * IN + k)


@triton.jit
def whole(
    weights, CODE: tl.constexpr, K: tl.constexpr, PLACE: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr
):
    """A matrix of instruction K that is not streamed; 0 where there is none."""
    WORDS: tl.constexpr = instruction(CODE, K)
    w = (0, 0)
    if WORDS[0] == LINEAR:
        if WORDS[2 + PLACE] != NONE:
            if room(width(CODE, WORDS[2 + PLACE])) <= DEPTH:
                IN: tl.constexpr = room(width(CODE, WORDS[2 + PLACE]))
                w = parts(block(weights, 0, WORDS[4 + PLACE], IN, room(width(CODE, WORDS[1])), IN), PRECISION)
    return w


@triton.jit
def whole_matrices(weights, CODE: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr):
    """Those of every instruction, first and second, which stay in shared memory along the rows; () at a DEPTH of 0."""
    COUNT: tl.constexpr = CODE[5] if DEPTH > 0 else 0
    held = ()
    for k in tl.static_range(COUNT):
        held = held + (whole(weights, CODE, k, 0, DEPTH, PRECISION), whole(weights, CODE, k, 1, DEPTH, PRECISION))
    return held


@triton.jit
def with_matrix(
    total, values, held, at, CODE: tl.constexpr, PLACES: tl.constexpr, K: tl.constexpr, PLACE: tl.constexpr,
    DEPTH: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``total + x W^T`` of an input of instruction K."""
    WORDS: tl.constexpr = instruction(CODE, K)
    if WORDS[2 + PLACE] != NONE:
        IN: tl.constexpr = room(width(CODE, WORDS[2 + PLACE]))
        if IN <= DEPTH:
            if len(held) == 0:
                w = whole(at[0], CODE, K, PLACE, DEPTH, PRECISION)
            else:
                w = held[2 * K + PLACE]
            total = product(values[WORDS[2 + PLACE]], w, total, PRECISION)
        else:
            x = at[4] + PLACES[WORDS[2 + PLACE]] + tl.arange(0, DEPTH)[None, :]
            for first in tl.range(0, IN, DEPTH, num_stages=STAGES if is_cuda() else 2):  # others have 64 KiB
                w = block(at[0], first, WORDS[4 + PLACE], IN, room(width(CODE, K + 1)), DEPTH)
                total = product(tl.load(x + first), parts(w, PRECISION), total, PRECISION)
    return total


@triton.jit
def linear(
    values, held, at, CODE: tl.constexpr, PLACES: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr,
    DEPTH: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    WORDS: tl.constexpr = instruction(CODE, K)
    total = tl.zeros([values[0].shape[0], room(WIDTH)], tl.float32)
    for place in tl.static_range(2):
        total = with_matrix(total, values, held, at, CODE, PLACES, K, place, DEPTH, STAGES, PRECISION)
    if room(WIDTH) > WIDTH:  # infinity times the matrix's zeros there would be NaN, and spread
        total = tl.where(tl.arange(0, room(WIDTH))[None, :] < WIDTH, total, 0.0)
    total = add(total, values, at, WORDS[6], WORDS[7], WIDTH)
    return add(total, values, at, WORDS[8], WORDS[9], WIDTH)


@triton.jit
def layer_norm(values, at, WORDS: tl.constexpr, WIDTH: tl.constexpr):
    x = values[WORDS[2]]
    inside = tl.arange(0, room(WIDTH))[None, :] < WIDTH
    mean = tl.div_rn(tl.sum(tl.where(inside, x, 0.0), 1), tl.full([x.shape[0]], WIDTH, tl.float32))
    d = tl.where(inside, x - mean[:, None], 0.0)
    variance = tl.div_rn(tl.sum(d * d, 1), tl.full([x.shape[0]], WIDTH, tl.float32))
    eps = tl.load(at[1] + WORDS[3])
    y = d * tl.div_rn(tl.full([x.shape[0]], 1.0, tl.float32), tl.sqrt_rn(variance + eps))[:, None]
    if WORDS[4] != NONE:
        weight = operand(values, at, WORDS[4], WORDS[5], WIDTH)
        if WORDS[6] != NONE:
            y = tl.fma(y, weight, operand(values, at, WORDS[6], WORDS[7], WIDTH))
        else:
            y = y * weight
    elif WORDS[6] != NONE:
        y = y + operand(values, at, WORDS[6], WORDS[7], WIDTH)
    return y


@triton.jit
def binary(values, at, WORDS: tl.constexpr, WIDTH: tl.constexpr):
    a = operand(values, at, WORDS[3], WORDS[4], WIDTH)
    b = operand(values, at, WORDS[5], WORDS[6], WIDTH)
    if WORDS[2] == ADD:
        y = a + b
    elif WORDS[2] == SUB:
        y = a - b
    else:
        y = a * b
    return y


@triton.jit
def unary(values, at, WORDS: tl.constexpr, PRECISION: tl.constexpr):
    parameter = tl.load(at[1] + WORDS[4])
    return activated(values[WORDS[2]], parameter, WORDS[3], PRECISION != "float32")


@triton.jit
def executed(
    values, held, at, CODE: tl.constexpr, PLACES: tl.constexpr, K: tl.constexpr, DEPTH: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The value that instruction K makes."""
    WORDS: tl.constexpr = instruction(CODE, K)
    if WORDS[0] == LINEAR:
        y = linear(values, held, at, CODE, PLACES, K, width(CODE, K + 1), DEPTH, STAGES, PRECISION)
    elif WORDS[0] == UNARY:
        y = unary(values, at, WORDS, PRECISION)
    elif WORDS[0] == BINARY:
        y = binary(values, at, WORDS, width(CODE, K + 1))
    else:
        y = layer_norm(values, at, WORDS, width(CODE, K + 1))
    return y


@triton.jit
def keep(x, at, PLACE: tl.constexpr):
    """Put a value that will be streamed where all threads of the program find it."""
    if PLACE != NONE:
        tl.debug_barrier()  # what lay there has been read
        tl.store(at[4] + PLACE + tl.arange(0, x.shape[1])[None, :], x.to(at[4].dtype.element_ty))
        tl.debug_barrier()


@triton.jit
def evaluate(
    x, held, at, CODE: tl.constexpr, PLACES: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The network's output at x ``[chains, room(n)]``, whose numbers beyond n are 0.

    held: see :func:`whole_matrices`.
    at: pointers to the matrices, the network's other numbers, the vectors of rows, those of each chain and each chain's
    scratch (these two ``[chains, 1]``), the rows ``[chains, 1]`` and the width of a row's vector. Instruction k writes
    value k + 1, which is in scratch from PLACES[k + 1] on, unless this is -1.
    """
    COUNT: tl.constexpr = CODE[5]
    values = (x,)
    keep(x, at, PLACES[0])
    for k in tl.static_range(COUNT):
        values = values + (executed(values, held, at, CODE, PLACES, k, DEPTH, STAGES, PRECISION),)
        keep(values[k + 1], at, PLACES[k + 1])
    return values[CODE[3]]
