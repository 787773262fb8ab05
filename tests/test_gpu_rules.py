"""The engine on a GPU, as far as a stand-in with torch's own rules can tell (see gpu_stand_in): the CPU's bits, replays
where it can, and no wait where it need not."""

from __future__ import annotations

import threading
import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch
from engine_cases import SCHEDULE, SHAPE, WHOLE, Silent, net

import ulam
from ulam.samplers import DDIM, DDPM, Heun, PredictorCorrector, RePaint

pytest_plugins = "gpu_stand_in"

EDM = ulam.schedules.edm(0.01, 10.0)
Y, NULL = torch.arange(6.0), torch.full((6,), 10.0)
GUIDED = {"cond": {"y": Y}, "uncond": {"y": NULL}, "guidance": 2.0}


def make(gpu, network=net, slots=4, device="cuda:0", denoiser=None, **options):
    denoiser = denoiser or ulam.Denoiser(gpu.inside(network), SCHEDULE)
    return ulam.Engine(denoiser, SHAPE, slots, device, **options)


def expected(submit, network=net, slots=4, denoiser=None, **options):
    """The bits of an engine on the CPU."""
    engine = ulam.Engine(denoiser or ulam.Denoiser(network, SCHEDULE), SHAPE, slots, **options)
    job = submit(engine)
    return engine.run()[job]


def check(engine, submit, **options):
    """Submit, run, hold the bits against the CPU's."""
    job = submit(engine)
    assert torch.equal(engine.run()[job].cpu(), expected(submit, **options))


def submission(sampler, chains=6, seed=5, **given):
    return lambda engine: engine.submit(sampler, chains, seed, **given)


def ended(gpu):
    return [record for record in gpu.records if record.ended]


# ------------------------------------------------------------------------------------------------ captures


def test_a_job_is_captured_once_and_has_the_bits_of_the_cpu(gpu):
    engine = make(gpu)
    check(engine, submission(DDPM(steps=11), 12))
    (record,) = gpu.records
    assert record.replays == engine.report.ticks - 1 and not engine.report.fallbacks
    assert record.outside.count("ulam::step") == 1 and record.names.count("aten::tanh") == 1


def test_five_programs_one_after_another_keep_replaying(gpu):
    """One capture a kind of tick, guided and not, whatever programs come; all others are replays."""
    engine = make(gpu)
    for sampler in (DDIM(steps=5), DDPM(steps=6), DDIM(steps=7, eta=0.5), DDPM(steps=8), DDIM(steps=9)):
        check(engine, submission(sampler, cond={"y": Y}))
        check(engine, submission(sampler, **GUIDED))
    assert not engine.report.fallbacks
    assert len(gpu.records) == 2
    assert sum(record.replays for record in gpu.records) == engine.report.ticks - 2


def test_programs_that_need_more_buffers_leave_the_graphs_that_there_are(gpu):
    """Registers, reductions, silent rows, known images, scaled inputs: each kind of tick is captured once for good."""
    engine = make(gpu)
    image = {"known": torch.rand(6, *SHAPE), "mask": torch.ones(6, *SHAPE)}
    captures = []
    for sampler, given in (
        (DDIM(steps=5), {}),
        (Heun(steps=5), {}),
        (PredictorCorrector(steps=4), {}),
        (Silent(), {}),
        (RePaint(6, 2, 2), image),
        (HalfInput(), {}),
    ) * 2:
        check(engine, submission(sampler, **given))
        captures.append(engine.report.captures)
    assert not engine.report.fallbacks and captures[6:] == [captures[5]] * 6 and len(gpu.records) == captures[5]
    replays = gpu.records[0].replays
    check(engine, submission(DDIM(steps=9), 4))
    assert gpu.records[0].replays == replays + 9


class HalfInput:
    """DDIM whose network reads half of the state, as under EDM's preconditioning."""

    def program(self, schedule, predicts="eps"):
        program = DDIM(steps=6).program(schedule, predicts)
        return replace(program, c_in=program.c_in / 2)


