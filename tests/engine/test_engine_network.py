"""What the engine does with its network: options, failures, chains that are not finite."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import pytest
import torch

import ulam
from engine_cases import SCHEDULE, SHAPE, WHOLE, Silent, draw, net
from ulam import NetworkOptions
from ulam.samplers import DDIM, DDPM, DPMSolverPP, DynamicThreshold, RePaint

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")

SLOW = DDPM(steps=11)


def new_engine(network=net, slots=4, **options):
    return ulam.Engine(ulam.Denoiser(network, SCHEDULE), SHAPE, slots, **options)


def test_channels_last():
    seen = set()

    def spy(x, t):
        seen.add(x.is_contiguous(memory_format=torch.channels_last))
        return net(x, t).contiguous(memory_format=torch.channels_last)

    engine = new_engine(spy, options=NetworkOptions(channels_last=True))
    job = engine.submit(SLOW, 10, seed=5)
    assert torch.equal(engine.run()[job], WHOLE[:10]) and seen == {True}


def test_channels_last_in_every_kind_of_tick():
    """Guidance, several registers, scaled inputs, thresholds, silent rows, known images, dtypes: the same bits."""
    known = {"known": torch.linspace(-1, 1, 6 * 105).reshape(6, *SHAPE), "mask": torch.ones(6, *SHAPE).triu()}
    labels = {"cond": {"y": torch.arange(6.0)}, "uncond": {"y": torch.zeros(6)}}
    cases = [
        (DDIM(steps=7, eta=0.5), {"guidance": 2.0, **labels}), (DPMSolverPP(steps=6), {}), (HalfInput(), {}),
        (DDIM(steps=5, clip=DynamicThreshold(0.9)), {}), (Silent(), {}), (RePaint(steps=5), known),
    ]  # fmt: skip
    f64, f32 = torch.float64, torch.float32
    for dtype, net_dtype in ((f32, f32), (torch.bfloat16, f32), (f32, f64), (f64, f64)):
        for sampler, more in cases:
            results = []
            for channels_last in (False, True):
                spy = Spy(net_dtype)
                options = NetworkOptions(channels_last=channels_last)
                engine = new_engine(spy, dtype=dtype, options=options)
                for seed in (1, 2):
                    engine.submit(sampler, 6, seed, **more)
                results.append(list(engine.run().values()))
                assert spy.seen == {(channels_last, net_dtype)}
            assert all(map(torch.equal, *results)), sampler


class HalfInput:
    """DDIM whose network reads half of the state, as under EDM's preconditioning."""

    def program(self, schedule, predicts="eps"):
        program = DDIM(steps=6).program(schedule, predicts)
        return replace(program, c_in=program.c_in / 2)


class Spy(torch.nn.Module):
    """`net`, with the layouts and dtypes of the inputs that it saw; what it returns lies as its input."""

    def __init__(self, dtype):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.ones((), dtype=dtype)), set()

    def forward(self, x, t, y=None):
        self.seen.add((x.is_contiguous(memory_format=torch.channels_last), x.dtype))
        return net(x, t, y) * self.weight


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
    by_hand = draw(DDIM(steps=5), 3, network=lambda x, t: x.bfloat16() @ weight.bfloat16(), slots=4)
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
