"""The engine as a service: many threads and jobs, guidance, previews, options of the network, results on their way."""

from __future__ import annotations

import asyncio
import gc
import resource
import threading
import time

import numpy as np
import pytest
import torch

import ulam
from engine_cases import SCHEDULE, SHAPE, WHOLE, draw, net
from ulam.samplers import DDIM, DDPM

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")

SLOW = DDPM(steps=11)


def new_engine(network=net, slots=4, shape=SHAPE, **options):
    return ulam.Engine(ulam.Denoiser(network, SCHEDULE), shape, slots, **options)


def collect(engine):
    """Everything a stream gives, by job and chain."""
    out = {}
    for result in engine.stream():
        assert (result.job, result.chain) not in out, "a chain was delivered twice"
        out[result.job, result.chain] = result.x
    return out


# ------------------------------------------------------------------------------------------------ threads


def test_ten_threads_submit_while_one_streams():
    engine, submitted, done = new_engine(slots=8), [], threading.Event()
    samplers = [SLOW, DDIM(steps=3), DDIM(steps=7, eta=0.5)]
    expected = [draw(sampler, 50) for sampler in samplers]

    def work(number):
        for k in range(6):
            which = (number + k) % 3
            chains = range(5 * number, 5 * number + 3 + k % 3)
            submitted.append((engine.submit(samplers[which], chains, seed=5), which))
            time.sleep(0.001 * k)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()

    def wait():
        for thread in threads:
            thread.join()
        done.set()

    threading.Thread(target=wait).start()
    out = {}
    while not done.is_set() or len(out) < sum(len(job.chains) for job, _ in submitted):
        for key, x in collect(engine).items():
            assert key not in out
            out[key] = x
    assert len(submitted) == 60
    for job, which in submitted:
        for chain in job.ids:
            assert torch.equal(out.pop((job, chain)), expected[which][chain])
    assert not out


def test_a_submission_does_not_wait_for_the_chains_that_run():
    calls = []
    engine, began = new_engine(lambda x, t: (calls.append(time.sleep(0.002)), net(x, t))[1]), threading.Event()
    engine.submit(DDPM(steps=500), 1, callback=lambda _: began.set(), every=5)
    runner = threading.Thread(target=engine.run)
    runner.start()
    began.wait()
    before = len(calls)
    engine.submit(DDIM(steps=2), 1)
    assert len(calls) - before < 100, "the long chain takes 500"
    runner.join()


