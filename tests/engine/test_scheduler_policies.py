"""The scheduler's policies: who enters first, who waits how long."""

from __future__ import annotations

import itertools

import pytest

from ulam.engine.scheduler import POLICIES, Scheduler


def order(scheduler):
    """The jobs by their first entry, when run to the end."""
    entered = {}
    while scheduler.busy:
        entered.update(dict.fromkeys(group.job for group in scheduler.admit() if group.job not in entered))
        scheduler.tick += scheduler.ticks_until_event
        scheduler.retire()
    return list(entered)


def test_priorities_come_before_the_policy():
    for policy in POLICIES:
        scheduler = Scheduler(2, policy)
        for job, priority in enumerate([0, 5, -1, 5]):
            scheduler.submit(job, 2, 3, priority)
        assert order(scheduler) == [1, 3, 0, 2]


def test_shortest_first_has_the_least_weighted_mean_wait():
    """One slot: Smith's rule is optimal among all orders."""
    work, weights = [7, 2, 9, 4, 3], [1.0, 0.2, 5.0, 2.0, 1.0]

    def cost(jobs):
        ends = itertools.accumulate(work[i] for i in jobs)
        return sum(weights[i] * end for i, end in zip(jobs, ends, strict=True))

    scheduler = Scheduler(1, "shortest")
    for job, (ticks, weight) in enumerate(zip(work, weights, strict=True)):
        scheduler.submit(job, 1, ticks, weight=weight)
    best = min(map(cost, itertools.permutations(range(5))))
    assert cost(order(scheduler)) == pytest.approx(best)


def test_fair_shares_follow_the_weights():
    """Whenever two jobs both have chains waiting, their slots are within one of their shares."""
    scheduler, left, compared = Scheduler(60, "fair"), {"long": 600, "short": 3000}, 0
    scheduler.submit("long", 600, 40, weight=2.0)
    left["long"] -= sum(group.size for group in scheduler.admit())
    scheduler.tick += 10
    scheduler.submit("short", 3000, 5, weight=1.0)
    while scheduler.busy:
        for group in scheduler.admit():
            left[group.job] -= group.size
        if scheduler.tick >= 40 and min(left.values()) > 0:
            held = {job: sum(g.size for g in scheduler.groups if g.job == job) for job in left}
            assert abs(held["long"] - 40) <= 1 and abs(held["short"] - 20) <= 1
            compared += 1
        scheduler.tick += scheduler.ticks_until_event
        scheduler.retire()
    assert compared > 100


def test_a_newcomer_is_not_made_to_wait_for_a_long_queue():
    ends = {}
    for policy in POLICIES:
        scheduler = Scheduler(8, policy)
        scheduler.submit("bulk", 800, 10)
        scheduler.admit()
        scheduler.submit("one", 1, 10, deadline=30)
        ends[policy] = scheduler.plan()["one"]
    assert ends == {"fifo": 20, "shortest": 20, "fair": 20, "deadline": 20}
    scheduler = Scheduler(8)
    scheduler.submit("bulk", 800, 10)
    scheduler.submit("one", 1, 10)
    assert scheduler.plan() == {"bulk": 1000, "one": 1010}


def test_deadlines_are_met_where_the_policy_alone_would_miss_them():
    for policy in POLICIES:
        for deadline in range(60, 400, 7):
            scheduler = Scheduler(4, policy)
            scheduler.submit("before", 200, 10, weight=1e3)
            scheduler.submit("due", 6, 15, weight=1e-3, deadline=deadline)
            assert scheduler.plan()["due"] <= deadline
    scheduler = Scheduler(4)
    scheduler.submit("before", 200, 10)
    scheduler.submit("due", 6, 15)
    assert scheduler.plan()["due"] > 500


def test_where_deadlines_cannot_all_be_met_the_heavier_go_first():
    scheduler = Scheduler(1)
    for job, weight in (("light", 1.0), ("heavy", 4.0), ("medium", 2.0)):
        scheduler.submit(job, 1, 10, weight=weight, deadline=10)
    assert scheduler.plan() == {"heavy": 10, "medium": 20, "light": 30}
