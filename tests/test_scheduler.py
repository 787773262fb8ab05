"""The chain scheduler: plain Python, against a slot-by-slot simulation."""

from __future__ import annotations

import random
from collections import deque

from ulam.scheduler import Scheduler


def run(slots: int, jobs: list[tuple[int, int]]) -> tuple[int, dict[int, list[tuple[int, int]]]]:
    """All jobs (chains, ticks) to the end; ticks taken, and for each job the (entry, exit) of every chain."""
    scheduler: Scheduler[int] = Scheduler(slots)
    for job, (chains, ticks) in enumerate(jobs):
        scheduler.submit(job, chains, ticks)
    spans: dict[int, list[tuple[int, int]]] = {job: [(-1, -1)] * chains for job, (chains, _) in enumerate(jobs)}
    while scheduler.busy:
        scheduler.admit()
        taken = sorted(slot for group in scheduler.groups for slot in range(group.slots.start, group.slots.stop))
        assert len(taken) == len(set(taken)) == scheduler.active <= slots
        assert all(0 <= slot < slots for slot in taken)
        scheduler.tick += scheduler.ticks_until_event
        for group in scheduler.retire():
            assert group.end == scheduler.tick
            for chain in range(group.chains.start, group.chains.stop):
                assert spans[group.job][chain] == (-1, -1), "a chain was delivered twice"
                spans[group.job][chain] = (group.start, group.end)
    return scheduler.tick, spans


def simulate(slots: int, jobs: list[tuple[int, int]]) -> int:
    """Ticks that first come, first served takes, slot by slot."""
    queue = deque(ticks for chains, ticks in jobs for _ in range(chains))
    left, tick = [0] * slots, 0
    while queue or any(left):
        for slot in range(slots):
            if not left[slot] and queue:
                left[slot] = queue.popleft()
        step = min(ticks for ticks in left if ticks)
        left = [max(ticks - step, 0) for ticks in left]
        tick += step
    return tick


def test_random_workloads_lose_no_chain_and_waste_no_slot():
    rng = random.Random(0)
    for _ in range(300):
        slots = rng.randint(1, 20)
        jobs = [(rng.randint(1, 30), rng.choice([1, 2, 10, 50])) for _ in range(rng.randint(1, 8))]
        ticks, spans = run(slots, jobs)
        assert ticks == simulate(slots, jobs)
        for job, (_, length) in enumerate(jobs):
            assert all(end - start == length for start, end in spans[job])


def test_equal_chains_stay_one_group():
    scheduler: Scheduler[str] = Scheduler(64)
    scheduler.submit("a", 256, 10)
    for _ in range(4):
        assert len(scheduler.admit()) == 1
        scheduler.tick += scheduler.ticks_until_event
        assert [group.size for group in scheduler.retire()] == [64]
    assert not scheduler.busy
