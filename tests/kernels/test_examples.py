"""A step of training examples: the bits of a step, short chains on every instruction set, and what it leaves undone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ulam_kernels
from ulam_kernels import Table, _cpu
from ulam_kernels.examples import quick_examples

ROWS = 7
SIZES = ((2,), (1,), (3,), (4,), (5,), (2, 8), (63,), (64,), (130,))


def table(pair: bool) -> Table:
    """r0 <- a r0 + b z, r1 <- c r0 + d z with some coefficients 0; or rows that read r1 too."""
    draw = np.random.default_rng(0)
    A = np.zeros((ROWS, 2, 5))
    A[:, :, 0], A[:, :, 4] = draw.normal(size=(ROWS, 2)), draw.normal(size=(ROWS, 2))
    A[1, 0, 0] = A[2, 0, 4] = A[3, 1, 0] = A[4, 1, 4] = A[5, 0, 0] = A[5, 0, 4] = 0
    if not pair:
        A[::2, 0, 1] = 0.3
    zero, one = np.zeros(ROWS), np.ones(ROWS)
    return Table.pack(
        zero, zero, zero - np.inf, zero + np.inf, zero, zero, one, A, np.ones((ROWS, 2), dtype=bool), zero > 0
    )


def stepped(rows: Table, x: torch.Tensor, row: torch.Tensor, seed: int, first: int, draw: int) -> torch.Tensor:
    state, ids = torch.ones(2, *x.shape, dtype=x.dtype), torch.arange(len(x)) + first
    given = {"seed": torch.full_like(ids, seed), "chain": ids, "draw": torch.full_like(ids, draw)}
    ulam_kernels.step(state, rows, row, source=x, **given, backend="reference")
    return state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_bits_are_those_of_the_reference_step(size: tuple[int, ...], dtype: torch.dtype) -> None:
    before = _cpu.instruction_set()
    try:
        for name in _cpu.instruction_sets():
            _cpu.use_instruction_set(name)
            for pair, chains in ((True, 1), (True, 37), (False, 37)):
                rows, generator = table(pair), torch.Generator().manual_seed(chains)
                x = torch.randn(chains, *size, generator=generator).to(dtype)
                row = torch.randint(0, ROWS, (chains,), generator=generator)
                names = (-3, (5 << 44) + 1, 2**60 + 16)  # draws beyond 32 bits take another key
                state = torch.ones(2, *x.shape, dtype=dtype)
                assert quick_examples()(state, x, row, rows.coef, rows.flags, *names, "cpu", 1)
                assert torch.equal(state, stepped(rows, x, row, *names)), (name, pair, chains)
    finally:
        _cpu.use_instruction_set(before)


def test_a_coefficient_of_0_reads_nothing() -> None:
    rows, x, row = table(True), torch.full((20, 2), torch.nan), torch.full((20,), 1)
    state = torch.ones(2, 20, 2)
    assert quick_examples()(state, x, row, rows.coef, rows.flags, 0, 0, 16, "cpu", 1)
    assert state[0].isfinite().all() and state[1].isnan().all()


def test_rows_outside_are_refused() -> None:
    rows, x, state = table(True), torch.ones(4, 2), torch.ones(2, 4, 2)
    for bad in (-1, ROWS):
        row = torch.tensor([0, 1, bad, 2])
        with pytest.raises(IndexError, match=rf"^row: got {bad} for chain 2"):
            quick_examples()(state, x, row, rows.coef, rows.flags, 0, 0, 16, None, 1)
    assert (state == 1).all()


def test_what_is_not_plain_is_left_undone() -> None:
    rows, x, row, state = table(True), torch.randn(4, 6), torch.zeros(4, dtype=torch.int64), torch.ones(2, 4, 6)
    good = (state, x, row, rows.coef, rows.flags, 0, 0, 16, None, 1)
    bad = {
        0: [state[:, :, ::2], state.double(), state[0], torch.ones(3, 4, 6), None],
        1: [x[:, ::2], x.double(), x.half(), state[0], x[:, :5], torch._neg_view(x), x.to("meta"), None],
        2: [row.int(), row[:3], torch.zeros(8, dtype=torch.int64)[::2], row[None]],
        3: [rows.coef.double(), rows.coef[:, :16].contiguous(), rows.coef.T],
        4: [rows.flags.long(), rows.flags[:3]],
        8: ["reference", "triton", 3],
    }
    for place, others in bad.items():
        for other in others:
            assert not quick_examples()(*good[:place], other, *good[place + 1 :]), (place, other)
    assert (state == 1).all()
    assert not torch.func.vmap(lambda x: (quick_examples()(state, x[None], row, *good[3:]), x)[1])(x).equal(x + 1)
    assert (state == 1).all() and quick_examples()(*good) and not (state == 1).all()
