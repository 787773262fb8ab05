"""Small jobs that an engine of whole chains has to itself, one like the other: no slots, and the bits of slots."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ulam
from mlp_cases import CASES
from ulam.engine.alone import Alone
from ulam.samplers import DDIM, DDPM, DPMSolverPP, Heun

SCHEDULE = ulam.schedules.vp_linear()
SHAPE = (4, 3)


def denoiser(schedule: ulam.schedules.Schedule = SCHEDULE) -> ulam.Denoiser:
    torch.manual_seed(1)
    return ulam.Denoiser(CASES["chunk policy"].make(), schedule)


def told(seed: int) -> dict[str, torch.Tensor]:
    return {"state": torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(seed))}


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The jobs that are walked by themselves."""
    seen: list[Any] = []
    walk = Alone.walk

    def noted(self: Alone, job: Any) -> Any:
        seen.append(job)
        return walk(self, job)

    monkeypatch.setattr(Alone, "walk", noted)
    return seen


def in_slots(net: ulam.Denoiser, sampler: Any, **given: Any) -> torch.Tensor:
    engine = ulam.Engine(net, SHAPE, 4, chain_kernel="on")
    job = engine.submit(sampler, **given)
    result: torch.Tensor = engine.run()[job]
    return result


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("schedule", [SCHEDULE, ulam.schedules.edm()], ids=lambda schedule: schedule.kind)
@pytest.mark.parametrize("sampler", [DDPM(6), DPMSolverPP(5), Heun(3)], ids=lambda sampler: type(sampler).__name__)
def test_the_second_of_two_alike_has_the_bits_of_slots(sampler: Any, schedule: Any, guided: bool, walks: Any) -> None:
    net = denoiser(schedule)
    program = net.program(sampler)
    engine = ulam.Engine(net, SHAPE, 4, chain_kernel="on")
    for seed in range(4):
        given: dict[str, Any] = {"chains": range(seed, seed + 3), "seed": seed, "cond": told(seed)}
        if guided:
            given |= {"guidance": [1.0, 2.0, float(seed)], "uncond": told(seed + 9)}
        if seed == 2:
            given |= {"x_init": torch.ones(3, *SHAPE), "first_row": 7}
        before = engine.report.evaluations
        job = engine.submit(program, **given)
        assert torch.equal(engine.run()[job], in_slots(net, program, **given))
        assert engine.report.evaluations - before == 3 * program.nfe
    assert len(walks) == 3 and engine.report.chains == 12


def test_what_needs_slots_has_them(walks: Any) -> None:
    """The first of its kind, several at once, more chains than slots, previews, a caller's noise, deadlines."""
    net = denoiser()
    engine = ulam.Engine(net, SHAPE, 3, chain_kernel="on")
    given: dict[str, Any] = {"seed": 0, "cond": told(0)}
    first = engine.submit(DDIM(4), 3, **given)
    plain = engine.run()[first]
    for more in (
        {"callback": lambda preview: None}, {"deadline": 100}, {"noise": lambda row, chains: torch.zeros(3, *SHAPE)},
        {"rollout": ulam.rollouts.Rollout()},
    ):  # fmt: skip
        job = engine.submit(DDIM(4), 3, **given, **more)
        found = engine.run()[job]
        assert torch.equal(found if isinstance(found, torch.Tensor) else found.x, plain)
    assert not walks
    pair = [engine.submit(DDIM(4), 3, **given) for _ in range(2)]
    assert all(torch.equal(x, plain) for x in map(engine.run().__getitem__, pair))
    assert walks == [pair[1]]
    for _ in range(2):
        engine.submit(DDIM(4), 4, 0, {"state": torch.zeros(4, 2, 5)})
        engine.run()
    assert len(walks) == 1
    for chains in (2, 3):
        for _ in range(2):
            engine.submit(DDIM(4), chains, 0, {"state": told(0)["state"][:chains]})
            assert all(torch.equal(x, plain[:chains]) for x in engine.run().values())
    assert len(walks) == 3


