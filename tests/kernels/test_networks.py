"""Networks as lists of instructions: what is refused, by name, and that they survive being written down."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from network_decoding import decoded
from ulam_kernels.networks import Binary, LayerNorm, LayerNormGradient, Linear, Network, Operand, Unary
from walk_cases import random_network

N = 3
SQUARE = torch.eye(N)


def linear(out: int = 1, value: int = 0) -> Linear:
    return Linear(out, (value,), (SQUARE,))


def network(**other: Any) -> Network:
    return Network(**{"inputs": N, "widths": (N, N), "instructions": (linear(),)} | other)


REFUSED: dict[str, tuple[Any, str]] = {
    "a kind": (lambda: Operand("rows", 0), "kind: got 'rows', expected one of"),
    "an index": (lambda: Operand("row", -1), "index: got -1"),
    "no inputs": (lambda: Linear(1, (), ()), "inputs: got 0 values, expected 1 or 2"),
    "three inputs": (lambda: Linear(1, (0,) * 3, (SQUARE,) * 3), "inputs: got 3 values"),
    "weights missing": (lambda: Linear(1, (0, 0), (SQUARE,)), "weights: got 1 tensors, expected one for each of 2"),
    "weights of another type": (lambda: Linear(1, (0,), (SQUARE.double(),)), "weights: got a tensor of torch.float64"),
    "weights that are not finite": (lambda: Linear(1, (0,), (SQUARE * math.nan,)), "weights: got numbers that are not"),
    "a start of a value": (lambda: Linear(1, (0,), (SQUARE,), (Operand("value", 0),)), "start: got an operand of kind"),
    "three starts": (lambda: Linear(1, (0,), (SQUARE,), (Operand("row", 0),) * 3), "start: got 3 operands"),
    "no operand": (lambda: Linear(1, (0,), (SQUARE,), (3,)), "start: got 3, expected an Operand"),  # type: ignore
    "inputs of another type": (lambda: Linear(1, 0, (SQUARE,)), "inputs: got 0, expected a tuple"),  # type: ignore
    "a function": (lambda: Unary(1, "swish", 0), "function: got 'swish', expected one of"),
    "a parameter too many": (lambda: Unary(1, "silu", 0, 1.0), "parameter: got 1.0, expected None: silu has none"),
    "a parameter": (lambda: Unary(1, "elu", 0, math.nan), "parameter: got nan"),
    "a value": (lambda: Unary(1, "silu", 129), "value: got 129"),
    "an operation": (lambda: Binary(1, "div", Operand("value", 0), Operand("row", 0)), "function: got 'div'"),
    "an operand": (lambda: Binary(1, "add", Operand("value", 0), 1), "b: got 1, expected an Operand"),  # type: ignore
    "a weight of a row": (lambda: LayerNorm(1, 0, Operand("row", 0)), "weight: got an operand of kind 'row'"),
    "an eps": (lambda: LayerNorm(1, 0, eps=-1.0), "eps: got -1.0, expected a number of at least 0"),
    "inputs": (lambda: network(inputs=257), "inputs: got 257, expected 1 to 256"),
    "a width": (lambda: network(widths=(N, 513)), "widths: got 513, expected 1 to 512"),
    "widths": (lambda: network(widths=(N, N, N)), "widths: got 3, expected one for the input and each"),
    "the first width": (lambda: network(widths=(2, N)), r"widths: got \[2\] for value 0, expected \[3\]"),
    "no instructions": (lambda: network(instructions=(), widths=(N,)), "instructions: got 0, expected 1 to 128"),
    "too many": (lambda: network(instructions=[linear()] * 129), "instructions: got 129"),
    "an instruction": (lambda: network(instructions=(3,)), r"instructions\[0\]: got 3, expected Linear"),
    "a value written twice": (lambda: network(instructions=(linear(0),)), r"instructions\[0\]: got out = 0"),
    "a value not there": (lambda: network(instructions=(linear(1, 1),)), r"instructions\[0\]: got value 1, expected"),
    "another shape": (lambda: network(widths=(N, 2)), r"instructions\[0\]: got weights of shape \[3, 3\]"),
    "another width": (lambda: network(widths=(N, 2), instructions=(Unary(1, "silu", 0),)), "got a value of width 3"),
    "a row too short": (
        lambda: network(instructions=(Linear(1, (0,), (SQUARE,), (Operand("row", 1),)),), row_width=3),
        r"instructions\[0\]: got row elements 1 to 4, expected them within 3"),
    "constants": (lambda: network(constants=torch.zeros(2, 2)), "constants: got a tensor of torch.float32"),
    "an output": (lambda: network(output=2), "output: got 2, expected 0 to 1"),
    "an output's width": (lambda: network(output_width=4), "output: got a value of width 3, expected 3 or 6"),
    "a gradient": (lambda: LayerNormGradient(1, 0, None), "gradient: got None, expected an Operand"),  # type: ignore
    "a gradient's weight": (
        lambda: LayerNormGradient(1, 0, Operand("row", 0), Operand("row", 0)), "weight: got an operand of kind 'row'"),
    "a gradient's eps": (lambda: LayerNormGradient(1, 0, Operand("row", 0), eps=-1.0), "eps: got -1.0, expected"),
    "a gradient not there": (
        lambda: network(instructions=(LayerNormGradient(1, 0, Operand("value", 1)),)), "got value 1, expected"),
    "an energy": (lambda: network(energy=2), "energy: got 2, expected 0 to 1"),
    "an energy's width": (lambda: network(energy=1), "energy: got a value of width 3, expected one of width 1"),
    "a precision": (lambda: network(precision="fp8"), "precision: got 'fp8', expected one of float32, bf16, bf16_dot"),
    "a row's width": (lambda: network(row_width=-1), "row_width: got -1"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_by_name(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=f"^.*{message}") as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(10))
def test_a_network_survives_being_written_down(seed: int) -> None:
    made = random_network(np.random.default_rng(seed), 5, learned=bool(seed % 2))
    if seed > 5:
        made = replace(made, precision="bf16" if seed % 2 else "bf16_dot")
    again = decoded(made.code, made.data)
    assert again.precision == made.precision
    assert again.code == made.code and torch.equal(again.data, made.data) and again.learned == made.learned
    for one, other in zip(made.instructions, again.instructions, strict=True):
        if isinstance(one, Linear):
            assert isinstance(other, Linear) and all(map(torch.equal, one.weights, other.weights))
        elif isinstance(one, LayerNorm):
            assert isinstance(other, LayerNorm) and other.eps == np.float32(one.eps)
        elif isinstance(one, LayerNormGradient):
            assert isinstance(other, LayerNormGradient) and other.gradient == one.gradient
            assert other.weight == one.weight and other.eps == np.float32(one.eps)
        else:
            assert one == other


def test_weights_are_copied() -> None:
    weights, constants = torch.ones(N, N), torch.ones(N)
    made = network(instructions=(Linear(1, (0,), (weights,), (Operand("constant", 0),)),), constants=constants)
    weights.zero_(), constants.zero_()
    assert made.data.sum() == N * N + N
