"""The engine as a service: many threads and jobs, guidance, previews, options of the network, results on their way."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import threading
import time

import numpy as np
import pytest
import torch
from engine_cases import SCHEDULE, SHAPE, WHOLE, draw, net

import ulam
from ulam import NetworkOptions
from ulam.samplers import DDIM, DDPM

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
    engine, began = new_engine(lambda x, t: (time.sleep(0.002), net(x, t))[1]), threading.Event()
    engine.submit(DDPM(steps=500), 1, callback=lambda _: began.set(), every=5)
    runner = threading.Thread(target=engine.run)
    runner.start()
    began.wait()
    begin = time.perf_counter()
    engine.submit(DDIM(steps=2), 1)
    assert time.perf_counter() - begin < 0.3, "the long chain takes a second and more"
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
    with pytest.raises(ulam.QueueFull, match="6 chains wait, 3 more"):
        engine.submit(SLOW, 3)
    with pytest.raises(ulam.QueueFull, match="never fit"):
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


# ------------------------------------------------------------------------------------------------ guidance


LABELS, NULLS = torch.arange(6.0), torch.full((6,), 10.0)


def by_hand(combine, sampler=DDIM(steps=9)):  # noqa: B008
    """A network that does the guidance itself: combine(m, m_uncond, t)."""
    return draw(sampler, 6, network=lambda x, t: combine(net(x, t, LABELS), net(x, t, NULLS), t))


def guided(sampler=DDIM(steps=9), slots=6, company=(), **options):  # noqa: B008
    """Six guided chains, perhaps with company."""
    y, null = {"y": LABELS}, {"y": NULLS}
    engine = new_engine(slots=slots, options=options.pop("network_options", None))
    job = engine.submit(sampler, 6, 5, cond=y, uncond=null, **options)
    for other in company:
        engine.submit(DDPM(steps=7), 6, 5, cond=y, **other)
    return engine.run()[job]


def weighted(m, other, w):
    return (w * (m - other).double() + other.double()).float()


def test_guidance_interval():
    lo, hi = 300.0, 600.0
    expected = by_hand(lambda m, other, t: weighted(m, other, 3.0) if lo <= float(t[0]) <= hi else m)
    got = guided(guidance=3.0, guidance_interval=(lo, hi))
    assert torch.allclose(got, expected, rtol=0, atol=2e-6)
    calls = []

    def spy(x, t, y):
        calls.append((float(t[0]), float(y[0])))
        return net(x, t, y)

    engine = new_engine(spy, slots=1)
    engine.submit(DDIM(steps=10), [0], cond={"y": LABELS[:1]}, uncond={"y": NULLS[:1]}, guidance=2.0,
                  guidance_interval=(300.0, 500.0))  # fmt: skip
    engine.run()
    assert [t for t, y in calls if y == 10] == [500.0, 400.0, 300.0], "the second evaluation is saved outside"


def test_an_interval_between_two_float32_numbers_is_rounded_once():
    """t = fp32(0.3) is told; the interval ends at the float64 number 0.3, which is below it."""
    flow = ulam.Denoiser(lambda x, t, y: x * 0 + y.view(-1, 1), ulam.schedules.flow(), predicts="flow")
    sampler = ulam.samplers.Euler(timesteps=(1.0, 0.6, 0.3))
    told = sampler.program(flow.schedule, "flow").time
    results = []
    for company in (False, True):
        engine = ulam.Engine(flow, (2,), 4)
        y, null = {"y": torch.ones(1)}, {"y": torch.zeros(1)}
        job = engine.submit(sampler, 1, 0, y, 2.0, null, guidance_interval=(0.1, float(told[-1])))
        if company:
            engine.submit(sampler, [1], 0, y, 2.0, null)
        results.append(engine.run()[job])
    assert torch.equal(*results)


@pytest.mark.parametrize("w, phi", [(3.0, 1.0), (2.0, 0.7), (0.5, 0.3)])
def test_guidance_rescale(w, phi):
    """Lin et al. 2024, algorithm 2, in float64."""

    def combine(m, other, t):
        m, other = m.double(), other.double()
        mixed = other + w * (m - other)
        factor = m.flatten(1).std(1) / mixed.flatten(1).std(1)
        return (phi * mixed * factor.view(-1, 1, 1, 1) + (1 - phi) * mixed).float()

    sampler = DDIM(timesteps=(400, 300, 200, 100))
    got = guided(sampler, guidance=w, guidance_rescale=phi)
    assert torch.allclose(got, by_hand(combine, sampler), rtol=0, atol=5e-6)


def test_company_with_other_guidance_changes_no_bit():
    """Plain, guided, rescaled and interval chains in one batch, each as alone."""
    sorts = [
        {"guidance": 2.5, "uncond": {"y": NULLS}},
        {"guidance": 2.5, "uncond": {"y": NULLS}, "guidance_rescale": 0.7},
        {"guidance": 2.5, "uncond": {"y": NULLS}, "guidance_interval": (200.0, 700.0)},
        {"guidance": 2.5, "uncond": {"y": NULLS}, "guidance_interval": (200.0, 700.0), "guidance_rescale": 0.4},
        {},
    ]
    y = {"y": LABELS}
    engine = new_engine(slots=30)
    together = [engine.submit(DDPM(steps=7), 6, 5, cond=y, **sort) for sort in sorts]
    results = engine.run()
    for job, sort in zip(together, sorts, strict=True):
        alone = new_engine(slots=30)
        single = alone.submit(DDPM(steps=7), 6, 5, cond=y, **sort)
        assert torch.equal(results[job], alone.run()[single]), sort


def test_a_chain_without_guidance_does_not_fail_with_the_unconditional_branch():
    """What guidance does not read may be anything."""

    def network(x, t, y):
        return torch.where(y.view(-1, 1, 1, 1) == 10, float("nan"), net(x, t, y))

    engine = new_engine(network, slots=8)
    plain = engine.submit(SLOW, 4, 5, cond={"y": torch.zeros(4)})
    y, null = {"y": torch.tensor([0.0, 10.0])}, {"y": torch.tensor([10.0, 0.0])}
    weights = torch.tensor([1.0, 0.0])
    mixed = engine.submit(SLOW, 2, 5, cond=y, uncond=null, guidance=weights)
    doomed = engine.submit(SLOW, 1, 5, cond={"y": torch.zeros(1)}, uncond={"y": torch.full((1,), 10.0)}, guidance=2.0)
    results = {(r.job, r.chain): r for r in engine.stream()}
    assert results[doomed, 0].failed == 0
    expected = draw(SLOW, 4, cond={"y": torch.zeros(4)})
    assert all(torch.equal(results[plain, c].x, expected[c]) for c in range(4))
    assert all(results[mixed, c].failed is None and torch.equal(results[mixed, c].x, expected[c]) for c in range(2))


def test_doubled_guidance_is_one_call_of_twice_the_slots():
    shapes = []

    def spy(x, t, y):
        shapes.append((len(x), len(t), len(y)))
        return net(x, t, y)

    y, null = {"y": LABELS}, {"y": NULLS}
    engine = new_engine(spy, slots=6, options=NetworkOptions(doubled=True))
    job = engine.submit(DDIM(steps=9), 6, 5, cond=y, uncond=null, guidance=2.0)
    assert torch.equal(engine.run()[job], guided(guidance=2.0)) and shapes == [(12, 12, 12)] * 9


# ------------------------------------------------------------------------------------------------ previews


def test_previews_hold_the_x0_estimate_by_hand():
    """x0 = (x - sigma eps) / alpha of the state in front of the row; x behind it."""
    seen = []
    engine = new_engine(slots=6)
    y, null = {"y": LABELS}, {"y": NULLS}
    job = engine.submit(DDIM(steps=8), 6, 5, cond=y, uncond=null, guidance=2.0, callback=seen.append, every=2)
    other = engine.submit(DDPM(steps=5), 6, 5, cond=y)
    results = engine.run()
    assert [p.row for p in seen] == [1, 3, 5, 7] and all(p.job is job and p.chains == list(range(6)) for p in seen)
    states = {}
    draw(DDIM(steps=8), 6, network=lambda x, t: _spy(x, t, states))
    program, before = job.program, states
    for preview in seen:
        t = float(program.time[preview.row])
        x, eps = before[t]
        alpha = SCHEDULE.alphas_cumprod[int(t)] ** 0.5
        x0 = (x.double() - (1 - alpha**2) ** 0.5 * eps.double()) / alpha
        assert (preview.x0.double() - x0).abs().max() < 1e-5 * x0.abs().max()
        later = [float(s) for s in program.time if s < t]
        after = before[max(later)][0] if later else results[job]
        assert torch.allclose(preview.x, after, rtol=0, atol=1e-5)
    assert torch.equal(results[other], draw(DDPM(steps=5), 6, cond=y))


def _spy(x, t, states):
    eps = weighted(net(x, t, LABELS), net(x, t, NULLS), 2.0)
    states[float(t[0])] = x.clone(), eps
    return eps


def test_a_callback_may_submit_and_cancel():
    engine, extra = new_engine(slots=2), []

    def call(preview):
        if preview.row == 5:
            engine.cancel(preview.job)
            extra.append(engine.submit(SLOW, 3, seed=5))

    job = engine.submit(SLOW, 2, seed=5, callback=call)
    results = engine.run()
    assert results.keys() == {extra[0]} and torch.equal(results[extra[0]], WHOLE[:3])
    assert engine.report.cancelled == len(job.chains)


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


# ------------------------------------------------------------------------------------------------ the network


def test_channels_last():
    seen = set()

    def spy(x, t):
        seen.add(x.is_contiguous(memory_format=torch.channels_last))
        return net(x, t).contiguous(memory_format=torch.channels_last)

    engine = new_engine(spy, options=NetworkOptions(channels_last=True))
    job = engine.submit(SLOW, 10, seed=5)
    assert torch.equal(engine.run()[job], WHOLE[:10]) and seen == {True}


def test_autocast():
    weight = torch.eye(7) * 0.5

    def network(x, t):
        out = x @ weight
        assert out.dtype == expected
        return out

    results = []
    for expected in (torch.float32, torch.bfloat16):
        options = NetworkOptions(autocast=None if expected == torch.float32 else expected)
        engine = new_engine(network, options=options)
        job = engine.submit(DDIM(steps=5), 3, 5)
        results.append(engine.run()[job])
    by_hand = draw(DDIM(steps=5), 3, network=lambda x, t: (x.bfloat16() @ weight.bfloat16()), slots=4)
    assert torch.equal(results[1], by_hand) and not torch.equal(results[0], results[1])


def test_compile(monkeypatch):
    """The compiled network serves; where compiling fails, the eager one does, and the report says so."""
    compiled = []

    def compile(function, dynamic):
        assert dynamic is False
        return lambda *arguments, **named: (compiled.append(1), function(*arguments, **named))[1]

    monkeypatch.setattr(torch, "compile", compile)
    engine = new_engine(options=NetworkOptions(compile=True))
    job = engine.submit(SLOW, 4, seed=5)
    assert torch.equal(engine.run()[job], WHOLE[:4]) and len(compiled) == 11

    def broken(function, dynamic):
        def call(*arguments, **named):
            raise torch._dynamo.exc.TorchDynamoException("no compiler\nat all")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    engine = new_engine(options=NetworkOptions(compile=True))
    job = engine.submit(SLOW, 4, seed=5)
    assert torch.equal(engine.run()[job], WHOLE[:4])
    assert engine.report.fallbacks == ("torch.compile failed, the network runs eagerly: no compiler",)


def test_compile_for_real():
    engine = new_engine(options=NetworkOptions(compile=True), slots=2)
    job = engine.submit(DDIM(steps=3), 2, seed=5)
    got = engine.run()[job]
    if engine.report.fallbacks:
        pytest.skip(engine.report.fallbacks[0])
    assert torch.allclose(got, draw(DDIM(steps=3), 2), rtol=0, atol=1e-4)


def test_out_of_memory_halves_what_the_network_sees_and_is_remembered():
    sizes = []

    def network(x, t):
        sizes.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return net(x, t)

    engine = new_engine(network, slots=10)
    job = engine.submit(SLOW, 20, seed=5)
    assert torch.equal(engine.run()[job], WHOLE[:20])
    assert sizes[:2] == [10, 5] and set(sizes[2:]) == {3} and engine.report.batch == 3
    assert len(engine.report.fallbacks) == 2 and "it sees 3 chains a call" in engine.report.fallbacks[1]

    def never(x, t):
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine = new_engine(never)
    job = engine.submit(SLOW, 2)
    with pytest.raises(ulam.NetworkError, match=r"out of memory \(chains 0, 1\)") as caught:
        engine.run()
    assert caught.value.chains == {job: [0, 1]}


def test_an_exception_names_all_chains_of_a_job_in_many_places():
    """Slots in two ranges: the job's chains are still one list."""
    fail = []

    def network(x, t):
        if fail:
            raise KeyError(fail.pop())
        return net(x, t)

    engine = new_engine(network, slots=3)
    engine.submit(DDPM(steps=3), [90])
    long = engine.submit(DDPM(steps=9), [91])
    engine.submit(DDPM(steps=3), [92])
    job = engine.submit(SLOW, [7, 8], seed=5)
    stream = engine.stream()
    next(stream), next(stream)
    fail.append("here")
    with pytest.raises(ulam.NetworkError) as caught:
        next(stream)
    assert caught.value.chains == {long: [91], job: [7, 8]} and isinstance(caught.value.__cause__, KeyError)
    assert torch.equal(engine.run()[job], WHOLE[7:9])


