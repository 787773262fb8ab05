"""A thousand random faults: no chain is lost, none is delivered twice, and who survives has its undisturbed bits."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

import ulam
from engine_cases import SCHEDULE, Silent
from ulam.samplers import DDIM, DDPM

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")

SHAPE, CHAINS, SLOTS, SEED = (2, 3), 5, 4, 9
NULL = -1.0
PARTS, FAULTS, ARMED = 5, 1000, 5  # ARMED a round, of which some come too late to happen
KINDS = ("nan", "raise", "memory", "cancel", "callback", "finish", "noise")


class Once(Exception):
    """What the injected faults raise."""


class Network:
    """Rows are independent; y names the chain, so that a fault can be one chain's. Faults by the number of the call."""

    def __init__(self):
        self.calls = Counter()
        self.faults = {}  # (kind of call, number) -> what to do then
        self.poisoned = set()  # (y, t)
        self.cancelled = Counter()  # chains by job
        self.happened = 0

    def __call__(self, x, t, y):
        self.count("network")
        out = torch.tanh(x) * (1 + t.view(-1, 1, 1) / 1000) + 0.1 * y.view(-1, 1, 1)
        for chain, time in self.poisoned:
            hit = (y == chain) & (t == time)
            out[hit, 1, 2] = float("nan") if chain % 2 else float("inf")
        return out

    def count(self, kind):
        self.calls[kind] += 1
        fault = self.faults.pop((kind, self.calls[kind]), None)
        if fault is not None:
            self.happened += 1
            fault()


def submit_all(engine, network):
    """Five jobs, one of each sort; the y of chain c of job j is 10 j + c."""

    def label(job):
        return {"y": 10.0 * job + torch.arange(CHAINS, dtype=torch.float32)}

    def noise(row, chains):
        network.count("noise")
        return ulam.noise.normal(SHAPE, seed=3, chains=chains, row=row)

    def finish(states):
        network.count("finish")
        return states.flatten(1) * 2

    null = {"y": torch.full((CHAINS,), NULL)}
    return [
        engine.submit(DDPM(steps=5), CHAINS, SEED, label(0)),
        engine.submit(DDIM(steps=3), CHAINS, SEED, label(1), 2.0, null, finish=finish),
        engine.submit(Silent(), CHAINS, SEED, label(2)),
        engine.submit(DDPM(steps=4), CHAINS, SEED, label(3), noise=noise),
        engine.submit(DDIM(steps=6), CHAINS, SEED, label(4), callback=lambda _: network.count("callback"), every=2),
    ]


def new_engine(network, slots=SLOTS):
    return ulam.Engine(ulam.Denoiser(network, SCHEDULE), SHAPE, slots)


@pytest.fixture(scope="module")
def undisturbed():
    """The results of all jobs, and the states before every evaluation, by job and chain."""
    network = Network()
    engine = new_engine(network, 2)
    jobs = submit_all(engine, network)
    results = engine.run()
    histories = []
    for job in jobs:
        engine = new_engine(network, CHAINS)
        states = {}
        again = engine.submit(
            _Fixed(job.program), CHAINS, SEED, job.cond, job.guidance, job.uncond or None, noise=job.noise,
            callback=lambda p, states=states: states.update({p.row: p.x.clone()}),
        )  # fmt: skip
        engine.run()
        assert again.program is job.program
        histories.append(_before_evaluations(job, states))
    return [results[job] for job in jobs], histories


class _Fixed:
    def __init__(self, compiled):
        self.compiled = compiled

    def program(self, schedule, predicts="eps"):
        return self.compiled


def _before_evaluations(job, after_row):
    """The state in front of each evaluation: the one behind the previous one, or the first noise."""
    if job.program.nfe < len(job.program):
        return None  # silent rows change the state in between; they have a test of their own below
    first = ulam.noise.normal(SHAPE, seed=SEED, chains=CHAINS, tag=1) * job.program.init_scale
    return [first, *(after_row[row] for row in job.program.evaluating[:-1])]


def inject(rng, engine, network, jobs):
    """Arm one random fault."""
    kind, job = rng.choice(KINDS), rng.randrange(len(jobs))
    if kind == "nan":
        program = jobs[job].program
        evaluation = rng.randrange(program.nfe)
        network.poisoned.add((10.0 * job + rng.randrange(CHAINS), float(program.time[program.evaluating[evaluation]])))
        return

    def fail():
        raise Once(kind)

    def out_of_memory():
        raise torch.OutOfMemoryError("simulated")

    def cancel():
        network.cancelled[jobs[job]] += engine.cancel(jobs[job])

    event = {"raise": "network", "memory": "network", "cancel": rng.choice(["network", "callback", "finish"])}
    action = {"memory": out_of_memory, "cancel": cancel}.get(kind, fail)
    most = {"network": 40, "callback": 12, "finish": 4, "noise": 12}[event.get(kind, kind)]
    network.faults[event.get(kind, kind), rng.randint(1, most)] = action


def drain(engine, rng):
    """All results, through whatever is raised; how often something was raised."""
    delivered, raised = [], 0
    while True:
        try:
            for result in engine.stream():
                delivered.append((result.job, result.chain, result.x.clone(), result.failed))
                if rng.random() < 0.05:
                    break  # a stream that is left early
            else:
                return delivered, raised
        except (Once, ulam.NetworkError) as error:
            assert isinstance(error, Once) or isinstance(error.__cause__, (Once, torch.OutOfMemoryError))
            raised += 1