def test_a_stream_gets_chains_and_failures(walks: Any) -> None:
    net = denoiser()
    engine = ulam.Engine(net, SHAPE, 4, chain_kernel="on")
    engine.submit(DDPM(6), 3, 0, told(0))
    clean = {result.chain: result.x for result in engine.stream()}
    broken = told(0)
    broken["state"][1, 0, 0] = float("nan")
    engine.submit(DDPM(6), 3, 0, broken)
    found = {result.chain: result for result in engine.stream()}
    assert walks and {chain: result.failed for chain, result in found.items()} == {0: None, 1: 0, 2: None}
    assert all(torch.equal(found[chain].x, clean[chain]) for chain in (0, 2)) and engine.report.failed == 1
    job = engine.submit(DDPM(6), 3, 0, broken)
    out = engine.run()[job]
    assert len(walks) == 2 and out[1].isnan().all() and torch.equal(out[0], clean[0])


def test_one_cancelled_while_it_walks_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ulam.Engine(denoiser(), SHAPE, 4, chain_kernel="on")
    walk, seen = Alone.walk, []

    def cancelled(self: Alone, job: Any) -> Any:
        result = walk(self, job)
        seen.append(engine.cancel(job))
        return result

    for seed in range(2):
        engine.submit(DDPM(6), 3, seed, told(0))
        engine.run()
        monkeypatch.setattr(Alone, "walk", cancelled)
    assert seen == [3] and not engine.waiting and engine.report.cancelled == 3 and engine.report.chains == 3


def test_one_that_another_joins_while_it_walks_is_not_walked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    net = denoiser()
    engine = ulam.Engine(net, SHAPE, 4, chain_kernel="on")
    walk, seen = Alone.walk, []

    def joined(self: Alone, job: Any) -> Any:
        seen.append(job)
        if len(seen) == 1:
            engine.submit(DDIM(5), 2, 8, {"state": told(8)["state"][:2]})
        return walk(self, job)

    monkeypatch.setattr(Alone, "walk", joined)
    engine.submit(DDPM(6), 3, 0, told(0))
    engine.run()
    engine.submit(DDPM(6), 3, 1, told(1))
    mine, other = engine.run().values()
    assert len(seen) == 1 and engine.report.cancelled == 0
    assert torch.equal(mine, in_slots(net, DDPM(6), chains=3, seed=1, cond=told(1)))
    assert torch.equal(other, in_slots(net, DDIM(5), chains=2, seed=8, cond={"state": told(8)["state"][:2]}))


def test_its_weights_are_those_of_now(walks: Any) -> None:
    net = denoiser()
    engine = ulam.Engine(net, SHAPE, 4, chain_kernel="on")
    changes = [lambda: None, lambda: None]
    for parameter in [p for p in net.net.parameters() if isinstance(p, nn.Parameter)][:2]:  # type: ignore[attr-defined]
        changes += [lambda p=parameter: p.data.mul_(1.25), lambda: None]
    for change in changes:
        change()
        job = engine.submit(DDPM(6), 3, 0, told(0))
        assert torch.equal(engine.run()[job], in_slots(net, DDPM(6), chains=3, seed=0, cond=told(0)))
    assert len(walks) == len(changes) - 1


def test_long_ones_share_the_slots(monkeypatch: pytest.MonkeyPatch, walks: Any) -> None:
    monkeypatch.setattr("ulam.engine.alone.MOST_OPERATIONS", 1)
    engine = ulam.Engine(denoiser(), SHAPE, 4, chain_kernel="on")
    for seed in range(3):
        engine.submit(DDPM(6), 3, seed, told(0))
        engine.run()
    assert not walks


def test_states_that_require_grad_leave_no_graph(walks: Any) -> None:
    """Submitted where none is recorded, run where one would be."""
    net, x_init = denoiser(), torch.randn(3, *SHAPE, requires_grad=True)
    given: dict[str, Any] = {"chains": 3, "seed": 1, "cond": told(0), "x_init": x_init}
    engine = ulam.Engine(net, SHAPE, 4, chain_kernel="on")
    for _ in range(3):
        with torch.no_grad():
            job = engine.submit(DDIM(4), **given)
        result = engine.run()[job]
        assert not result.requires_grad
    assert len(walks) == 2
    with torch.no_grad():
        assert torch.equal(result, in_slots(net, DDIM(4), **given))
