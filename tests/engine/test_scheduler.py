"""The chain scheduler: plain Python, against a slot-by-slot simulation."""

from __future__ import annotations

import itertools
import math
import pickle
import random
import subprocess
import sys
import time
import weakref
from dataclasses import dataclass

import pytest

from ulam.engine.errors import QueueFull
from ulam.engine.scheduler import POLICIES, Scheduler


@dataclass
class Work:
    """A job as the simulation sees it, arriving at a tick."""

    chains: int
    ticks: int
    priority: int = 0
    weight: float = 1.0
    deadline: int | None = None
    arrival: int = 0


def occupied(scheduler):
    slots = [slot for group in scheduler.groups for slot in range(group.slots.start, group.slots.stop)]
    assert len(slots) == len(set(slots)) == scheduler.active == scheduler.slots - scheduler.free
    assert all(0 <= slot < scheduler.slots for slot in slots)
    return scheduler.active


def run(slots, jobs, policy="fifo"):
    """All jobs to the end; ticks taken, and for each job the (entry, exit) of every chain."""
    scheduler = Scheduler(slots, policy)
    spans = [[None] * job.chains for job in jobs]
    coming = sorted(range(len(jobs)), key=lambda i: jobs[i].arrival)
    while scheduler.busy or coming:
        if not scheduler.busy:
            scheduler.tick = max(scheduler.tick, jobs[coming[0]].arrival)
        while coming and jobs[coming[0]].arrival <= scheduler.tick:
            job = jobs[i := coming.pop(0)]
            deadline = None if job.deadline is None else job.deadline - scheduler.tick
            scheduler.submit(i, job.chains, job.ticks, job.priority, job.weight, deadline)
        scheduler.admit()
        assert occupied(scheduler) == slots or not scheduler.waiting, "a slot is free while chains wait"
        step = scheduler.ticks_until_event
        scheduler.tick += min(step, jobs[coming[0]].arrival - scheduler.tick) if coming else step
        for group in scheduler.retire():
            assert group.end == scheduler.tick
            for chain in range(group.chains.start, group.chains.stop):
                assert spans[group.job][chain] is None, "a chain was delivered twice"
                spans[group.job][chain] = (group.start, group.end)
    return scheduler.tick, spans


def simulate(slots, jobs, policy="fifo"):
    """The same, one slot and one tick at a time, from the rules as they are stated."""
    left, owner = [0] * slots, [None] * slots
    spans = [[] for _ in jobs]
    latest = {}  # the latest start
    tick = 0
    while any(left) or any(len(spans[i]) < job.chains for i, job in enumerate(jobs)):
        for i, job in enumerate(jobs):
            if job.arrival <= tick and i not in latest:
                latest[i] = math.inf if job.deadline is None else job.deadline - -(-job.chains // slots) * job.ticks
        order = sorted(latest, key=lambda i: jobs[i].arrival)
        longest = max((jobs[i].ticks for i in latest), default=0)
        for slot in range(slots):
            waiting = [i for i in order if len(spans[i]) < jobs[i].chains]
            if left[slot] or not waiting:
                continue
            keys = {}
            for number, i in enumerate(waiting):
                job = jobs[i]
                smith = (job.chains - len(spans[i])) * job.ticks / job.weight
                share = (owner.count(i) + 1) / job.weight
                value = {"fifo": 0, "shortest": smith, "fair": share, "deadline": latest[i]}[policy]
                pressing = policy != "deadline" and latest[i] - longest <= tick
                keys[i] = -job.priority, not pressing, smith if pressing else value, number
            i = min(waiting, key=keys.get)
            left[slot], owner[slot] = jobs[i].ticks, i
            spans[i].append((tick, tick + jobs[i].ticks))
        tick += 1
        left = [max(ticks - 1, 0) for ticks in left]
        owner = [i if ticks else None for i, ticks in zip(owner, left, strict=True)]
    return tick, spans


def some_jobs(rng, plain=False):
    jobs = []
    for _ in range(rng.randint(1, 8)):
        job = Work(rng.randint(1, 30), rng.choice([1, 2, 5, 20]), arrival=rng.choice([0, 0, 3, 17, 40]))
        if not plain:
            job.priority = rng.choice([0, 0, 1])
            job.weight = rng.choice([0.1, 0.7, 1.0, 3.0])
            job.deadline = rng.choice([None, None, job.arrival + rng.randint(0, 120)])
        jobs.append(job)
    return sorted(jobs, key=lambda job: job.arrival)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "weights and deadlines"])
def test_random_workloads_enter_as_the_rules_say(policy, plain):
    rng = random.Random(f"{policy} {plain}")
    for _ in range(150):
        slots, jobs = rng.randint(1, 20), some_jobs(rng, plain)
        ticks, spans = run(slots, jobs, policy)
        expected_ticks, expected = simulate(slots, jobs, policy)
        assert [sorted(each) for each in spans] == expected and ticks == expected_ticks


