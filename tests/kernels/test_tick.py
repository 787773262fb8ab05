"""The tick: rows are counted and failed chains stopped, every CPU path against the rules, bit for bit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import ulam_kernels
from cpu_settings import instruction_set, threads
from tick_cases import (
    INTEGERS,
    OUTPUTS,
    clone_of,
    expected_of,
    looked_up,
    not_finite,
    random_cursor,
    random_look_up,
    random_output,
    random_tick,
)
from ulam_kernels import _cpu, tick

BACKENDS = ["reference", "cpu"]
SHAPES = [(), (1,), (2,), (3, 5, 7), (4, 33), (1, 1000), (2, 20_001), (0,)]


def check_advance(given: dict[str, Any], backend: str | None = None) -> None:
    expected = expected_of(given)
    done = clone_of(given)
    cursor, now = done.pop("cursor"), done.pop("now")
    ulam_kernels.advance(cursor, now, **done, backend=backend)
    assert torch.equal(cursor, expected[0]) and torch.equal(now, expected[1])


# --- advance --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reference", *_cpu.instruction_sets()])
@pytest.mark.parametrize("dtype", OUTPUTS, ids=str)
def test_well_chains_go_on_and_the_others_stop(name: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(OUTPUTS.index(dtype))
    with instruction_set(name) as backend:
        for shape in SHAPES:
            for chains in (1, 7, 64) if math.prod(shape) < 10_000 else (3,):
                for bad in (0.0, 0.05, 0.5):
                    check_advance(random_tick(rng, chains, shape, dtype, guided=False, bad=bad), backend)
                    check_advance(random_tick(rng, chains, shape, dtype, guided=True, bad=bad), backend)


@pytest.mark.parametrize("name", ["reference", *_cpu.instruction_sets()])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_number_of_16_bits(name: str, dtype: torch.dtype) -> None:
    """One a chain, alone and beside finite ones."""
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    finite = torch.isfinite(numbers)
    chains = len(numbers)
    for width, place in ((1, 0), (4, 2), (5, 4)):
        model = torch.ones(chains, width, dtype=dtype)
        model[:, place] = numbers
        cursor, now = torch.ones(6, chains, dtype=torch.int64), torch.zeros(2, chains, dtype=torch.int64)
        with instruction_set(name) as backend:
            ulam_kernels.advance(cursor, now, model=model, backend=backend)
        assert torch.equal(now[0] == 1, finite)


@pytest.mark.parametrize("name", ["reference", *_cpu.instruction_sets()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_exponents_of_wide_numbers(name: str, dtype: torch.dtype) -> None:
    """Each with no mantissa bit, one or all of them, and either sign."""
    bits, kind = (23, torch.int32) if dtype == torch.float32 else (52, torch.int64)
    exponents = torch.arange(2 ** (8 if bits == 23 else 11), dtype=kind) << bits
    parts = torch.tensor([0, 1, 1 << (bits - 1), (1 << bits) - 1], dtype=kind)
    positive = (exponents[:, None] | parts).flatten()
    numbers = torch.cat([positive, positive | torch.iinfo(kind).min]).view(dtype)
    cursor = torch.ones(6, len(numbers), dtype=torch.int64)
    with instruction_set(name) as backend:
        ulam_kernels.advance(cursor, torch.zeros(2, len(numbers), dtype=torch.int64), model=numbers, backend=backend)
    assert torch.equal(cursor[0] == 2, torch.isfinite(numbers))


@pytest.mark.parametrize("name", _cpu.instruction_sets())
@pytest.mark.parametrize("dtype", OUTPUTS, ids=str)
def test_one_number_stops_its_chain_wherever_it_is(name: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(3)
    with instruction_set(name) as backend:
        for elements in (1, 2, 3, 15, 67, 129):
            for place in range(elements):
                model = torch.zeros(3, elements, dtype=dtype)
                model[1, place] = not_finite(rng, dtype)
                cursor, now = torch.full((6, 3), 5), torch.zeros(2, 3, dtype=torch.int64)
                ulam_kernels.advance(cursor, now, model=model, backend=backend)
                assert now[0].tolist() == [5, 0, 5], (elements, place)


def layouts(output: torch.Tensor) -> dict[str, tuple[torch.Tensor, bool]]:
    """The same ``[B, C, H, W]`` numbers, and whether those of a chain lie together."""
    chains, channels, height, width = output.shape
    wide = torch.full((chains, channels + 2, height, width), math.nan, dtype=output.dtype)
    wide[:, 1:-1] = output
    behind = torch.full((output.numel() + 1,), math.nan, dtype=output.dtype)
    behind[1:] = output.flatten()
    return {
        "contiguous": (output, True),
        "channels last": (output.to(memory_format=torch.channels_last), True),
        "rows and columns": (output.mT.contiguous().mT, True),
        "channels of more": (wide[:, 1:-1], True),
        "at an odd address": (behind[1:].view_as(output), True),
        "channels of more, channels last": (wide.to(memory_format=torch.channels_last)[:, 1:-1], False),
        "chains last": (output.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2), chains == 1),
        "every second": (output.repeat_interleave(2, 3)[..., ::2], False),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", OUTPUTS, ids=str)
@pytest.mark.parametrize("chains", [1, 9])
def test_any_strides_and_no_copy_where_a_chain_lies_together(backend: str, dtype: torch.dtype, chains: int,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    rng = np.random.default_rng(4)
    given = random_tick(rng, chains, (3, 4, 5), dtype, guided=True)
    for name, (model, together) in layouts(given["model"]).items():
        assert torch.equal(model.view(INTEGERS[dtype]), given["model"].view(INTEGERS[dtype])), name
        assert tick._dense(model) == together, name
        for other, _ in layouts(given["uncond"]).values():
            check_advance(given | {"model": model, "uncond": other}, backend)
        cursor, now = random_cursor(rng, chains), torch.zeros(2, chains, dtype=torch.int64)
        assert _cpu.quick_advance(cursor, now, model, None, None, "cpu", 1) == together, name


def test_an_expanded_output() -> None:
    for value in (1.0, math.nan):
        for model in (torch.tensor(value).expand(4, 3), torch.tensor([[1.0, value]]).expand(4, 2)):
            check_advance(random_tick(np.random.default_rng(0), 4, (1,), torch.float32, False) | {"model": model})


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    "chains, elements", [(1, 100_001), (2, 20_000), (5, 40_001), (9000, 2), (20_000, 1), (70, 300)]
)
def test_threads_share_chains_and_their_elements(count: int, chains: int, elements: int) -> None:
    rng = np.random.default_rng([chains, elements])
    with threads(count):
        for bad in (0.0, 0.3):
            check_advance(random_tick(rng, chains, (elements,), torch.bfloat16, guided=bad > 0, bad=bad))
            check_advance(random_tick(rng, chains, (elements,), torch.float32, guided=bad == 0, bad=bad))
        cursor = random_cursor(rng, chains)
        check_advance({"cursor": cursor, "now": torch.zeros(2, chains, dtype=torch.int64)})


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_guidance_reads(backend: str) -> None:
    """(model, uncond, weight, goes on)"""
    nan = math.nan
    cases = [
        (1, 1, 2, True), (nan, 1, 2, False), (1, nan, 2, False), (nan, nan, 2, False), (nan, 1, 0, True),
        (nan, 1, -0.0, True), (1, nan, 0, False), (1, nan, 1, True), (nan, 1, 1, False), (nan, nan, 1, False),
        (nan, nan, 0, False), (1, 1, nan, True), (nan, 1, nan, False), (1, nan, nan, False), (nan, 1, 1e-45, False),
    ]  # fmt: skip
    model, uncond, weight = (torch.tensor([float(case[k]) for case in cases]) for k in range(3))
    cursor = torch.full((6, len(cases)), 3)
    now = torch.zeros(2, len(cases), dtype=torch.int64)
    ulam_kernels.advance(cursor, now, model=model[:, None], uncond=uncond[:, None], guidance=weight, backend=backend)
    assert (now[0] == 3).tolist() == [case[3] for case in cases]


def test_the_least_weight_is_not_zero_in_a_thread_that_flushes_subnormal_numbers() -> None:
    """Nor is the least time outside an interval that ends at it."""
    least = torch.ones(1, dtype=torch.int32).view(torch.float32)
    cursor, now, weight = torch.full((6, 1), 3), torch.zeros(2, 1, dtype=torch.int64), torch.zeros(1)
    interval, guidance = torch.stack([torch.zeros(1), -least]), torch.full((1,), 2.0)
    assert torch.set_flush_denormal(True)
    try:
        ulam_kernels.advance(cursor, now, model=torch.tensor([math.nan]), uncond=torch.ones(1), guidance=least)
        row = torch.zeros(1, dtype=torch.int64)
        ulam_kernels.look_up(torch.zeros(1), row, torch.ones(1), guidance=guidance, interval=interval, weight=weight)
    finally:
        torch.set_flush_denormal(False)
    assert now.tolist() == [[0], [3]]
    assert weight.tolist() == [1.0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_learned_variances_count_and_idle_chains_are_not_looked_at(backend: str) -> None:
    model = torch.zeros(4, 2, 3)
    model[1, 1, 2], model[2] = math.inf, math.nan
    cursor = torch.tensor([[4, 5, 0, 7], [64, 80, 96, 2**63 - 1], [1, 1, 0, 2], [16, 16, 0, 1], [0, 0, 3, 0], [0] * 4])
    now = torch.full((2, 4), -1)
    ulam_kernels.advance(cursor, now, model=model, backend=backend)
    assert now.tolist() == [[4, 0, 0, 7], [64, 80, 96, 2**63 - 1]]
    assert cursor.tolist() == [
        [5, 0, 0, 9], [80, 80, 96, -(2**63)], [1, 0, 0, 2], [16, 0, 0, 1], [0, 5, 3, 0], [0] * 4
    ]  # fmt: skip
    ulam_kernels.advance(cursor, now, model=model.zero_(), backend=backend)  # what has failed stays where it is
    assert now.tolist() == [[5, 0, 0, 9], [80, 80, 96, -(2**63)]]
    assert cursor[:, 1].tolist() == [0, 80, 0, 0, 5, 0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_an_output_rows_are_counted_only(backend: str) -> None:
    cursor = random_cursor(np.random.default_rng(5), 300)
    check_advance({"cursor": cursor, "now": torch.full((2, 300), -1)}, backend)
    empty, none = torch.zeros(6, 0, dtype=torch.int64), torch.zeros(2, 0, dtype=torch.int64)
    ulam_kernels.advance(empty, none, backend=backend)
    ulam_kernels.advance(empty, none, model=torch.zeros(0, 3), backend=backend)


# --- both -----------------------------------------------------------------------------------------------------------


def test_plain_tensors_take_the_short_way_and_others_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The short way is native alone; a backend that is named, there or in the environment, keeps off it."""

    class Derived(torch.Tensor):
        pass

    rng = np.random.default_rng(8)
    given = random_tick(rng, 6, (3, 2), torch.float32, guided=True)
    looks = random_look_up(rng, 6, 9, torch.float32, limited=True)
    names = ("cursor", "now", "model", "uncond", "guidance")
    advance = [clone_of(given)[name] for name in names]
    look_up = [looks[name] for name in ("times", "row", "out", "guidance", "interval", "weight")]
    for backend, wanted in ((None, True), ("cpu", True), ("reference", False), ("triton", False), (3, False)):
        assert _cpu.quick_advance(*advance, backend, 1) is wanted
        assert _cpu.quick_look_up(*look_up, backend, 1) is wanted
    for name, wanted in (("reference", False), ("cpu", True), ("", True)):
        monkeypatch.setenv("ULAM_BACKEND", name)
        assert _cpu.quick_advance(*advance, None, 1) is wanted
        assert _cpu.quick_look_up(*look_up, None, 1) is wanted
    monkeypatch.delenv("ULAM_BACKEND")
    assert _cpu.quick_advance(*advance, None, 1)
    derived = {name: given[name].as_subclass(Derived) for name in ("model", "uncond")}
    assert not _cpu.quick_advance(*clone_of(given | derived).values(), None, 1)
    check_advance(given | derived)
    monkeypatch.setattr(tick, "_quick", lambda: (tick._never, tick._never))
    check_advance(given)
    ulam_kernels.look_up(**looks)
    assert torch.equal(looks["weight"], looked_up(looks)[1])


