"""An interrupt at any bytecode of the engine: going on gives the undisturbed bits, each chain once.

A signal may land between any two bytecodes of Python, so a tracing function raises at the n-th that the engine's files
execute. Every n: `make interrupts`; here a fixed sample of them.
"""

from __future__ import annotations

import dis
import os
import random
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import ulam
from engine_cases import SCHEDULE
from ulam.engine.delivery import Delivery
from ulam.guidance import APG
from ulam.samplers import DDIM, DDPM, DPMSolverPP, DynamicThreshold, RePaint

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")

INTERRUPTS = int(os.environ.get("ULAM_INTERRUPTS", 30))  # of each test, at most
ENGINE = str(Path(ulam.__file__).parent)
SHAPE = (2,)
WEIGHTS = torch.tensor([[0.5, -0.2], [0.1, 0.3]])
WHOLE_CHAINS = ulam.Denoiser(lambda x, t: torch.tanh(x @ WEIGHTS), SCHEDULE)  # read once


@pytest.fixture(autouse=True)
def every_batch_is_worth_its_check(monkeypatch):
    monkeypatch.setattr("ulam.engine.ladder.CALL", 0)


class Interrupt(BaseException):
    """As KeyboardInterrupt."""


def net(x, t, y):
    return torch.tanh(x) * (1 + t[:, None] / 1000) + 0.1 * y[:, None]


def engine_with_jobs():
    """Mixed programs in three slots: registers, reductions, guidance in an interval and by a rule with a memory, silent
    rows, known images.

    The last chains are in smaller batches, which are checked before.
    """
    ladder = ulam.Ladder((1, 2), tolerance=1e-9)
    engine = ulam.Engine(ulam.Denoiser(net, SCHEDULE), SHAPE, 3, ladder=ladder, branches=1)
    y, null = {"y": torch.arange(2.0)}, {"y": torch.full((2,), 10.0)}
    image = {"known": torch.ones(2, 2), "mask": torch.tensor([[1.0, 0.0]]).repeat(2, 1)}
    jobs = [
        engine.submit(DDPM(steps=2), 2, 5, y),
        engine.submit(DDIM(steps=3), 2, 6, y, 2.0, null, guidance_interval=(100.0, 700.0)),
        engine.submit(DPMSolverPP(3, clip=DynamicThreshold(0.9)), 2, 7, y, finish=lambda x: x + 1),
        engine.submit(RePaint(3, 1, 2), 2, 8, y, **image),
        engine.submit(DDIM(steps=2), 2, 9, y, 2.0, null, guidance_rule=APG(momentum=-0.5), blend=[(null, 0.5)]),
    ]
    return engine, jobs


def by_run(engine, delivered):
    for job, x in engine.run().items():
        for place in range(len(x)):
            delivered.append((job, place, x[place]))


def by_stream(engine, delivered):
    for result in engine.stream():
        delivered.append((result.job, result.chain, result.x))


def hands_over(frame):
    """Whether it is at the bytecode by which run() returns the results: from there on they are the caller's."""
    if frame.f_code is not ulam.Engine.run.__code__:
        return False
    return dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith("RETURN")


