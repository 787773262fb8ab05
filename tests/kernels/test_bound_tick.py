"""A bound tick is look_up, advance and step, bit for bit, and leaves to them what is not plain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import ulam_kernels
from cpu_settings import instruction_set, threads
from step_cases import ROWS, one_row, random_table
from tick_cases import random_output
from ulam_kernels import Table, _cpu
from ulam_kernels.cpu import BoundTick

SHAPES = [(), (1,), (14,), (3, 5, 7), (2, 9000)]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def without_learned(table: Table) -> Table:
    """The rows without a learned variance: outputs are as large as the states."""
    return Table(table.coef, table.flags & ~LEARNED, table.registers)


def learned_flag() -> int:
    """The flag that only a row with a learned variance has."""
    plain, learned = (one_row(x=1.0, z=1.0, **more).flags.item() for more in ({}, {"lv_m": 0.0}))
    return int(learned) & ~int(plain)


LEARNED = learned_flag()


def tick_of(seed: int, shape: tuple[int, ...], dtype: torch.dtype, chains: int = 5, **chosen: Any) -> dict[str, Any]:
    """What a bound tick is made of: random rows, some idle, and inputs of any kind."""
    rng = np.random.default_rng(seed)
    registers = int(chosen.get("registers", rng.integers(1, 4)))
    whole, checks, apart = (bool(chosen.get(name, rng.random() < 0.5)) for name in ("whole", "checks", "apart"))
    integers = lambda *size: torch.from_numpy(rng.integers(-(2**40), 2**40, size))  # noqa: E731
    cursor = integers(6, chains)
    cursor[0], cursor[2], cursor[4:] = torch.from_numpy(rng.integers(0, ROWS - 1, chains)), 1, 0
    times = torch.from_numpy(rng.integers(0, 1000, ROWS))
    return {
        "times": times if whole else times.float(),
        "out": torch.full((chains,), -9, dtype=torch.int64 if whole else torch.float32),
        "cursor": cursor,
        "now": torch.full((2, chains), -7),
        "state": torch.from_numpy(rng.normal(size=(registers, chains, *shape))).to(dtype),
        "table": without_learned(random_table(rng, registers)),
        "guidance": torch.from_numpy(rng.choice([0.0, 1.0, 2.5], size=chains)).float(),
        "seed": integers(chains),
        "chain": integers(chains).abs(),
        "net_in": torch.full((chains, *shape), float("nan"), dtype=FLOATS[seed % 3]) if apart else None,
        "squares": integers(chains) if chosen.get("records", seed % 4 < 2) else None,
        "check_finite": checks,
    }


def copied(tick: dict[str, Any]) -> dict[str, Any]:
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in tick.items()}


def one_by_one(tick: dict[str, Any], model: torch.Tensor, uncond: torch.Tensor | None) -> None:
    """The operations that a bound tick stands for."""
    t = tick
    outputs = {"model": model, "uncond": uncond, "guidance": None if uncond is None else t["guidance"]}
    ulam_kernels.look_up(t["times"], t["cursor"][0], t["out"])
    ulam_kernels.advance(t["cursor"], t["now"], **outputs if t["check_finite"] else {})
    row, draw = t["now"]
    ids = {"seed": t["seed"], "chain": t["chain"], "draw": draw}
    ulam_kernels.step(t["state"], t["table"], row, **outputs, **ids, net_in=t["net_in"], squares=t["squares"])


def assert_same(tick: dict[str, Any], other: dict[str, Any]) -> None:
    for name in ("out", "cursor", "now", "state", "net_in", "squares"):
        if tick[name] is not None:
            ours, theirs = (given[name].view(torch.uint8) for given in (tick, other))
            assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("name", _cpu.instruction_sets())
@pytest.mark.parametrize("count", [1, 2])
def test_a_bound_tick_is_its_operations(name: str, count: int) -> None:
    with instruction_set(name), threads(count), torch.no_grad():
        for seed in range(30):
            rng = np.random.default_rng(100 + seed)
            shape, dtype = SHAPES[seed % len(SHAPES)], FLOATS[seed // 2 % 3]
            tick = tick_of(seed, shape, dtype)
            expected = copied(tick)
            bound = BoundTick(**tick)
            for _ in range(3):
                kind = FLOATS[int(rng.integers(3))]
                model, other = (random_output(rng, (5, *shape), kind, bad=0.2) for _ in range(2))
                uncond = other if rng.random() < 0.5 else None
                one_by_one(expected, model, uncond)
                keys = [key for key in ("out", "state", "squares") if tick[key] is not None]
                versions = [tick[key]._version for key in keys]
                assert bound.look_up() and bound.step(model, uncond)
                assert all(tick[key]._version > before for key, before in zip(keys, versions, strict=True))
                assert_same(tick, expected)
                for each in (tick, expected):
                    each["cursor"][0] %= ROWS


def test_the_output_may_be_the_state_itself() -> None:
    tick = tick_of(3, (14,), torch.float32)
    expected = copied(tick)
    with torch.inference_mode():
        one_by_one(expected, expected["state"][0].clone(), None)
        bound = BoundTick(**tick)
        assert bound.look_up() and bound.step(tick["state"][0], None)
    assert_same(tick, expected)


def test_what_is_not_plain_is_left_untouched() -> None:
    tick = tick_of(3, (4, 6), torch.float32, registers=2, apart=True, records=True)  # whose net_in is float32
    bound, before, x = BoundTick(**tick), copied(tick), torch.zeros(5, 4, 6)
    outputs: list[Any] = [
        x[:4], x.mT.contiguous().mT, x[:, :1].expand(5, 4, 6), x.flatten(1), torch.zeros(5, 8, 6), x.double(), x.int(),
        x.to("meta"), x.to_sparse(), torch.nn.Parameter(x), x.numpy(), torch._neg_view(x), torch.zeros(0, 4, 6),
        tick["state"][1], tick["state"].view(-1)[1 : 1 + x.numel()].view_as(x), tick["net_in"], "x",
        tick["squares"].view(torch.float32)[:5, None, None].expand(5, 4, 6),
    ]  # fmt: skip
    with torch.inference_mode():
        for output in outputs:
            assert not bound.step(output, None), output
            assert not bound.step(x, output), output
        assert not bound.step(None, None) and not bound.step(x, x.half())
    assert_same(tick, before)


class Observing(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def test_what_torch_records_is_left_to_the_operations() -> None:
    tick = tick_of(2, (4,), torch.float32)
    bound, before, x = BoundTick(**tick), copied(tick), torch.zeros(5, 4)
    for mode in (Observing(), FakeTensorMode(allow_non_fake_inputs=True)):
        with mode:
            assert not bound.look_up() and not bound.step(x, None)

    def traced(x: torch.Tensor) -> torch.Tensor:
        assert not bound.look_up() and not bound.step(x, None)
        return x * 2

    torch.jit.trace(traced, (x,), check_trace=False)
    torch.func.vmap(traced)(x[None])
    assert_same(tick, before)


def test_times_that_have_moved_are_left_to_look_up() -> None:
    tick = tick_of(5, (4,), torch.float32)
    bound = BoundTick(**tick)
    tick["out"].data = torch.zeros(5, dtype=tick["out"].dtype)
    assert not bound.look_up() and not tick["out"].any()


def test_rows_outside_the_table_are_refused() -> None:
    tick = tick_of(7, (4,), torch.float32)
    bound = BoundTick(**tick)
    tick["cursor"][0, 3] = ROWS
    for call in (bound.look_up, lambda: bound.step(torch.zeros(5, 4), None)):
        with pytest.raises(IndexError, match=f"row: got {ROWS} for chain 3, expected a row of the table of {ROWS}"):
            call()