@pytest.mark.parametrize("part", range(PARTS))
def test_random_faults(part, undisturbed):
    expected, histories = undisturbed
    rng = random.Random(part)
    seen = Counter()
    while seen["happened"] < FAULTS // PARTS:
        network = Network()
        engine = new_engine(network, rng.choice([1, 3, 4, 16]))
        jobs = submit_all(engine, network)
        for _ in range(ARMED):
            inject(rng, engine, network, jobs)
        delivered, raised = drain(engine, rng)
        assert engine.run() == {}, "nothing is left"
        seen["raised"] += raised
        seen["happened"] += network.happened
        count = Counter((job, chain) for job, chain, _, _ in delivered)
        assert max(count.values()) == 1, "a chain was delivered twice"
        for number, job in enumerate(jobs):
            got = [entry for entry in delivered if entry[0] is job]
            assert len(got) + network.cancelled[job] == CHAINS, "a chain was lost"
            seen["cancelled"] += network.cancelled[job]
            for _, chain, x, failed in got:
                program = job.program
                first = next(
                    (
                        k
                        for k, row in enumerate(program.evaluating)
                        if (10.0 * number + chain, float(program.time[row])) in network.poisoned
                    ),
                    None,
                )
                if first is None:
                    assert failed is None
                    assert torch.equal(x, expected[number][chain]), "a survivor's bits changed"
                    continue
                seen["failed"] += 1
                seen["happened"] += 1
                assert failed == program.evaluating[first]
                if histories[number] is not None:
                    last = histories[number][first][chain]
                    assert torch.equal(x, last.flatten() * 2 if job.finish else last)
        report = engine.report
        assert report.chains == len(delivered) and report.cancelled == sum(network.cancelled.values())
        assert report.failed == sum(failed is not None for *_, failed in delivered)
    assert min(seen["raised"], seen["cancelled"], seen["failed"]) >= 20, seen


def test_a_failed_chain_keeps_its_last_finite_state_behind_rows_without_an_evaluation():
    """Silent rows in front of the failing evaluation have happened, those behind it have not."""
    network = Network()
    network.poisoned.add((21.0, 100.0))
    engine = new_engine(network)
    job = submit_all(engine, network)[2]
    result = next(r for r in engine.stream() if r.job is job and r.chain == 1)
    z = [ulam.noise.normal(SHAPE, seed=SEED, chains=[1], row=row)[0].double() for row in range(4)]
    x = ulam.noise.normal(SHAPE, seed=SEED, chains=[1], tag=1)[0].double() + 0.1 * z[0]
    m = network(x[None], torch.tensor([500.0]), torch.tensor([21.0]))[0]
    x, r = 0.9 * x + 0.1 * m + 0.2 * z[1], x
    x = 0.5 * x + 0.25 * r + 0.3 * z[2]
    assert result.failed == 4 and (result.x.double() - x).abs().max() < 1e-6


def test_a_cancelled_job_takes_its_silent_rows_along():
    """A job that dies between its silent rows and the evaluation leaves the other jobs' tick whole."""
    network = Network()
    engine = new_engine(network, 8)
    label = {"y": torch.arange(4.0)}
    silent = engine.submit(Silent(), 4, SEED, label)
    plain = engine.submit(DDPM(steps=5), 4, SEED, label)
    alone = new_engine(network, 8)
    other = alone.submit(DDPM(steps=5), 4, SEED, label)
    expected = alone.run()[other]

    def fail():
        raise Once

    network.faults["network", network.calls["network"] + 2] = fail
    with pytest.raises(ulam.NetworkError) as caught:
        engine.run()
    assert caught.value.chains == {silent: [0, 1, 2, 3], plain: [0, 1, 2, 3]}
    assert engine.cancel(silent) == 4
    assert torch.equal(engine.run()[plain], expected)


def test_a_conditioning_tensor_that_cannot_be_read_loses_nobody():
    """Chains that could not be put into their slots wait there; cancelling their job frees them."""

    class Unreadable(torch.Tensor):
        broken = True

        def __getitem__(self, index):
            if Unreadable.broken:
                raise Once
            return super().__getitem__(index)

    network = Network()
    x_init = torch.zeros(CHAINS, *SHAPE).as_subclass(Unreadable)
    for cancel in (False, True):
        Unreadable.broken = True
        engine = new_engine(network, 8)
        good = engine.submit(DDPM(steps=5), 2, SEED, {"y": torch.arange(2.0)})
        bad = engine.submit(DDPM(steps=5), CHAINS, SEED, {"y": torch.arange(5.0)}, x_init=x_init)
        for _ in range(2):
            with pytest.raises(Once):
                engine.run()
        if cancel:
            assert engine.cancel(bad) == CHAINS
        Unreadable.broken = False
        results = engine.run()
        alone = new_engine(network, 8)
        alone.submit(DDPM(steps=5), CHAINS, SEED, {"y": torch.arange(5.0)}, x_init=torch.zeros(CHAINS, *SHAPE))
        reference = new_engine(network, 8)
        lone = reference.submit(DDPM(steps=5), 2, SEED, {"y": torch.arange(2.0)})
        assert torch.equal(results[good], reference.run()[lone])
        if not cancel:
            assert torch.equal(results[bad], next(iter(alone.run().values())))
        assert bad in results or cancel
