"""Elements that are known, written back after each row: the same bits everywhere, and those of single rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import ulam_kernels
from bit_comparison import differences
from cpu_settings import instruction_set
from reduce_cases import MIXED, mixed_table
from ulam_kernels import _cpu
from ulam_kernels.table import COLUMN_NAMES
from ulam_kernels.walks import BoundWalk
from walk_cases import Walk, random_walk

CHAINS = (1, 2, 4, 8, 9, 17, 33)
OPTIONS: dict[str, dict[str, Any]] = {
    "apart": {"scaled": True}, "together": {"together": True}, "guided": {"guided": True},
    "guided together": {"guided": True, "together": True, "scaled": True},
}  # fmt: skip


def case(name: str, chains: int, own: bool) -> Walk:
    rng = np.random.default_rng([chains, own])
    n = int(rng.integers(2, 19))
    walk = random_walk(rng, chains, n, int(rng.integers(1, 4)), **OPTIONS[name])
    mask = torch.from_numpy(rng.random((chains, n) if own else n) < 0.4)
    mask[..., 0] = True
    known = torch.from_numpy(rng.normal(size=(chains, n))).float()
    return replace(walk, given=walk.given | {"known": known, "mask": mask})


def row_by_row(walk: Walk, backend: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """One row at a time, the elements written between them."""
    given = {name: t for name, t in walk.given.items() if name not in ("known", "mask")}
    known, mask = walk.given["known"], walk.given["mask"].expand_as(walk.given["known"])
    for _ in range(walk.steps):
        row = walk.cursor[0]
        writes = (walk.table.flags[row] & 0x1F) != 0
        states, cursor, net_in = replace(walk, given=given, steps=1).run(backend)
        stepped = (row != 0) & (cursor[4] == walk.cursor[4]) & writes
        where = mask & stepped[:, None]
        states[0][where] = known[where]
        if net_in is not None:
            scale = walk.table.coef[row, COLUMN_NAMES.index("c_next")]
            net_in[where] = (scale[:, None] * known)[where]
        walk = replace(walk, states=states, cursor=cursor, net_in=net_in)
    return walk.states, walk.cursor, walk.net_in


def assert_same(ours: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    for a, b in zip(ours, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or differences(a, b) == 0


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("chains", CHAINS)
@pytest.mark.parametrize("name", OPTIONS)
def test_every_backend_writes_them_after_each_row(name: str, chains: int, own: bool) -> None:
    walk = case(name, chains, own)
    expected = row_by_row(walk, "reference")
    assert_same(walk.run("reference"), expected)
    for instructions in _cpu.instruction_sets():
        with instruction_set(instructions) as backend:
            assert_same(walk.run(backend), expected)
    without = {k: v for k, v in walk.given.items() if k not in ("known", "mask")}
    if chains > 4:  # of few, all may be idle
        assert not torch.equal(replace(walk, given=without).run("cpu")[0], expected[0])


@pytest.mark.parametrize("own", [False, True])
def test_a_chain_is_the_same_in_any_company(own: bool) -> None:
    walk = case("guided", 33, own)
    states, cursor, _ = walk.run("cpu")
    for these in (torch.tensor([3]), torch.arange(0, 33, 2), *torch.arange(33).split(9)):
        ours = walk.chains(these).run("cpu")
        assert torch.equal(ours[0], states[:, these]) and torch.equal(ours[1], cursor[:, these])


def test_rows_with_a_reduction() -> None:
    rng = np.random.default_rng(4)
    for chains in (3, 21):
        walk = random_walk(rng, chains, 6, 2, learned=False, steps=3)
        walk.cursor[0], walk.cursor[2] = torch.arange(chains) % (len(MIXED) - 1) + 1, 0
        given = walk.given | {"known": torch.zeros(chains, 6), "mask": torch.tensor([True, False] * 3)}
        given["row_vectors"] = given["row_vectors"][: len(MIXED)].contiguous()
        walk = replace(walk, table=mixed_table(2), given=given)
        expected = row_by_row(walk, "reference")
        assert not expected[0][0, :, ::2].any() and expected[0][0, :, 1::2].any()
        for instructions in ("reference", *_cpu.instruction_sets()):
            with instruction_set(instructions) as backend:
                assert_same(walk.run(backend), expected)


def test_a_bound_walk_reads_them_where_they_are() -> None:
    """A caller may change them between walks."""
    walk = case("together", 5, False)
    states, cursor = walk.states.clone(), walk.cursor.clone()
    bound = BoundWalk(states, walk.table, cursor, walk.network, **walk.given)
    bound(1)
    walk.given["known"].add_(1)
    bound(1)
    mask = walk.given["mask"]
    assert torch.equal(states[0][:, mask], walk.given["known"][:, mask])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mask": None}, "known, mask: got one of them, expected both or neither"),
        ({"mask": torch.ones(3)}, r"mask: got shape \[3\], expected"),
        ({"mask": torch.ones(4)}, "mask: got dtype torch.float32, expected torch.bool"),
        ({"known": torch.ones(4)}, r"known: got shape \[4\], expected \[2, 4\]"),
    ],
    ids=["one", "shape", "dtype", "known"],
)
def test_what_does_not_fit_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    walk = random_walk(np.random.default_rng(0), 2, 4, 1, learned=False)
    good = {"known": torch.zeros(2, 4), "mask": torch.ones(4, dtype=torch.bool)}
    arguments: dict[str, Any] = walk.given | good | given
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        ulam_kernels.walk(walk.states, walk.table, walk.cursor, walk.network, steps=1, **arguments)
