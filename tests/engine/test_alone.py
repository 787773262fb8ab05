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
WEIGHTS = torch.tensor([[0.5, -0.2], [0.1, 0.3]])
UNCONDITIONAL = ulam.Denoiser(lambda x, t: torch.tanh(x @ WEIGHTS), SCHEDULE)


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


def kept(queue: int | None = None, chains: int = 3) -> tuple[ulam.Engine, Any, torch.Tensor]:
    """An engine, idle but for a job like the last one, that job, and the states it is to have."""
    engine = ulam.Engine(UNCONDITIONAL, (2,), 4, chain_kernel="on", queue=queue)
    for seed in range(2):
        engine.submit(DDPM(6), chains, seed)
        engine.run()
    other = ulam.Engine(UNCONDITIONAL, (2,), 4, chain_kernel="on")
    like = other.submit(DDPM(6), chains, 7)
    expected: torch.Tensor = other.run()[like]
    return engine, engine.submit(DDPM(6), chains, 7), expected


def test_one_without_conditioning_needs_no_queue(walks: Any) -> None:
    engine, job, expected = kept()
    before = engine.report.as_dict()
    assert engine._loop._kept is not None and engine._loop._kept[0] is job
    assert torch.equal(engine.run()[job], expected) and walks[-1] is job and not engine.run()
    after = engine.report.as_dict()
    grown = {name: after[name] - before[name] for name in ("chains", "ticks", "evaluations", "rows", "failed")}
    assert grown == {"chains": 3, "ticks": 6, "evaluations": 18, "rows": 18, "failed": 0}
    assert before["seconds"] < after["seconds"] and before["network_seconds"] < after["network_seconds"]


def test_one_without_conditioning_is_seen_to_wait() -> None:
    """By everything that asks an engine what it has to do, or takes some of it away."""
    engine, job, expected = kept()
    assert engine.waiting == 3 and torch.equal(engine.run()[job], expected)
    engine, job, expected = kept()
    assert engine.predicted_end(job) == 6 and torch.equal(engine.run()[job], expected)
    engine, job, expected = kept()
    found = {result.chain: result.x for result in engine.stream()}
    assert torch.equal(torch.stack([found[chain] for chain in range(3)]), expected)
    engine, job, _ = kept()
    assert engine.cancel(job) == 3 and not engine.run() and engine.report.cancelled == 3
    engine, _, _ = kept()
    assert engine.drop_waiting() == 3 and not engine.run() and engine.report.cancelled == 3
    engine, _, _ = kept()
    assert engine.close() == [] and engine.report.cancelled == 3
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(DDPM(6), 3, 7)
    engine, _, _ = kept(queue=4)
    with pytest.raises(ulam.QueueFull):
        engine.submit(DDPM(6), 2, 7)


def test_one_that_lacks_its_conditioning_is_refused(walks: Any) -> None:
    engine = ulam.Engine(denoiser(), SHAPE, 4, chain_kernel="on")
    for seed in range(3):
        engine.submit(DDPM(6), 3, seed, told(seed))
        engine.run()
    with pytest.raises(ValueError, match="state"):
        engine.submit(DDPM(6), 3, 3)
    assert len(walks) == 2 and not engine.waiting and not engine.run()


def test_one_that_waits_by_itself_while_another_is_looked_at(walks: Any) -> None:
    """By a thread whose job is cancelled before it walks."""
    engine, job, expected = kept()
    other = ulam.Engine(UNCONDITIONAL, (2,), 4, chain_kernel="on").submit(DDIM(9), 3, 7)
    assert not engine._loop._alone.takes(other)  # type: ignore[union-attr]
    assert torch.equal(engine.run()[job], expected) and job not in walks
    for _ in range(3):
        job = engine.submit(DDIM(9), 3, 7)
        assert torch.equal(engine.run()[job], ulam.sample(UNCONDITIONAL, DDIM(9), (2,), 3, 7, chain_kernel="on"))


class Falsy(list[object]):
    """A function that is empty, as a module without layers is."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return -x


@pytest.mark.parametrize(
    "more", [{"priority": 1}, {"weight": 2.0}, {"deadline": 50}, {"finish": torch.neg}, {"finish": Falsy()}, {}]
)
def test_others_may_join_one_that_waits_by_itself(more: dict[str, Any]) -> None:
    engine, job, expected = kept()
    other = engine.submit(DDPM(6), 3, 7, **more)
    found = engine.run()
    assert list(found) == [job, other] or more
    assert torch.equal(found[job], expected)
    assert torch.equal(found[other], -expected if "finish" in more else expected)
    again = engine.submit(DDPM(6), 3, 7, **more)
    assert torch.equal(engine.run()[again], found[other]) and not engine.waiting


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