@pytest.mark.parametrize("options", [{"guidance_interval": (200.0, 600.0)}, {"guidance_rescale": 0.7}], ids=str)
def test_guidance_in_an_interval_and_rescaled_is_captured(gpu, options):
    engine = make(gpu)
    check(engine, submission(DDIM(steps=9), **GUIDED, **options))
    check(engine, submission(DDIM(steps=9), **GUIDED, **options))
    assert not engine.report.fallbacks and ended(gpu)


def test_a_first_tick_that_raises_warms_nothing_up(gpu):
    failing = [True]

    def network(x, t):
        if failing:
            raise ValueError(failing.pop())
        return net(x, t)

    engine = make(gpu, network)
    job = engine.submit(DDPM(steps=11), 4, seed=5)
    with pytest.raises(ulam.NetworkError):
        engine.run()
    assert torch.equal(engine.run()[job].cpu(), WHOLE[:4])
    assert gpu.records[0].replays == engine.report.ticks - 1, "the repeated tick ran eagerly"


SYNCS = {
    "item": lambda x: x.sum().item(),
    "copy to the host": lambda x: x.sum().cpu(),
    "copy to the device": lambda x: torch.tensor([1.0], device=x.device),
    "mask": lambda x: x[x > 0],
    "synchronize": lambda x: torch.cuda.synchronize(),
    "event": lambda x: torch.cuda.current_stream().record_event().synchronize(),
}


@pytest.mark.parametrize("first", [1, 2], ids=["always", "from the second call on"])
@pytest.mark.parametrize("kind", SYNCS)
def test_a_network_that_waits_runs_eagerly_and_leaves_nothing_behind(gpu, kind, first):
    """One line says so; stream, device, generator and allocators are as before, and another engine can capture."""
    calls = []

    def network(x, t):
        calls.append(1)
        if len(calls) >= first:
            SYNCS[kind](x)
        return net(x, t)

    other = make(gpu)
    check(other, submission(DDPM(steps=11), 4))
    torch.cuda.manual_seed(7)
    stream, state = torch.cuda.current_stream(), torch.cuda.get_rng_state(0)
    engine = make(gpu, network)
    check(engine, submission(DDPM(steps=11), 12))
    check(engine, submission(DDPM(steps=11), 12))
    (line,) = engine.report.fallbacks
    assert line.startswith("no CUDA graph, ticks run eagerly: ")
    assert torch.cuda.current_stream() == stream and torch.cuda.current_device() == 0
    assert torch.equal(torch.cuda.get_rng_state(0), state)
    torch.randn(3, device="cuda:0")
    assert not gpu.devices[0].underway, "the allocator no longer thinks that there is a capture"
    replays = gpu.records[0].replays
    check(other, submission(DDPM(steps=11), 4))
    assert gpu.records[0].replays == replays + 11, "graphs of before can be replayed"
    third = make(gpu)
    check(third, submission(DDPM(steps=11), 4))
    assert not third.report.fallbacks and gpu.records[-1].replays == 10


@pytest.mark.parametrize("current", [0, 1])
def test_engines_on_two_devices_both_capture_and_replay(gpu, current):
    torch.cuda.set_device(current)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "The CUDA Graph is empty"
        engines = [make(gpu, device="cuda:0"), make(gpu, device="cuda:1")]
        jobs = [engine.submit(DDPM(steps=11), 24, seed=5) for engine in engines]
        streams = [engine.stream() for engine in engines]
        results = [[next(stream) for stream in streams] for _ in range(24)]
    for side, (engine, job) in enumerate(zip(engines, jobs, strict=True)):
        for result in (pair[side] for pair in results):
            assert result.job is job and result.x.device.index == side
            assert torch.equal(result.x.cpu(), WHOLE[result.chain])
        assert not engine.report.fallbacks
    assert [record.device for record in gpu.records] == [0, 1]
    assert all(record.replays == engine.report.ticks - 1 for record, engine in zip(gpu.records, engines, strict=True))
    assert torch.cuda.current_device() == current