@pytest.mark.parametrize("policy", POLICIES)
def test_the_plan_is_exact(policy):
    """At every event, after submissions and cancellations at random ticks; and it leaves the scheduler as it is."""
    rng = random.Random(policy)
    for _ in range(40):
        scheduler, planned, ended, numbers = Scheduler(rng.randint(1, 12), policy), {}, {}, itertools.count()
        for _ in range(rng.randint(5, 40)):
            event = rng.random()
            if event < 0.4:
                deadline = rng.choice([None, rng.randint(0, 90)])
                chains, ticks, weight = rng.randint(1, 30), rng.choice([1, 2, 5, 20]), rng.choice([0.5, 1.0, 2.0])
                scheduler.submit(next(numbers), chains, ticks, rng.choice([0, 1]), weight, deadline)
            elif event < 0.5 and planned:
                gone = rng.choice(list(planned))
                held = sum(group.size for group in scheduler.groups if group.job == gone)
                dropped, left = scheduler.cancel(gone)
                assert dropped >= sum(group.size for group in left) == held
            planned = scheduler.plan()
            assert planned == scheduler.plan() and planned.keys().isdisjoint(ended)
            scheduler.admit()
            assert scheduler.plan() == planned and occupied(scheduler) <= scheduler.slots
            scheduler.tick += rng.randint(0, scheduler.ticks_until_event)
            for group in scheduler.retire():
                assert scheduler.tick <= planned[group.job]
                if planned[group.job] == scheduler.tick:
                    ended[group.job] = scheduler.tick
            for job, end in scheduler.plan().items():
                assert end == planned[job] and scheduler.predicted_end(job) == end - scheduler.tick > 0
        finals = scheduler.plan()
        while scheduler.busy:
            scheduler.admit()
            scheduler.tick += scheduler.ticks_until_event
            last = {group.job: scheduler.tick for group in scheduler.retire()}
            for job in last.keys() - scheduler.plan().keys():
                assert finals.pop(job) == scheduler.tick
        assert not finals and scheduler.plan() == {} and scheduler.predicted_end(0) is None
        assert (scheduler.active, scheduler.waiting, scheduler.free) == (0, 0, scheduler.slots)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_mixed_trace_keeps_the_slots_busy(policy):
    """512 chains of 10 to 250 steps over 64 slots, against batches of 64 that last as long as their longest chain."""
    for seed in range(20):
        rng = random.Random(seed)
        lengths = [rng.choice([10, 20, 50, 100, 250]) for _ in range(512)]
        scheduler, used, possible = Scheduler(64, policy), 0, 0
        for job, ticks in enumerate(lengths):
            scheduler.submit(job, 1, ticks)
        while scheduler.busy:
            scheduler.admit()
            step = scheduler.ticks_until_event
            if scheduler.waiting:
                used, possible = used + step * scheduler.active, possible + step * 64
            scheduler.tick += step
            scheduler.retire()
        static = sum(max(lengths[batch : batch + 64]) for batch in range(0, 512, 64))
        assert used == possible, "occupancy until the queue is empty"
        assert scheduler.tick <= 0.5 * static
        assert scheduler.tick < sum(lengths) / 64 + 250, "Graham's bound for any order"


def test_equal_chains_stay_one_group():
    scheduler = Scheduler(64)
    scheduler.submit("a", 256, 10)
    for _ in range(4):
        assert len(scheduler.admit()) == 1
        scheduler.tick += scheduler.ticks_until_event
        assert [group.size for group in scheduler.retire()] == [64]
    assert not scheduler.busy


@pytest.mark.parametrize("policy", POLICIES)
def test_work_follows_events_not_chains(policy):
    """A million slots and a hundred million chains, with weights that share the slots: no more than some groups."""
    scheduler, groups = Scheduler(1_000_000, policy), 0
    for job, weight in enumerate((1.0, 2.5, 0.3)):
        scheduler.submit(job, 40_000_000 + job, 50, weight=weight)
    begin = time.process_time()
    planned = scheduler.plan()
    while scheduler.busy:
        groups += len(scheduler.admit())
        scheduler.tick += scheduler.ticks_until_event
        scheduler.retire()
    assert groups < 2000 and time.process_time() - begin < 5
    assert max(planned.values()) == scheduler.tick == 50 * math.ceil(120_000_003 / 1_000_000)


# ------------------------------------------------------------------------------------- cancelling and the queue


def test_cancel_frees_slots_and_keeps_the_others():
    scheduler = Scheduler(8)
    scheduler.submit("a", 20, 10)
    scheduler.submit("b", 4, 10)
    scheduler.admit()
    scheduler.tick += 3
    dropped, left = scheduler.cancel("a")
    assert dropped == 20 and [(g.job, g.size) for g in left] == [("a", 8)]
    assert scheduler.cancel("a") == (0, []) and scheduler.cancel("never") == (0, [])
    assert scheduler.plan() == {"b": 13} and [g.slots for g in scheduler.admit()] == [slice(0, 4)]
    scheduler.submit("a", 1, 2)
    scheduler.admit()
    assert scheduler.plan() == {"b": 13, "a": 5} and scheduler.ticks_until_event == 2


