"""Matrices of bf16, and products of bf16: the same bits in every tiling, and errors as stated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import ulam_kernels
from bit_comparison import differences, same_bits
from cpu_settings import instruction_set
from ulam_kernels import _cpu
from ulam_kernels.networks import Linear, Network, Operand
from walk_cases import mlp, random_walk

SETS = _cpu.instruction_sets()


def assert_same(ours: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    for a, b in zip(ours, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or differences(a, b) == 0


def test_a_processor_that_multiplies_pairs_is_used() -> None:
    """Its check at import may not fail for a reason that is ours: all else would be right, and slow."""
    flags = Path("/proc/cpuinfo")
    if not flags.is_file() or "avx512_bf16" not in flags.read_text().split():
        pytest.skip("this processor has no AVX512_BF16")
    assert _cpu.instruction_sets()[0] == "avx512_bf16"


@pytest.mark.parametrize("widths", [(14, 256, 140, 14), (3, 512, 33, 3), (17, 49, 17), (1, 1, 1)])
def test_weights_of_bf16_are_rounded_weights(widths: tuple[int, ...]) -> None:
    """The same bits as a network whose matrices are rounded, in every tiling, and not those of one that is not."""
    rng = np.random.default_rng(11)
    exact = mlp(rng, widths)
    network = replace(exact, precision="bf16")
    for whole, rounded in zip(exact.instructions, network.instructions, strict=True):
        if isinstance(whole, Linear) and isinstance(rounded, Linear):
            assert torch.equal(rounded.weights[0], whole.weights[0].bfloat16().float())
    same = replace(network, precision="float32")
    for chains in (1, 2, 3, 4, 7, 8, 20):
        walk = random_walk(rng, chains, widths[0], 1, network=network, learned=False, steps=2)
        expected = replace(walk, network=same).run("reference")
        assert_same(walk.run("reference"), expected)
        assert chains < 20 or not same_bits(replace(walk, network=exact).run("cpu")[0], expected[0])
        for instructions in SETS:
            with instruction_set(instructions) as backend:
                assert_same(walk.run(backend), expected)


@pytest.mark.parametrize("scale", [1.0, 1e-37])
@pytest.mark.parametrize("widths", [(14, 256, 140, 14), (3, 512, 33, 3), (17, 49, 17), (1, 1, 1)])
def test_products_of_pairs_have_the_same_bits_everywhere(widths: tuple[int, ...], scale: float) -> None:
    """By the instruction where there is one, denormal numbers and odd depths included, in every tiling."""
    rng = np.random.default_rng(12)
    exact = mlp(rng, widths, "identity")
    network = replace(exact, precision="bf16_dot")
    for chains in (1, 2, 3, 4, 7, 8, 20):
        walk = random_walk(rng, chains, widths[0], 1, network=network, learned=False, steps=2)
        walk = replace(walk, states=walk.states * scale)
        walk.given["row_vectors"].mul_(scale)
        expected = walk.run("reference")
        assert chains < 20 or not same_bits(replace(walk, network=exact).run("cpu")[0], expected[0])
        for instructions in SETS:
            with instruction_set(instructions) as backend:
                assert_same(walk.run(backend), expected)


@pytest.mark.parametrize("name", ["reference", *SETS])
@pytest.mark.parametrize("precision", ["float32", "bf16", "bf16_dot"])
def test_the_start_is_added_to_the_sum_of_the_products(precision: str, name: str) -> None:
    """In every tiling: small products, which a sum that began with the start would lose, its operands, zeros' signs."""
    n, unit = 8, 2.0**-24
    weight = torch.full((n, n), 0.75 * unit)  # under half a unit in the last place of 1
    tiny = torch.full((n, n), -(2.0**-100))
    big = torch.tensor([1.0, -1.0]).repeat_interleave(n)
    constants = torch.cat([big, torch.zeros(n), -torch.zeros(n)])
    instructions = (
        Linear(1, (0,), (weight,), (Operand("constant", 0),)),
        Linear(2, (0, 0), (weight, weight), (Operand("constant", 0), Operand("constant", n))),
        Linear(3, (1,), (tiny,)),
        Linear(4, (3,), (-tiny,)),
        Linear(5, (3,), (-tiny,), (Operand("constant", 2 * n),)),
        Linear(6, (3,), (-tiny,), (Operand("constant", 3 * n),)),
    )
    first, both = 1 + 6 * unit, 12 * unit  # 12 units and 1 is a number of float32, and then less 1
    expected = {1: first, 2: both, 4: -0.0, 5: 0.0, 6: -0.0}
    for output, value in expected.items():
        network = Network(n, (n,) * 7, instructions, constants, output=output, precision=precision)
        for chains in (1, 2, 3, 5, 9, 17):
            with instruction_set(name) as backend:
                _, out = ulam_kernels.evaluate_network(network, torch.ones(chains, n), backend=backend)
            assert same_bits(out, torch.full((chains, n), value)), output


def bfloat16(x: torch.Tensor) -> torch.Tensor:
    """Rounded by torch; denormal numbers are 0."""
    return torch.where(x.abs() < torch.finfo(torch.float32).tiny, 0.0 * x, x).bfloat16().float()


def test_products_of_pairs_are_sums_of_rounded_numbers() -> None:
    """One Linear of two inputs in exact arithmetic: bf16 numbers with few bits, whose sums do not round."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-4096, 4096, (9, 7), generator=generator).float()
    weight = torch.randint(-64, 64, (5, 7), generator=generator).float()
    matrices = (weight, torch.ones(5, 7))
    network = Network(7, (7, 5, 7), (Linear(1, (0, 0), matrices), Linear(2, (1,), (torch.eye(7, 5),))),
                      output=2, precision="bf16_dot")  # fmt: skip
    first = bfloat16(x) @ weight.t() + bfloat16(x).sum(1, keepdim=True)
    assert first.abs().max() < 2**24 and not torch.equal(bfloat16(x), x)
    expected = F.pad(bfloat16(first), (0, 2))
    for name in SETS:
        with instruction_set(name) as backend:
            _, out = ulam_kernels.evaluate_network(network, x, backend=backend)
            assert torch.equal(out, expected), name


def test_the_error_of_bf16_products_is_as_stated() -> None:
    """Of the network's own size, over random networks with SiLU: of the order of 2^-8, as docs say."""
    rng = np.random.default_rng(3)
    errors: dict[str, list[float]] = {"float32": [], "bf16": [], "bf16_dot": []}
    for _ in range(8):
        n, width, depth = int(rng.integers(2, 20)), int(rng.integers(32, 257)), int(rng.integers(1, 4))
        exact = mlp(rng, (n, *[width] * depth, n))
        x, row = (torch.from_numpy(rng.normal(size=s)).float() for s in ((64, n), (exact.row_width,)))
        _, truth = ulam_kernels.evaluate_network(exact, x.double(), row_vector=row.double(), backend="reference")
        for precision, found in errors.items():
            network = replace(exact, precision=precision)
            _, out = ulam_kernels.evaluate_network(network, x, row_vector=row)
            found.append(float((out - truth).square().mean().sqrt() / truth.square().mean().sqrt()))
    assert max(errors["float32"]) < 2**-20
    assert 2**-11 < max(errors["bf16"]) < 2**-7
    assert max(errors["bf16"]) / 4 < max(errors["bf16_dot"]) < 2**-7
