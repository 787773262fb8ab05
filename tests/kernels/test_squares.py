"""The squares of a step's noise: exact whole numbers on every CPU path, and a step that does not see them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

import ulam_kernels
from bit_comparison import same_bits
from cpu_settings import instruction_set, threads
from layout_cases import LAYOUTS, laid_out, random_case
from squares_cases import added, start
from step_cases import CHAINS, FLOATS, ROWS, one_row, random_inputs, random_table
from ulam_kernels import Table, _cpu
from ulam_kernels.cpu import BoundStep
from ulam_kernels.squares import LIMIT, SQUARES_PER_UNIT, squared_norms

SHAPES = [(1,), (2,), (3,), (5,), (14,), (33,), (127,), (1000,), (3, 32, 32)]
PATHS = ["reference", *_cpu.instruction_sets()]


def step(path: str, state: torch.Tensor, table: Table, row: torch.Tensor, **given: Any) -> None:
    if path == "reference":
        return ulam_kernels.step(state, table, row, backend="reference", **given)
    with instruction_set(path):
        ulam_kernels.step(state, table, row, backend="cpu", **given)
    return None


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_path_adds_the_exact_numbers(shape: tuple[int, ...], path: str) -> None:
    """Rows with and without noise, idle ones, guidance, learned variance, given noise; the state is as without."""
    seen = set()
    for registers, state_type, model_type in itertools.product((1, 2, 5), FLOATS[:2], FLOATS[::2]):
        rng = np.random.default_rng([len(shape), shape[-1], registers])
        table, inputs = random_table(rng, registers), random_inputs(rng, shape, model_type)
        values = torch.from_numpy(rng.normal(size=(registers, CHAINS, *shape))).to(state_type)
        for first in range(0, ROWS, CHAINS):
            row = torch.arange(first, first + CHAINS) % ROWS
            squares = start(CHAINS)
            expected = squares + added(table, row, shape, inputs)
            states, nets = (values.clone(), values.clone()), torch.full((2, CHAINS, *shape), math.nan)
            step(path, states[0], table, row, net_in=nets[0], **inputs)
            step(path, states[1], table, row, net_in=nets[1], squares=squares, **inputs)
            assert torch.equal(squares, expected)
            assert same_bits(states[1], states[0]) and same_bits(nets[1], nets[0])
            seen |= {"noise" in inputs, "guidance" in inputs}
    assert seen == {False, True}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("given", [False, True], ids=["generated", "given noise"])
def test_every_form_of_the_plain_row(path: str, given: bool) -> None:
    """Whole groups of vectors, parts of one and less than a vector; coefficients down to the least."""
    ids, generator = torch.arange(7), torch.Generator().manual_seed(0)
    forms = ({"x": 0.9, "m": 0.1}, {"x": 0.9, "D": 0.2, "kx": 1.1, "km": -0.4, "lo": -1.0, "hi": 1.0},
             {"D": 0.9, "m": -0.3, "kx": 1.1, "km": -0.4})  # fmt: skip
    for form, z_scale, n in itertools.product(forms, (0.2, -1e-20, 1e-44), (128, 1043, 9000)):
        x, m, z = torch.randn(3, 7, n, generator=generator)
        inputs = {"seed": ids, "chain": ids, "draw": ids} | ({"noise": z} if given else {})
        table, squares = one_row(**form, z=z_scale), start(7)
        expected = squares + added(table, ids * 0, (n,), inputs)
        plain, recorded = x[None].clone(), x[None].clone()
        step(path, plain, table, ids * 0, model=m, **inputs)
        step(path, recorded, table, ids * 0, model=m, squares=squares, **inputs)
        assert torch.equal(squares, expected) and same_bits(plain, recorded)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 7, 9), (4, 40, 40)], ids=str)
def test_channels_last(shape: tuple[int, ...], path: str) -> None:
    """With reductions, whose rows scale their noise: the squares are of what was before."""
    rng = np.random.default_rng(shape[-1])
    for layout, registers in itertools.product(LAYOUTS, (1, 3)):
        state, table, row, given = random_case(rng, shape, 7, FLOATS, registers)
        plain, squares = state.clone(), start(7)
        expected = squares + added(table, row, shape, given)
        step(path, plain, table, row, **laid_out(given, *layout))
        step(path, state, table, row, squares=squares, **laid_out(given, *layout))
        assert torch.equal(squares, expected) and same_bits(plain, state)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("shape", [(3, 77, 91), (1, 40_001), (3,)], ids=str)
def test_threads_and_batches_change_no_number(count: int, shape: tuple[int, ...]) -> None:
    """Chains above what one thread takes alone, and above one chunk; any of them alone."""
    ids = torch.arange(64 if math.prod(shape) < 9000 else 7)
    table, inputs = one_row(x=0.5, z=0.3), {"seed": ids, "chain": ids + 3, "draw": 16 * ids}
    squares, alone = torch.zeros_like(ids), torch.zeros_like(ids)
    with threads(count):
        step("avx2" if "avx2" in PATHS else "portable", torch.zeros(1, len(ids), *shape), table, ids * 0,
             squares=squares, **inputs)  # fmt: skip
        ulam_kernels.step(torch.zeros(1, len(ids), *shape), table, ids * 0, squares=alone, **inputs)
        assert torch.equal(squares, alone) and torch.equal(squares, added(table, ids * 0, shape, inputs))
        for part in (slice(0, 1), slice(2, 7)):
            some = torch.zeros_like(ids[part])
            ulam_kernels.step(torch.zeros(1, len(some), *shape), table, ids[part] * 0, squares=some,
                              **{name: tensor[part] for name, tensor in inputs.items()})  # fmt: skip
            assert torch.equal(some, squares[part])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("n", [1, 3, 14, 200, 40_000])
def test_noise_that_has_no_square_makes_its_chain_negative(n: int, path: str) -> None:
    """In any place, of any chain and for good; all else is added as before."""
    below = np.nextafter(np.float32(LIMIT), np.float32(0))
    outside = [math.nan, -math.inf, math.inf, LIMIT, -LIMIT, 3e38]
    z = torch.randn(2 * len(outside), n, generator=torch.Generator().manual_seed(1))
    z[:, -1] = float(below)
    for b, value in enumerate(outside):
        z[2 * b, (7 * b + n // 2) % n] = value
    row, squares = torch.zeros(len(z), dtype=torch.int64), torch.zeros(len(z), dtype=torch.int64)
    expected = added(one_row(z=1.0), row, (n,), {"noise": z})
    with threads(2):
        step(path, torch.zeros(1, *z.shape), one_row(x=1.0, z=1.0), row, noise=z, squares=squares)
    assert torch.equal(squares, expected)
    assert (squares < 0).tolist() == [True, False] * len(outside)
    norms = squared_norms(squares)
    assert norms.isnan().tolist() == [True, False] * len(outside)
    torch.testing.assert_close(norms[1::2], z[1::2].double().square().sum(1), rtol=1e-6, atol=n / SQUARES_PER_UNIT)
    before = squares.clone()
    step(path, torch.zeros(1, *z.shape), one_row(z=1.0), row, noise=torch.ones_like(z), squares=squares)
    assert torch.equal(squares, before + n * SQUARES_PER_UNIT) and (squares[::2] < 0).all()


def test_halves_go_to_even() -> None:
    """z^2 2^20 = k / 2 for odd k where z^2 is a number of fp32."""
    z = torch.from_numpy(np.sqrt(np.arange(1, 4001, 2, dtype=np.float64) / 2**21)).float()
    z = z[(z * z * 2**20 % 1) == 0.5]
    assert len(z) > 20
    squares = torch.zeros(len(z), dtype=torch.int64)
    for path in PATHS:
        step(path, torch.zeros(1, len(z), 1), one_row(z=1.0), squares * 0, noise=z[:, None], squares=squares)
        assert torch.equal(squares, (z * z).double().mul(2**20).round().long())  # torch's goes to even
        squares.zero_()


def test_float64_noise_is_rounded_first() -> None:
    z = torch.tensor([[1.0 + 2.0**-30, 31.9999999999, 1e300]], dtype=torch.float64).T.contiguous()
    table = one_row(z=1.0)
    wide, squares = Table(table.coef.double(), table.flags, 1), torch.zeros(3, dtype=torch.int64)
    ulam_kernels.step(torch.zeros(1, 3, 1).double(), wide, squares * 0, noise=z, squares=squares)
    assert squares.tolist() == [SQUARES_PER_UNIT, -(2**63), -(2**63)]


def test_a_bound_step_adds_them() -> None:
    x, z = torch.randn(2, 5, 3, 70, generator=torch.Generator().manual_seed(2))
    table, squares, expected = one_row(x=0.5, z=0.5), start(5), start(5)
    ulam_kernels.step(x[None].clone(), table, squares * 0, noise=z, squares=expected)
    bound = BoundStep(table, x.shape)
    bound(0, torch.empty_like(x), x, x, z, squares)
    assert torch.equal(squares, expected)
    for other in (squares[:4], squares.int(), squares.double(), x, torch.zeros(10, dtype=torch.int64)[::2]):
        with pytest.raises(ValueError, match="squares: got another tensor, expected a contiguous int64 one"):
            bound(0, torch.empty_like(x), x, x, z, other)


def test_nothing_to_add() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    ulam_kernels.step(torch.empty(1, 0, 3), one_row(x=1.0), none, squares=none.clone())
    squares = start(2)
    ulam_kernels.step(torch.empty(1, 2, 0), one_row(x=1.0), squares * 0, squares=squares)
    assert torch.equal(squares, start(2))


def test_changes_are_counted() -> None:
    squares, ids = start(3), torch.arange(3)
    before = squares._version
    ulam_kernels.step(torch.zeros(1, 3, 2), one_row(z=1.0), ids * 0, seed=ids, chain=ids, draw=ids, squares=squares)
    assert squares._version > before


@pytest.mark.parametrize(
    ("squares", "named"),
    [
        (torch.zeros(3, dtype=torch.int64), r"squares: got shape \[3\], expected \[4\]"),
        (torch.zeros(4), "squares: got dtype torch.float32, expected torch.int64"),
        (torch.zeros(8, dtype=torch.int64)[::2], "squares: got strides"),
        (torch.zeros(4, 1, dtype=torch.int64), "squares: got shape"),
        ([0] * 4, "squares: got"),
    ],
)
def test_bad_squares_are_named(squares: Any, named: str) -> None:
    state = torch.ones(1, 4, 3)
    with pytest.raises((TypeError, ValueError), match=named):
        ulam_kernels.step(state, one_row(x=0.5), torch.zeros(4, dtype=torch.int64), squares=squares)
    assert torch.equal(state, torch.ones(1, 4, 3))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_arguments_in_their_memory_are_read_first(backend: str) -> None:
    ids = torch.arange(4)
    given = {"seed": ids + 1, "chain": ids + 2, "draw": ids + 3}
    expected = added(one_row(z=1.0), ids * 0, (5,), given)
    for name in ("row", *given):
        tensors = {"row": ids * 0, **{key: tensor.clone() for key, tensor in given.items()}}
        squares = tensors[name]
        before = squares.clone()
        row = tensors.pop("row")
        ulam_kernels.step(torch.zeros(1, 4, 5), one_row(z=1.0), row, squares=squares, backend=backend, **tensors)
        assert torch.equal(squares, before + expected), name