def test_several_threads_stream_one_engine():
    engine = new_engine()
    job = engine.submit(SLOW, 40, seed=5)
    parts = [[] for _ in range(4)]
    threads = [threading.Thread(target=lambda part: part.extend(engine.stream()), args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results = [result for part in parts for result in part]
    assert sorted(r.chain for r in results) == list(range(40)) and all(r.job is job for r in results)
    assert all(torch.equal(r.x, WHOLE[r.chain]) for r in results)


def test_two_engines_in_one_process():
    engines = [new_engine(slots=4), new_engine(slots=6, backend="reference")]
    jobs = [engine.submit(SLOW, 12, seed=5) for engine in engines]
    results = [None, None]

    def work(number):
        results[number] = engines[number].run()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(result[job], WHOLE[:12]) for result, job in zip(results, jobs, strict=True))


def test_cancel_from_another_thread():
    began, cancelled = threading.Event(), threading.Event()

    def network(x, t):
        if not began.is_set():
            began.set()
            assert cancelled.wait(20), "cancelling does not wait for the network"
        return net(x, t)

    engine = new_engine(network)
    first, second = engine.submit(DDPM(steps=40), 4, seed=5), engine.submit(SLOW, 9, seed=5)
    dropped = []

    def cancel():
        began.wait()
        dropped.append(engine.cancel(first))
        cancelled.set()

    thread = threading.Thread(target=cancel)
    thread.start()
    results = engine.run()
    thread.join()
    assert dropped == [4] and results.keys() == {second} and torch.equal(results[second], WHOLE[:9])
    assert engine.report.cancelled == 4 and engine.report.chains == 9
    assert engine.report.ticks == 1 + 3 * 11, "the freed slots were filled at once"
    assert engine.cancel(first) == engine.cancel(second) == 0


# ------------------------------------------------------------------------------------------------ asyncio


def test_async_for():
    engine = new_engine()
    job = engine.submit(SLOW, 10, seed=5)

    async def main():
        return [result async for result in engine.astream()]

    results = asyncio.run(main())
    assert [r.chain for r in results] == list(range(10)) and all(r.job is job for r in results)
    assert all(torch.equal(r.x, WHOLE[r.chain]) for r in results)


def test_a_cancelled_task_loses_nothing():
    engine = new_engine(lambda x, t: (time.sleep(0.003), net(x, t))[1])
    engine.submit(SLOW, 12, seed=5)
    got = []

    async def read():
        async for result in engine.astream():
            got.append(result.chain)

    async def main():
        while len(got) < 12:
            task = asyncio.ensure_future(read())
            await asyncio.sleep(0.02)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(asyncio.wait_for(main(), 30))
    assert sorted(got) == list(range(12))


# ------------------------------------------------------------------------------------------------ the queue


def test_a_bounded_queue_refuses_or_blocks():
    engine = new_engine(queue=6)
    jobs = [engine.submit(SLOW, 6, seed=5)]
    with pytest.raises(ulam.QueueFull, match="chains: got 3 beside 6 that wait"):
        engine.submit(SLOW, 3)
    with pytest.raises(ulam.QueueFull, match=r"chains: got .* the queue's capacity"):
        engine.submit(SLOW, 7, block=True)
    entered = []

    def submit():
        for begin in range(10, 40, 5):
            jobs.append(engine.submit(SLOW, range(begin, begin + 5), seed=5, block=True))
            entered.append(engine.report.ticks)

    thread = threading.Thread(target=submit)
    thread.start()
    time.sleep(0.05)
    assert not entered, "blocked while nothing runs"
    results = {}
    while thread.is_alive() or len(results) < 7:
        results |= engine.run()
    assert all(torch.equal(results[job], WHOLE[job.chains]) for job in jobs)


def test_closing_wakes_who_waits_for_room():
    engine, told = new_engine(queue=2), []
    engine.submit(SLOW, 2)

    def submit():
        with pytest.raises(RuntimeError, match="closed"):
            engine.submit(SLOW, 2, block=True)
        told.append(True)

    thread = threading.Thread(target=submit)
    thread.start()
    time.sleep(0.05)
    engine.close()
    thread.join(5)
    assert told == [True]


def test_priorities_and_the_predicted_end():
    engine = new_engine(slots=2)
    jobs = {name: engine.submit(SLOW, 2, priority=p) for name, p in (("low", 0), ("high", 5), ("middle", 1))}
    told = {name: engine.predicted_end(job) for name, job in jobs.items()}
    assert told == {"high": 11, "middle": 22, "low": 33}
    ended = {}
    for result in engine.stream():
        ended[result.job] = engine.report.ticks
    assert {name: ended[job] for name, job in jobs.items()} == told
    assert engine.predicted_end(jobs["low"]) is None


@pytest.mark.parametrize("policy, order", [("fifo", [40, 3, 11]), ("shortest", [3, 11, 40]), ("deadline", [11, 40, 3])])
def test_policies(policy, order):
    engine = new_engine(slots=1, policy=policy)
    jobs = {engine.submit(DDPM(steps=n), 1, deadline=d): n for n, d in ((40, 90), (3, None), (11, 30))}
    entered = [jobs[result.job] for result in engine.stream()]
    assert policy != "deadline" or entered == order
    plain = new_engine(slots=1, policy=policy)
    jobs = {plain.submit(DDPM(steps=n), 1): n for n in (40, 3, 11)}
    assert policy == "deadline" or [jobs[result.job] for result in plain.stream()] == order


def test_close_drains_or_drops():
    engine = new_engine()
    job = engine.submit(SLOW, 10, seed=5)
    first = next(engine.stream())
    rest = engine.close(drain=True)
    assert [first.chain, *(r.chain for r in rest)] == list(range(4)), "those in the slots when it was closed"
    assert all(r.job is job and torch.equal(r.x, WHOLE[r.chain]) for r in rest) and engine.report.cancelled == 6
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(SLOW, 1)
    dropped = new_engine()
    dropped.submit(SLOW, 10)
    assert dropped.close() == [] and list(dropped.stream()) == [] and dropped.run() == {}


def test_finish_maps_final_states_and_an_error_in_it_loses_nothing():
    calls = []

    def decode(states):
        calls.append(len(states))
        if len(calls) == 2:
            raise MemoryError("decoder")
        return states.mean(dim=(1, 2, 3))

    engine = new_engine()
    job = engine.submit(SLOW, 10, seed=5, finish=decode)
    with pytest.raises(MemoryError):
        engine.run()
    assert torch.equal(engine.run()[job], WHOLE[:10].mean(dim=(1, 2, 3))) and calls == [4, 4, 4, 2]
    assert engine.report.chains == 10


# ------------------------------------------------------------------------------------------------ a million chains


def test_a_million_chains_leave_no_memory_behind():
    """One after the other through a two-dimensional network: what is there behind 200,000 is there behind 1,000,000."""
    block, blocks, slots = 20_000, 50, 10_000
    scale = torch.tensor([0.5, -0.25])
    engine = new_engine(lambda x, t: x * scale, slots=slots, shape=(2,))
    samplers = [DDIM(steps=2), DDPM(steps=3), DDIM(steps=4)]
    count, total, sizes = 0, torch.zeros(2, dtype=torch.float64), []
    for number in range(blocks):
        engine.submit(samplers[number % 3], range(number * block, (number + 1) * block), seed=1)
        stream = engine.finished() if number % 10 else None
        for group in stream or ():
            count += group.chains.stop - group.chains.start
            total += group.states.double().sum(0)
        for result in engine.stream() if stream is None else ():
            count += 1
            total += result.x.double()
        if number in (10, blocks - 1):
            gc.collect()
            sizes.append((len(gc.get_objects()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
    assert count == block * blocks == engine.report.chains
    (objects, kilobytes), (objects_later, kilobytes_later) = sizes
    assert objects_later <= objects + 1000 and kilobytes_later <= kilobytes + 20_000
    assert np.isfinite(total.numpy()).all()


def test_what_is_no_progress_and_no_drain_is_named() -> None:
    service = new_engine()
    with pytest.raises(TypeError, match=r"^progress: got 'x', expected a callable or None"):
        service.finished("x")
    with pytest.raises(TypeError, match=r"^drain: got 'x', expected True or False"):
        service.close("x")
    assert service.submit(DDIM(2), 1, 0) is not None  # it is open still


@pytest.mark.parametrize("form", ["stream", "finished"])
def test_a_chain_that_one_thread_takes_while_another_changes_its_form_comes_once(form, monkeypatch):
    """An iterator pops its chains without the lock: here just when a run, or a stream, has begun to move them."""
    engine = new_engine(slots=6)
    given = {"y": torch.arange(2.0)}
    jobs = [engine.submit(DDIM(steps=3), 2, seed, given) for seed in range(3)]
    results = iter(getattr(engine, form)())
    taken = [next(results)]
    split, made = ulam.engine.results.Finished.split, ulam.engine.delivery.Finished

    def take(function):
        def called(*arguments):
            with pytest.MonkeyPatch.context() as once:
                once.setattr("ulam.engine.delivery.Finished", made)
                once.setattr("ulam.engine.results.Finished.split", split)
                if (result := next(results, None)) is not None:
                    taken.append(result)
            return function(*arguments)

        return called

    if form == "stream":
        monkeypatch.setattr("ulam.engine.delivery.Finished", take(made))
        rest = [(job, place) for job, x in engine.run().items() for place in range(2) if not x[place].isnan().any()]
        mine = [(result.job, result.chain) for result in taken]
    else:
        monkeypatch.setattr("ulam.engine.results.Finished.split", take(split))
        rest = [(result.job, result.chain) for result in engine.stream()]
        mine = [(group.job, place) for group in taken for place in range(2)]
    mine += [(left.job, left.chain) for left in results] if form == "stream" else []
    assert len(taken) > 1
    assert sorted(map(repr, mine + rest)) == sorted(repr((job, place)) for job in jobs for place in range(2))


def test_threads_that_run_and_stream_at_once_get_each_chain_once():
    engine = new_engine(slots=6)
    given = {"y": torch.arange(2.0)}
    found, jobs, ready = [], [], threading.Event()

    def stream():
        while not ready.is_set() or engine.waiting:
            found.extend((result.job, result.chain) for result in engine.stream())

    threads = [threading.Thread(target=stream) for _ in range(2)]
    for thread in threads:
        thread.start()
    for seed in range(150):
        jobs.append(engine.submit(DDIM(steps=2), 2, seed, given))
        for job, x in engine.run().items():
            found.extend((job, place) for place in range(2) if not x[place].isnan().any())
    ready.set()
    for thread in threads:
        thread.join()
    found += [(result.job, result.chain) for result in engine.stream()]
    assert len(found) == len(set(found)) == 2 * len(jobs)
