"""Sums over two tensors of a chain: exact values, and the same bits on every CPU path and in any batch."""

from __future__ import annotations

import math

import pytest
import torch

import ulam_kernels
from moments_cases import arguments, result
from ulam_kernels import _cpu, cpu, reference

SIZES = [(1, 1), (5, 7), (3, 100), (2, 1024), (7, 1025), (3, 3001), (2, 3, 5, 7)]


@pytest.mark.parametrize("shape", SIZES)
def test_every_instruction_set_has_the_bits_of_the_reference(shape: tuple[int, ...]) -> None:
    x, y = arguments(shape)
    expected = result(reference, x, y)
    try:
        for name in _cpu.instruction_sets():
            _cpu.use_instruction_set(name)
            assert torch.equal(result(cpu, x, y), expected), name
    finally:
        _cpu.use_instruction_set(_cpu.instruction_sets()[0])
    assert torch.equal(ulam_kernels.moments(x, y), expected)


@pytest.mark.parametrize("shape", SIZES)
def test_the_sums_are_those_of_exact_arithmetic(shape: tuple[int, ...]) -> None:
    x, y = arguments(shape)
    for b, found in enumerate(ulam_kernels.moments(x, y).tolist()):
        p, q = x[b].double().flatten().tolist(), y[b].double().flatten().tolist()
        pairs = list(zip(p, q, strict=True))
        terms = (p, q, [a * a for a in p], [a * b for a, b in pairs], [b * b for b in q])
        for got, term in zip(found, terms, strict=True):
            assert got == pytest.approx(math.fsum(term), rel=1e-14, abs=1e-14 * math.fsum(map(abs, term)))


def test_a_chain_has_the_same_bits_in_any_batch_and_on_any_number_of_threads() -> None:
    x, y = arguments((33, 2050))
    whole, threads = ulam_kernels.moments(x, y), torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(ulam_kernels.moments(x, y), whole)
    finally:
        torch.set_num_threads(threads)
    for rows in (slice(0, 1), slice(5, 32)):
        assert torch.equal(ulam_kernels.moments(x[rows], y[rows]), whole[rows])


def test_nothing_and_what_is_not_finite() -> None:
    assert ulam_kernels.moments(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 5)
    assert ulam_kernels.moments(torch.zeros(3, 0), torch.zeros(3, 0)).tolist() == [[0.0] * 5] * 3
    x, y = arguments((2, 40))
    x[1, 3] = math.nan
    for backend in ("cpu", "reference"):
        found = ulam_kernels.moments(x, y, backend=backend)
        assert found[0].isfinite().all() and found[1].isnan().tolist() == [True, False, True, True, False]
