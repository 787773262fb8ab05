"""The engine on a GPU (see gpu_stand_in) waits for the device where it must and nowhere else."""

from __future__ import annotations

import pytest
import torch

import ulam
from engine_cases import SCHEDULE, SHAPE, WHOLE, net
from gpu_cases import check, expected, make, submission
from ulam.samplers import DDIM, DDPM, RePaint

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")

pytest_plugins = "gpu_stand_in"

EDM = ulam.schedules.edm(0.01, 10.0)


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
@pytest.mark.parametrize("graphs", [True, False])
def test_staging_is_not_written_again_before_it_is_read(gpu, device, graphs):
    """Chains that enter and leave at every tick, on a device that is not the current one either."""
    engine = make(gpu, device=device, slots=8, graphs=graphs)
    jobs = [engine.submit(DDPM(steps=steps), 3, seed) for seed, steps in enumerate((3, 5, 7, 11, 4, 6, 8) * 4)]
    results = engine.run()
    plain = ulam.Engine(ulam.Denoiser(net, SCHEDULE), SHAPE, 8)
    again = [plain.submit(DDPM(steps=steps), 3, seed) for seed, steps in enumerate((3, 5, 7, 11, 4, 6, 8) * 4)]
    wanted = plain.run()
    assert all(torch.equal(results[job].cpu(), wanted[other]) for job, other in zip(jobs, again, strict=True))


def host(*size):
    return torch.rand(*size, generator=torch.Generator().manual_seed(1))


class Narrow(torch.nn.Module):
    """A network in bfloat16, which reads an input of its own."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones((), dtype=torch.bfloat16))

    def forward(self, x, t):
        return torch.tanh(x) * self.weight


ADMITTED = {
    "nothing": ({}, {}),
    "cond": ({"cond": {"y": host(6)}}, {}),
    "cond on the device": ({"cond": {"y": host(6)}}, {"on_device": True}),
    "shared cond": ({"cond": {"y": ulam.shared(host(1))}}, {}),
    "guidance": ({"cond": {"y": host(6)}, "uncond": {"y": host(6)}, "guidance": 2.0}, {}),
    "x_init": ({"x_init": host(6, *SHAPE)}, {}),
    "x_init in float64": ({"x_init": host(6, *SHAPE).double()}, {}),
    "known": ({"sampler": RePaint(6, 2, 2), "known": host(6, *SHAPE), "mask": host(6, *SHAPE)}, {}),
    "shared known": (
        {"sampler": RePaint(6, 2, 2), "known": ulam.shared(host(*SHAPE)), "mask": ulam.shared(host(*SHAPE))},
        {},
    ),
    "EDM": ({}, {"schedule": EDM, "predicts": "raw"}),
    "bfloat16": ({}, {"module": True}),
}


@pytest.mark.parametrize("gpu", ["late"], indirect=True)
@pytest.mark.parametrize("case", ADMITTED)
@pytest.mark.parametrize("graphs", [True, False])
def test_admission_and_ticks_wait_for_nothing(gpu, case, graphs):
    """Only events are waited for: that a staging buffer is free again, that results are out."""
    given, how = ADMITTED[case]
    given = {"sampler": DDIM(steps=5), **given}
    schedule, predicts = how.get("schedule", SCHEDULE), how.get("predicts", "eps")
    networks = (Narrow(), Narrow().to("cuda:0")) if "module" in how else (net, gpu.inside(net))
    on_cpu, on_gpu = (ulam.Denoiser(network, schedule, predicts=predicts) for network in networks)
    engine = make(gpu, denoiser=on_gpu, graphs=graphs)

    def submit(engine):
        ready = given
        if "on_device" in how and engine.report.device != "cpu":
            ready = {**given, "cond": {"y": given["cond"]["y"].to("cuda:0")}}
        gpu.forget()
        return engine.submit(chains=6, seed=5, **ready)

    check(engine, submit, denoiser=on_cpu)
    job = submit(engine)
    results = engine.run()[job]
    found = gpu.waited(but=("event.synchronize",))
    assert not found, f"{case}: {found}"
    assert torch.equal(results.cpu(), expected(submit, denoiser=on_cpu))
    assert not engine.report.fallbacks


def test_another_program_enters_without_a_wait(gpu):
    engine = make(gpu)
    check(engine, submission(DDIM(steps=5)))
    gpu.forget()
    job = engine.submit(DDIM(steps=7), 6, seed=5)
    results = engine.run()[job]
    assert not gpu.waited(but=("event.synchronize",)), gpu.waited(but=("event.synchronize",))
    assert torch.equal(results.cpu(), expected(submission(DDIM(steps=7))))


def test_results_on_the_host_do_not_keep_memory_page_locked(gpu):
    engine = make(gpu, results="host")
    before = gpu.pinned_bytes
    engine.submit(DDPM(steps=3), 64, seed=5)
    kept = list(engine.stream())
    engine.submit(DDPM(steps=3), 64, seed=6)
    kept_too = list(engine.stream())
    batch = 4 * WHOLE[0].nbytes
    assert gpu.pinned_bytes - before <= 8 * batch < 16 * batch
    for seed, results in ((5, kept), (6, kept_too)):
        wanted = expected(submission(DDPM(steps=3), 64, seed))
        assert len(results) == 64 and all(torch.equal(result.x, wanted[result.chain]) for result in results)


@pytest.mark.parametrize("results", ["device", "host"])
def test_results_are_whole_when_they_are_handed_out(gpu, results):
    """Each is read the moment it comes, while later chains run."""
    engine = make(gpu, results=results)
    engine.submit(DDPM(steps=11), 24, seed=5)
    for result in engine.stream():
        assert torch.equal(result.x if results == "host" else result.x.cpu(), WHOLE[result.chain])
