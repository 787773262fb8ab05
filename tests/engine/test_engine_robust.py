"""The engine under failures, unusual callers and bad input: nothing is lost, and every error names its argument."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ulam
from engine_cases import SCHEDULE, SHAPE, WHOLE, Silent, draw, net
from ulam.samplers import DDIM, DDPM

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")


class Flaky:
    """A function that raises at some of its calls."""

    def __init__(self, function, *failures):
        self.function, self.failures, self.calls = function, failures, 0

    def __call__(self, *arguments):
        self.calls += 1
        if self.calls - 1 in self.failures:
            raise RuntimeError("once")
        return self.function(*arguments)


def run_through_failures(engine):
    """`run` again until it returns; how often it raised."""
    for failures in range(10):
        try:
            return engine.run(), failures
        except RuntimeError as error:
            assert "once" in str(error)
    raise AssertionError("never returned")


def test_a_network_that_raises_loses_no_chain_and_no_bit():
    flaky = Flaky(net, 4, 5, 20)
    engine = ulam.Engine(ulam.Denoiser(flaky, SCHEDULE), SHAPE, slots=4)
    job = engine.submit(DDPM(steps=11), 10, seed=5)
    results, failures = run_through_failures(engine)
    assert failures == 3 and torch.equal(results[job], WHOLE[:10])


@pytest.mark.parametrize("failures", [(0,), (1,), (0, 2, 3)])
def test_rows_without_an_evaluation_survive_a_network_that_raises(failures):
    expected = draw(Silent(), 6)
    engine = ulam.Engine(ulam.Denoiser(Flaky(net, *failures), SCHEDULE), SHAPE, slots=4)
    job = engine.submit(Silent(), 6, seed=5)
    results, raised = run_through_failures(engine)
    assert raised == len(failures) and torch.equal(results[job], expected)


@pytest.mark.parametrize("failure", range(5))
def test_rows_without_an_evaluation_survive_a_noise_that_raises(failure):
    noise = Flaky(lambda row, chains: ulam.noise.normal(SHAPE, seed=5, chains=chains, row=row), failure)
    engine = ulam.Engine(ulam.Denoiser(net, SCHEDULE), SHAPE, slots=6)
    job = engine.submit(Silent(), 6, seed=5, noise=noise)
    results, raised = run_through_failures(engine)
    assert raised == 1 and torch.equal(results[job], draw(Silent(), 6))


def test_jobs_may_be_submitted_while_streaming():
    engine = ulam.Engine(ulam.Denoiser(net, SCHEDULE), SHAPE, slots=8)
    jobs = [engine.submit(DDPM(steps=11), 8, seed=5)]
    seen = []
    for result in engine.stream():
        seen.append((result.job, result.chain))
        assert torch.equal(result.x, WHOLE[result.chain])
        if len(seen) == 3:
            jobs.append(engine.submit(DDPM(steps=11), range(20, 30), seed=5))
    assert seen == [(jobs[0], c) for c in range(8)] + [(jobs[1], c) for c in range(20, 30)]


def test_a_stream_that_is_left_early_loses_nothing():
    engine = ulam.Engine(ulam.Denoiser(net, SCHEDULE), SHAPE, slots=4)
    first, second = engine.submit(DDPM(steps=11), 4, seed=5), engine.submit(DDPM(steps=11), range(4, 8), seed=5)
    delivered = next(engine.stream())
    assert delivered.job is first and torch.equal(delivered.x, WHOLE[0])
    assert [r.chain for r, _ in zip(engine.stream(), range(2), strict=False)][:2] == [1, 2]
    results = engine.run()
    assert torch.equal(results[second], WHOLE[4:8])


@pytest.mark.parametrize("network", [lambda x, t, y: x.mul_(0.5), lambda x, t, y: torch.relu_(x)])
@pytest.mark.parametrize("guidance", [None, 2.0])
def test_network_that_writes_into_its_input_is_refused(network, guidance):
    y = {"y": torch.zeros(4)}
    with pytest.raises(ValueError, match="net: got its input x changed in place"):
        draw(chains=4, network=network, cond=y, uncond=None if guidance is None else y, guidance=guidance)


def test_caller_in_inference_mode():
    with torch.inference_mode():
        assert torch.equal(draw(chains=3), WHOLE[:3])


def test_caller_with_another_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        y = {"y": torch.zeros(3, dtype=torch.float32)}
        assert ulam.noise.normal((2,), seed=0, chains=1).dtype == torch.float32
        got = draw(DDIM(steps=3), 3, cond=y, uncond=y, guidance=2.0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(got, draw(DDIM(steps=3), 3, cond=y, uncond=y, guidance=2.0))


@pytest.mark.parametrize("integer", [np.int64, np.int32, lambda value: torch.tensor(value)])
def test_integers_of_other_libraries(integer):
    z = ulam.noise.normal((4,), seed=integer(5), chains=[integer(7)], row=integer(3), stage=integer(2), tag=integer(1))
    assert torch.equal(z, ulam.noise.normal((4,), seed=5, chains=[7], row=3, stage=2, tag=1))
    denoiser = ulam.Denoiser(net, SCHEDULE)
    got = ulam.sample(denoiser, DDPM(steps=11), (3, 5, integer(7)), 4, integer(5), slots=integer(2), progress=False)
    assert torch.equal(got, WHOLE[:4])


def test_a_job_keeps_its_chains_and_weights():
    chains, weights = torch.arange(3), torch.tensor([2.0, 2.0, 2.0])
    y = {"y": torch.zeros(3)}
    engine = ulam.Engine(ulam.Denoiser(net, SCHEDULE), SHAPE, slots=3)
    job = engine.submit(DDIM(steps=3), chains, 5, cond=y, uncond=y, guidance=weights)
    chains += 10
    weights += 5
    assert torch.equal(engine.run()[job], draw(DDIM(steps=3), 3, cond=y, uncond=y, guidance=2.0))


def test_reference_asked_for_by_the_environment_is_no_fall_back(monkeypatch):
    monkeypatch.setenv("ULAM_BACKEND", "reference")
    engine = ulam.Engine(ulam.Denoiser(net, SCHEDULE), SHAPE, slots=2)
    assert engine.report.backend == "reference" and engine.report.fallbacks == ()
    monkeypatch.setenv("ULAM_BACKEND", "cpu")
    assert draw(chains=1, dtype=torch.float64).dtype == torch.float64


def test_network_mode_changed_while_streaming_does_not_matter():
    class Net(torch.nn.Module):
        def forward(self, x, t):
            assert not self.training
            return net(x, t)

    network = Net().train()
    engine = ulam.Engine(ulam.Denoiser(network, SCHEDULE), SHAPE, slots=2)
    engine.submit(DDPM(steps=3), 6)
    for _ in engine.stream():
        assert network.training
        network.train()


BAD = [
    ({"chains": 0}, "chains"),
    ({"chains": -2}, "chains"),
    ({"chains": [1, 1]}, "chains"),
    ({"chains": [-1]}, "chains"),
    ({"chains": 2.5}, "chains"),
    ({"shape": (3, 0)}, "shape"),
    ({"shape": "abc"}, "shape"),
    ({"slots": 0}, "slots"),
    ({"device": "nowhere"}, "device"),
    ({"device": "cuda:99"}, "device"),
    ({"backend": "gpu"}, "backend"),
    ({"dtype": torch.int32}, "dtype"),
    ({"sampler": "ddim"}, "sampler"),
    ({"denoiser": net}, "denoiser"),
    ({"cond": {"y": torch.zeros(3)}}, r"cond\['y'\]"),
    ({"cond": {"y": 3}}, r"cond\['y'\]"),
    ({"cond": [1]}, "cond"),
    ({"guidance": 2.0}, "uncond"),
    ({"guidance": float("nan"), "cond": {"y": torch.zeros(4)}, "uncond": {"y": torch.zeros(4)}}, "guidance"),
    ({"guidance": [1.0, 2.0], "cond": {"y": torch.zeros(4)}, "uncond": {"y": torch.zeros(4)}}, "guidance"),
    ({"uncond": {"y": torch.zeros(4)}}, "guidance"),
    ({"guidance": 2.0, "cond": {"y": torch.zeros(4)}, "uncond": {"z": torch.zeros(4)}}, "uncond"),
    ({"x_init": torch.zeros(4, 3)}, "x_init"),
    ({"x_init": [0.0]}, "x_init"),
    ({"noise": 3}, "noise"),
    ({"noise": lambda row, chains: torch.zeros(1)}, "noise"),
    ({"noise": lambda row, chains: None}, "noise"),
    ({"network": lambda x, t: None}, "net: got NoneType"),
    ({"network": lambda x, t: x[:, :1]}, "net: got shape"),
    ({"network": lambda x, t: x.long()}, "net: got torch.int64"),
    ({"sampler": DDPM(steps=5, variance="learned")}, "expected twice as many"),
]


@pytest.mark.parametrize("bad, named", BAD)
def test_bad_input_is_named(bad, named):
    bad = dict(bad)
    network = bad.pop("network", net)
    arguments = {
        "denoiser": ulam.Denoiser(network, SCHEDULE),
        "sampler": DDPM(steps=5),
        "shape": SHAPE,
        "chains": 4,
    }
    with pytest.raises((TypeError, ValueError), match=named):
        ulam.sample(**{**arguments, **bad}, progress=False)


def test_refused_job_leaves_the_engine_as_it_was():
    engine = ulam.Engine(ulam.Denoiser(net, SCHEDULE), SHAPE, slots=4)
    job = engine.submit(DDPM(steps=11), 4, seed=5)
    with pytest.raises(ValueError, match="cond"):
        engine.submit(DDPM(steps=11), 4, cond={"y": torch.zeros(4)})
    assert torch.equal(engine.run()[job], WHOLE[:4])