def tracer(at, counted):
    """Raises at the bytecode number ``at`` of the engine's files (0: nowhere); counts them."""

    def trace(frame, event, argument):
        if not frame.f_code.co_filename.startswith(ENGINE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            counted[0] += 1
            if counted[0] == at and not hands_over(frame):
                sys.settrace(None)
                raise Interrupt
        return trace

    return trace


def traced(call, at):
    """Call with an interrupt at the bytecode number ``at``; the bytecodes up to it, or to the end."""
    counted, before = [0], sys.gettrace()
    sys.settrace(tracer(at, counted))
    try:
        call()
    except Interrupt:
        pass
    finally:
        sys.settrace(before)
    return counted[0]


def some_of(end, last=None):
    """Bytecodes to interrupt: of those before ``end``, or the last so many of them."""
    first = max(1, end - last) if last else 1
    return range(first, end, max(1, (end - first) // INTERRUPTS))


def run_traced(deliver, at=0):
    """What was delivered (job, chain, x), the jobs, and the bytecodes up to the interrupt or the end."""
    engine, jobs = engine_with_jobs()
    delivered = []
    counted = traced(lambda: deliver(engine, delivered), at)
    if at:
        deliver(engine, delivered)
    return delivered, jobs, counted


def undisturbed_run(deliver):
    """What it delivered, by job and chain, and its bytecodes: a process's first run, which fills caches, has more."""
    run_traced(deliver)
    delivered, jobs, counted = run_traced(deliver)
    return {(jobs.index(job), chain): x for job, chain, x in delivered}, counted


def failures(deliver, places):
    """The places after which going on gave other chains or bits than the undisturbed run."""
    expected, _ = undisturbed_run(deliver)
    wrong = []
    for at in places:
        delivered, jobs, _ = run_traced(deliver, at)
        came = Counter((jobs.index(job), chain) for job, chain, _ in delivered)
        same = all(torch.equal(x, expected[jobs.index(job), chain]) for job, chain, x in delivered)
        if not same or came != Counter(expected.keys()):
            wrong.append(at)
    return wrong


@pytest.mark.parametrize("deliver", [by_run, by_stream])
def test_an_interrupt_anywhere_costs_nothing(deliver):
    _, total = undisturbed_run(deliver)
    places = range(1, total + 1)
    wrong = failures(deliver, random.Random(0).sample(places, min(2 * INTERRUPTS, total)))
    assert not wrong, f"{len(wrong)}: {wrong[:20]}"


def by_groups(engine, delivered):
    for group in engine.finished():
        for place, x in zip(range(group.chains.start, group.chains.stop), group.states, strict=True):
            delivered.append((group.job, place, x))


@pytest.mark.parametrize("other", [by_stream, by_groups])
def test_what_an_interrupted_run_had_joined_comes_by_a_stream_too(other):
    expected, total = undisturbed_run(by_run)
    for at in some_of(total, last=150):
        engine, jobs = engine_with_jobs()
        delivered = []
        traced(lambda engine=engine: engine.run(), at)
        other(engine, delivered)
        came = [(jobs.index(job), chain) for job, chain, _ in delivered]
        assert sorted(came) == sorted(expected), at - total
        assert all(torch.equal(x, expected[jobs.index(job), chain]) for job, chain, x in delivered)
        assert not engine.run()


def test_a_job_cancelled_after_an_interrupted_run_does_not_come_back():
    _, total = undisturbed_run(by_run)
    for at in some_of(total - 1, last=19):
        engine, jobs = engine_with_jobs()
        traced(lambda engine=engine: engine.run(), at)
        assert engine.cancel(jobs[1]) == 2
        assert engine.run().keys() == {*jobs} - {jobs[1]}


def ready_by_itself():
    """An engine of whole chains with a small job like the one before."""
    engine = ulam.Engine(WHOLE_CHAINS, SHAPE, 3, chain_kernel="on")
    for seed in range(2):
        engine.submit(DPMSolverPP(4), 2, seed)
        engine.run()
    return engine, engine.submit(DPMSolverPP(4), 2, 5)


def like_the_one_before(at=0, then=by_run):
    """The results of such a job, interrupted there; the bytecodes."""
    engine, _ = ready_by_itself()
    delivered = []
    counted = traced(lambda: by_run(engine, delivered), at)
    if at:
        then(engine, delivered)
    assert not engine.waiting and not engine.run() and engine.report.chains == 6
    return {place: x for _, place, x in delivered}, len(delivered), counted


@pytest.mark.parametrize("then", [by_run, by_stream])
def test_an_interrupt_of_a_job_by_itself_costs_nothing(then):
    like_the_one_before()
    expected, _, total = like_the_one_before()
    for at in some_of(total + 1):
        found, count, _ = like_the_one_before(at, then)
        assert count == 2 and all(torch.equal(x, expected[place]) for place, x in found.items()), at


def every(total=3000):
    """Bytecodes to interrupt, of about so many, until a test finds that there are no more."""
    return range(1, 10**9, max(1, total // INTERRUPTS))


def joined_by_another(engine, delivered):
    engine.submit(DDIM(steps=2), 1, 3)
    by_run(engine, delivered)


def asked_first(engine, delivered):
    assert engine.waiting in (0, 2)
    by_stream(engine, delivered)


@pytest.mark.parametrize("first", [joined_by_another, asked_first, by_stream])
def test_an_interrupt_of_what_another_does_with_a_job_by_itself_costs_nothing(first):
    expected, _, _ = like_the_one_before()
    for at in every():
        engine, job = ready_by_itself()
        delivered = []
        counted = traced(lambda e=engine, d=delivered: first(e, d), at)
        by_stream(engine, delivered)
        found = [(place, x) for done, place, x in delivered if done is job]
        assert sorted(place for place, _ in found) == [0, 1], at
        assert all(torch.equal(x, expected[place]) for place, x in found), at
        assert not engine.waiting and not engine.run()
        if counted < at:
            break


def look(engine):
    assert engine.waiting in (0, 2)


def submit_one_of_another_kind(engine):
    engine.submit(DDIM(steps=2), 2, 3)
    engine.run()


@pytest.mark.parametrize("first", [look, lambda engine: engine.run(), submit_one_of_another_kind])
def test_a_job_by_itself_after_an_interrupt_comes_once(first):
    """By runs alone, and with another like it behind: both come, and neither twice."""
    expected, _, _ = like_the_one_before()
    other = ulam.Engine(WHOLE_CHAINS, SHAPE, 3, chain_kernel="on")
    kind = other.submit(DDIM(steps=2), 2, 3)
    of_another_kind = other.run()[kind]
    for at in every():
        engine, job = ready_by_itself()
        counted = traced(lambda e=engine: first(e), at)
        jobs = [job, *(engine.submit(DPMSolverPP(4), 2, 5) for _ in range(2)), engine.submit(DDIM(steps=2), 2, 3)]
        found = {}
        for _ in range(2):
            for one, x in engine.run().items():
                assert one not in found, at
                found[one] = x
        # what the interrupted call was about to return or to submit may be lost; what waited before it may not
        assert found.keys() >= set(jobs[1:]) and (job in found or first is not look or counted < at), at
        assert not engine.waiting and not engine.run(), at
        for one, x in found.items():
            same = of_another_kind if one.program.nfe == 2 else torch.stack([expected[0], expected[1]])
            assert torch.equal(x, same), at
        if counted < at:
            break


def test_one_cancelled_after_an_interrupted_run_does_not_come_back():
    _, _, total = like_the_one_before()
    for at in some_of(total - 1, last=300):
        engine, job = ready_by_itself()
        traced(lambda e=engine: e.run(), at)
        assert engine.cancel(job) == 2 and not engine.run() and not engine.waiting, at


def test_an_interrupt_of_a_job_by_itself_that_fails_costs_nothing():
    """One chain is NaN from the start: the job leaves by the queue."""
    states = torch.tensor([[float("nan"), 0.0], [0.5, 0.5]])
    for at in every():
        engine, _ = ready_by_itself()
        engine.run()
        job = engine.submit(DPMSolverPP(4), 2, 5, x_init=states)
        before = engine.report.as_dict()
        delivered = []
        counted = traced(lambda e=engine, d=delivered: by_run(e, d), at)
        by_stream(engine, delivered)
        assert sorted(place for _, place, _ in delivered) == [0, 1] and delivered[0][0] is job, at
        after = engine.report.as_dict()
        assert [after[name] - before[name] for name in ("chains", "failed")] == [2, 1], at
        assert engine._loop.scheduler.tick == engine._runner.next_tick, at
        if counted < at:
            break


def in_thread(call, *arguments):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call, *arguments).result()


def free(engine):
    """Whether no lock is left taken, as by an interrupt between a lock's entry and its block, where no signal comes."""
    locks = engine._loop._turn, engine._lock
    taken = [lock.acquire(blocking=False) for lock in locks]
    for lock, held in zip(locks, taken, strict=True):
        if held:
            lock.release()
    return all(taken)


def test_what_is_taken_back_twice_comes_once(monkeypatch):
    """A run is interrupted when it has joined its chains, the next one as it takes them back; a thread then streams."""
    join = Delivery.join

    def interrupted(self):
        join(self)
        raise Interrupt

    for at in every(2000):
        engine = ulam.Engine(WHOLE_CHAINS, SHAPE, 3)
        job = engine.submit(DDIM(steps=2), 2, 3)
        with monkeypatch.context() as patched, pytest.raises(Interrupt):
            patched.setattr(Delivery, "join", interrupted)
            engine.run()
        came = []
        traced(lambda e=engine, d=came: by_run(e, d), at)
        if in_thread(free, engine):
            in_thread(by_stream, engine, came)
        by_stream(engine, came)
        assert [(done, chain) for done, chain, _ in came] == [(job, 0), (job, 1)], at
        if at > 2000:
            break


def change_traced(change, at=0):
    """The jobs' results with ``change(engine, jobs)`` interrupted after the first; how many in all; the bytecodes."""
    engine, jobs = engine_with_jobs()
    first = next(engine.stream())
    counted = traced(lambda: change(engine, jobs), at)
    results = [first, *engine.stream()]
    assert not engine.waiting
    return {(jobs.index(r.job), r.chain): r.x for r in results if r.job in jobs}, len(results), counted


def submit_another(engine, jobs):
    engine.submit(DDIM(steps=2), 2, 9, {"y": torch.arange(2.0)}, priority=1)


def cancel_the_third(engine, jobs):
    engine.cancel(jobs[2])


@pytest.mark.parametrize(("change", "may_go"), [(submit_another, []), (cancel_the_third, [2])])
def test_an_interrupt_while_jobs_come_and_go_costs_no_other(change, may_go):
    undisturbed, _, _ = change_traced(lambda engine, jobs: None)
    _, _, total = change_traced(change)
    for at in some_of(total + 1):
        results, count, _ = change_traced(change, at)
        others = {key: x for key, x in results.items() if key[0] not in may_go}
        expected = {key: x for key, x in undisturbed.items() if key[0] not in may_go}
        assert others.keys() == expected.keys() and all(torch.equal(x, expected[key]) for key, x in others.items()), at
        assert results.keys() <= undisturbed.keys() and count - len(results) in (0, 2), at