def test_a_hung_network_is_reported(caplog):
    def network(x, t):
        time.sleep(0.6 if float(t[0]) == 500 else 0.0)
        return net(x, t)

    with caplog.at_level(logging.WARNING, logger="ulam"), new_engine(network, watchdog=0.15) as engine:
        engine.submit(DDIM(steps=4), 2)
        engine.run()
    assert engine.report.fallbacks == ("the network has not come back for 0.15 s (batch 4)",)
    assert len(caplog.records) == 1


# ------------------------------------------------------------------------------------------------ failing chains


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_chain_that_is_not_finite_stops_and_its_neighbours_go_on(bad):
    failing_row, states = 6, {}

    def network(x, t):
        out = net(x, t)
        rows = t == float(program.time[failing_row])
        if rows.any():
            states.setdefault("before", x.clone())
            out[1 if rows[1] else 0, 2, 4, 6] = bad
        return out

    program = SLOW.program(SCHEDULE, "eps")
    engine = new_engine(network, slots=3)
    engine.submit(SLOW, 3, seed=5)
    results = list(engine.stream())
    assert [r.failed for r in results] == [None, failing_row, None]
    assert torch.equal(results[1].x, states["before"][1])
    assert all(torch.equal(results[c].x, WHOLE[c]) for c in (0, 2)) and engine.report.failed == 1
    unwatched = new_engine(network, slots=3, check_finite=False)
    job = unwatched.submit(SLOW, 3, seed=5)
    assert torch.equal(unwatched.run()[job][[0, 2]], WHOLE[[0, 2]]) and unwatched.report.failed == 0


def test_results_of_a_failed_chain():
    """`run` gives NaN for it, and the slot serves the next chain."""

    def network(x, t, y):
        return torch.where(y.view(-1, 1, 1, 1) == 2, float("nan"), net(x, t))

    engine = new_engine(network, slots=2)
    job = engine.submit(SLOW, 6, seed=5, cond={"y": torch.arange(6)})
    x = engine.run()[job]
    assert x[2].isnan().all() and torch.equal(x[[0, 1, 3, 4, 5]], WHOLE[[0, 1, 3, 4, 5]])
    with pytest.warns(RuntimeWarning, match="1 of 6 chains turned NaN or Inf .chain 2 at row 0"):
        x = draw(SLOW, 6, network=network, cond={"y": torch.arange(6)})
    assert x[2].isnan().all() and torch.equal(x[3:], WHOLE[3:6])


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
        if number >= 10:
            gc.collect()
            sizes.append((len(gc.get_objects()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
    assert count == block * blocks == engine.report.chains
    objects, kilobytes = zip(*sizes, strict=True)
    assert max(objects[-5:]) <= min(objects[:5]) + 2000 and kilobytes[-1] <= kilobytes[0] + 20_000
    assert np.isfinite(total.numpy()).all()