def test_another_thread_may_submit_during_a_capture(gpu):
    """Its conditioning is new memory, which a capture that minds all threads does not survive."""
    calls, threads, failures = [], [], []
    other = make(gpu)

    def submit():
        try:
            other.submit(DDIM(steps=5), 6, 5, cond={"y": Y})
            make(gpu)
        except Exception as error:
            failures.append(error)

    def network(x, t):
        calls.append(1)
        if len(calls) == 2:
            threads.append(threading.Thread(target=submit))
            threads[0].start()
            threads[0].join()
        return net(x, t)

    engine = make(gpu, network)
    check(engine, submission(DDPM(steps=11), 12))
    assert not engine.report.fallbacks and not failures
    results = other.run()
    assert torch.equal(next(iter(results.values())).cpu(), expected(submission(DDIM(steps=5), cond={"y": Y})))


@pytest.mark.parametrize("options", [{"backend": "reference"}, {"dtype": torch.float64}], ids=str)
def test_what_computes_on_the_host_is_not_captured_and_says_so(gpu, options):
    engine = make(gpu, **options)
    check(engine, submission(DDPM(steps=5), 4), **options)
    check(engine, submission(DDPM(steps=7), 4), **options)
    assert not gpu.records, "not even tried"
    (line,) = engine.report.fallbacks
    assert line.startswith("no CUDA graph, ticks run eagerly: ")


# ------------------------------------------------------------------------------------------------ networks


class Scaled(torch.nn.Module):
    """Rows are independent; a parameter and a buffer enter element by element."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(0.5, 1.0, 7))
        self.register_buffer("shift", torch.linspace(-0.1, 0.1, 7))

    def forward(self, x, t):
        return net(x, t) * self.weight + self.shift


def by_data(module, name, new):
    getattr(module, name).data = new


def by_attribute(module, name, new):
    setattr(module, name, torch.nn.Parameter(new) if name == "weight" else new)


def by_load(module, name, new):
    module.load_state_dict({**module.state_dict(), name: new}, assign=True)


@pytest.mark.parametrize("name", ["weight", "shift"])
@pytest.mark.parametrize("replace", [by_data, by_attribute, by_load])
def test_weights_replaced_after_the_capture_are_those_used(gpu, replace, name):
    on_cpu, on_gpu = Scaled(), Scaled().to("cuda:0")
    engine = make(gpu, denoiser=ulam.Denoiser(on_gpu, SCHEDULE))
    run = partial(check, engine, submission(DDPM(steps=11), 4), denoiser=ulam.Denoiser(on_cpu, SCHEDULE))
    run()
    new = torch.linspace(-1.0, 1.0, 7)
    replace(on_cpu, name, new)
    replace(on_gpu, name, new.to("cuda:0"))
    run()
    run()
    assert not engine.report.fallbacks and gpu.records[-1].replays > 11


def test_weights_changed_in_place_need_no_other_capture(gpu):
    on_cpu, on_gpu = Scaled(), Scaled().to("cuda:0")
    engine = make(gpu, denoiser=ulam.Denoiser(on_gpu, SCHEDULE))
    for factor in (1.0, 0.5, 2.0):
        for module in (on_cpu, on_gpu):
            with torch.no_grad():
                module.weight.mul_(factor)
        check(engine, submission(DDPM(steps=11), 4), denoiser=ulam.Denoiser(on_cpu, SCHEDULE))
    assert len(gpu.records) == 1


def test_the_weight_cache_of_an_outer_autocast_is_not_captured(gpu):
    """What autocast made of the weights is gone when it ends, and made anew inside the next."""
    torch.manual_seed(0)
    linear, cached = torch.nn.Linear(7, 7).to("cuda:0"), []

    def network(x, t):
        if torch.cuda.is_current_stream_capturing():
            cached.append(torch.is_autocast_cache_enabled())
        return torch.tanh(linear(x)).float()

    captured, eager = make(gpu, network), make(gpu, network, graphs=False)
    for seed in range(3):
        results = []
        for engine in (captured, eager):
            job = engine.submit(DDPM(steps=11), 4, seed)
            with torch.autocast("cuda", torch.bfloat16):
                results.append(engine.run()[job].cpu())
        assert torch.equal(*results)
    assert not captured.report.fallbacks and gpu.records[-1].replays > 11
    assert cached and not any(cached)


# ------------------------------------------------------------------------------------------------ waits


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


NARROW = torch.nn.Linear(1, 1).to(torch.bfloat16)  # only its dtype matters


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