def test_drop_waiting_leaves_what_is_in_slots():
    for policy in POLICIES:
        scheduler = Scheduler(4, policy)
        scheduler.submit("a", 6, 10)
        scheduler.submit("b", 6, 10, deadline=50)
        scheduler.admit()
        inside = {group.job: scheduler.tick + 10 for group in scheduler.groups}
        scheduler.drop_waiting()
        assert scheduler.waiting == 0 and scheduler.active == 4 and scheduler.plan() == inside
        scheduler.tick += 10
        assert sum(group.size for group in scheduler.retire()) == 4 and not scheduler.busy
        assert scheduler.admit() == []


@pytest.mark.parametrize("policy", POLICIES)
def test_looking_ahead_changes_nothing(policy):
    """Every field, and all that it holds, is as before: a field that a look ahead shares would show."""
    scheduler = Scheduler(4, policy, capacity=20)
    for number, (chains, ticks) in enumerate([(3, 5), (6, 2), (5, 7)]):
        scheduler.submit(number, chains, ticks, deadline=30)
        if number == 1:
            scheduler.admit()
            scheduler.tick += scheduler.ticks_until_event
            scheduler.retire()
    before = {name: pickle.dumps(value) for name, value in vars(scheduler).items() if name != "_plan"}
    scheduler.plan()
    scheduler.room_in(15)
    assert {name: pickle.dumps(value) for name, value in vars(scheduler).items() if name != "_plan"} == before


def test_a_bounded_queue_says_when_there_is_room():
    rng = random.Random(0)
    for policy in POLICIES:
        for _ in range(8):
            scheduler = Scheduler(rng.randint(1, 6), policy, capacity=30)
            for job in range(10):
                chains, ticks = rng.randint(1, 30), rng.randint(1, 9)
                wait = scheduler.room_in(chains)
                while True:
                    try:
                        scheduler.submit(job, chains, ticks, weight=rng.choice([0.5, 1.0]))
                        break
                    except QueueFull as error:
                        assert f"in {wait} ticks" in str(error) and scheduler.room_in(chains) == wait
                    if scheduler.admit():
                        continue
                    step = scheduler.ticks_until_event
                    scheduler.tick += step
                    wait -= step
                    scheduler.retire()
                assert wait == 0 and scheduler.waiting <= 30
    with pytest.raises(QueueFull, match="chains: got 31, expected at most 30, the queue's capacity"):
        scheduler.submit("large", 31, 1)


BAD = [
    ({"chains": 0}, "chains: got 0, expected at least 1"),
    ({"ticks": 0}, "ticks: got 0, expected at least 1"),
    ({"priority": 1.5}, "priority: got 1.5, expected a whole number"),
    ({"weight": 0.0}, "weight: got 0.0, expected a finite number above 0"),
    ({"weight": math.nan}, "weight: got nan"),
    ({"deadline": math.inf}, "deadline: got inf, expected a number of ticks from now, or None"),
    ({"job": "here"}, "job: got 'here' a second time, expected each once"),
]


@pytest.mark.parametrize("bad, message", BAD)
def test_bad_jobs_are_refused_and_change_nothing(bad, message):
    scheduler = Scheduler(2)
    scheduler.submit("here", 3, 4)
    with pytest.raises(ValueError, match=message):
        scheduler.submit(**{"job": "new", "chains": 1, "ticks": 1, **bad})
    assert scheduler.plan() == {"here": 8} and scheduler.waiting == 3


@pytest.mark.parametrize(
    "arguments, named", [((0,), "slots"), ((1, "lifo"), "policy: got 'lifo'"), ((1, "fifo", 0), "capacity")]
)
def test_bad_schedulers_are_refused(arguments, named):
    with pytest.raises(ValueError, match=named):
        Scheduler(*arguments)


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_is_kept_of_jobs_that_are_over(policy):
    class Thing:
        pass

    scheduler, alive = Scheduler(3, policy), weakref.WeakSet()
    forever = Thing()
    scheduler.submit(forever, 10**9, 2)
    for number in range(300):
        thing = Thing()
        alive.add(thing)
        scheduler.submit(thing, 2, 3, weight=1 + number % 3, priority=1, deadline=number % 7)
        scheduler.admit()
        scheduler.tick += scheduler.ticks_until_event
        scheduler.retire()
        if number % 5 == 0:
            scheduler.cancel(thing)
    del thing
    while len(scheduler._records) > 1:
        scheduler.admit()
        scheduler.tick += scheduler.ticks_until_event
        scheduler.retire()
    scheduler.admit()
    assert not len(alive) and len(scheduler._queue) < 100 and len(scheduler._due) == 0


def test_torch_is_not_imported():
    """It imports nothing but the standard library, `fair_shares` and `errors`, which do not import torch."""
    code = (
        "import sys, types, pathlib\n"
        "package = types.ModuleType('ulam'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['ulam'] = package\n"
        "import ulam.engine.scheduler\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    folder = sys.modules["ulam"].__path__[0]
    subprocess.run([sys.executable, "-c", code, folder], check=True)
