"""A network from the numbers that native code reads: the inverse of `Network.code` and `Network.data`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ulam_kernels.networks import (
    BINARY,
    DEFAULTS,
    FUNCTIONS,
    HEADER,
    KINDS,
    LAYER_NORM_GRADIENT,
    LINEAR,
    OPERATIONS,
    PRECISIONS,
    STRIDE,
    UNARY,
    Binary,
    Instruction,
    LayerNorm,
    LayerNormGradient,
    Linear,
    Network,
    Operand,
    Unary,
)


def decoded(code: Sequence[int], data: torch.Tensor) -> Network:
    """The network of its ``code`` and ``data``, as `Network.code` lays them out."""
    code = [int(number) for number in code]
    inputs, row_width, chain_width, output, constants, count, precision, energy = code[:HEADER]
    widths = code[HEADER : HEADER + count + 1]
    at = HEADER + count + 1
    each = (code[at + STRIDE * k : at + STRIDE * (k + 1)] for k in range(count))
    instructions = [_decoded_one(words, data, widths) for words in each]
    return Network(inputs, tuple(widths), tuple(instructions), data[:constants], row_width, chain_width, output,
                   precision=PRECISIONS[precision], energy=None if energy < 0 else energy)  # fmt: skip


def _decoded_one(words: list[int], data: torch.Tensor, widths: list[int]) -> Instruction:
    kind, out, *rest = words
    if kind == LINEAR:
        inputs = tuple(value for value in rest[:2] if value >= 0)
        shapes = [(widths[out], widths[value]) for value in inputs]
        weights = [data[at : at + m * k].view(m, k) for at, (m, k) in zip(rest[2:4], shapes, strict=False)]
        start = [operand for operand in (_unpair(rest[4:6]), _unpair(rest[6:8])) if operand is not None]
        return Linear(out, inputs, tuple(weights), tuple(start))
    if kind == UNARY:
        function = FUNCTIONS[rest[1]]
        return Unary(out, function, rest[0], float(data[rest[2]]) if function in DEFAULTS else None)
    if kind == BINARY:
        a, b = _unpair(rest[1:3]), _unpair(rest[3:5])
        assert a is not None and b is not None
        return Binary(out, OPERATIONS[rest[0]], a, b)
    if kind == LAYER_NORM_GRADIENT:
        gradient = _unpair(rest[4:6])
        assert gradient is not None
        return LayerNormGradient(out, rest[0], gradient, _unpair(rest[2:4]), float(data[rest[1]]))
    return LayerNorm(out, rest[0], _unpair(rest[2:4]), _unpair(rest[4:6]), float(data[rest[1]]))


def _unpair(pair: Sequence[int]) -> Operand | None:
    return None if pair[0] < 0 else Operand(KINDS[pair[0]], pair[1])