COUNTS, TWO = torch.zeros(6, 2, dtype=torch.int64), torch.zeros(2)
NOW = torch.zeros(2, 2, dtype=torch.int64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("changes, named", [
    ({"cursor": torch.zeros(5, 2, dtype=torch.int64)}, "cursor: got shape"),
    ({"cursor": torch.zeros(6, dtype=torch.int64)}, "cursor: got shape"),
    ({"cursor": torch.zeros(6, 2)}, "cursor: got dtype"),
    ({"cursor": torch.zeros(2, 6, dtype=torch.int64).T}, "cursor: got strides"),
    ({"now": torch.zeros(2, 3, dtype=torch.int64)}, "now: got shape"),
    ({"now": torch.zeros(2, 2, dtype=torch.int32)}, "now: got dtype"),
    ({"now": torch.zeros(2, 2, dtype=torch.int64).T}, "now: got strides"),
    ({"now": torch.zeros(2, 2, dtype=torch.int64, device="meta")}, "now: got a tensor on meta"),
    ({"model": torch.zeros(3, 4)}, "model: got shape"),
    ({"model": torch.zeros(())}, "model: got shape"),
    ({"model": torch.zeros(2, 4, dtype=torch.int64)}, "model: got dtype"),
    ({"model": torch.zeros(2, 4, dtype=torch.complex64)}, "model: got dtype"),
    ({"model": torch.zeros(2, 4, device="meta")}, "model: got a tensor on the meta device"),
    ({"model": None, "uncond": torch.zeros(2, 4), "guidance": TWO}, "uncond: got"),
    ({"uncond": torch.zeros(2, 5), "guidance": TWO}, "uncond: got"),
    ({"uncond": torch.zeros(2, 4, dtype=torch.float16), "guidance": TWO}, "uncond: got"),
    ({"uncond": torch.zeros(2, 4)}, "guidance: got None"),
    ({"uncond": torch.zeros(2, 4), "guidance": torch.zeros(3)}, "guidance: got shape"),
    ({"uncond": torch.zeros(2, 4), "guidance": TWO.double()}, "guidance: got dtype"),
    ({"now": COUNTS[:2]}, "cursor: got memory shared with now"),
    ({"now": COUNTS[3:5]}, "cursor: got memory shared with now"),
    ({"model": NOW.view(torch.float32)[:, :1], "now": NOW}, "now: got memory shared with model"),
    ({"model": COUNTS[5:].view(torch.float32).view(2, 2)}, "cursor: got memory shared with model"),
])  # fmt: skip
def test_bad_input_of_advance_is_named(backend: str, changes: dict[str, Any], named: str) -> None:
    given: dict[str, Any] = {"cursor": COUNTS, "now": torch.zeros(2, 2, dtype=torch.int64), "model": torch.zeros(2, 4)}
    given |= changes
    with pytest.raises((TypeError, ValueError), match=f"^{named}"):
        ulam_kernels.advance(given.pop("cursor"), given.pop("now"), **given, backend=backend)


def test_outputs_with_a_gradient_and_in_inference_mode() -> None:
    given = random_tick(np.random.default_rng(10), 4, (3,), torch.float32, guided=False)
    check_advance(given | {"model": given["model"].clone().requires_grad_() * 1})
    with torch.inference_mode():
        check_advance(given | {"model": random_output(np.random.default_rng(11), (4, 3), torch.float32)})
