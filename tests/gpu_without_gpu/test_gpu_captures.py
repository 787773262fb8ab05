"""The engine's CUDA graphs on a stand-in with torch's own rules (see gpu_stand_in): when it captures and replays."""

from __future__ import annotations

import threading
import warnings
from dataclasses import replace

import pytest
import torch

import ulam
from engine_cases import SHAPE, WHOLE, Silent, net
from gpu_cases import GUIDED, Y, check, ended, expected, make, submission
from ulam.guidance import APG, CFGZero
from ulam.programs.builder import ProgramBuilder
from ulam.samplers import DDIM, DDPM, Heun, PredictorCorrector, RePaint

pytestmark = pytest.mark.filterwarnings("ignore:norms. got 'chain'")

pytest_plugins = "gpu_stand_in"


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
        (PredictorCorrector(steps=4, norms="chain"), {}),
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


@pytest.mark.parametrize("given", [{}, GUIDED], ids=["plain", "guided"])
def test_a_smaller_batch_for_the_last_chains_is_a_graph_of_its_own(gpu, given):
    engine = make(gpu, ladder=ulam.Ladder())
    for _ in range(2):
        check(engine, submission(DDIM(steps=40), **given))  # six chains in four slots: two of them last
    assert not engine.report.fallbacks and engine.report.ladder == (
        f"2 of 4 slots{', guided' * bool(given)}: the same bits",
    )
    assert engine.report.rows == 2 * (40 * 4 + 40 * 2)
    whole, half = gpu.records
    assert (whole.replays, half.replays) == (80 - 1, 80 - 1)


class HalfInput:
    """DDIM whose network reads half of the state, as under EDM's preconditioning."""

    def program(self, schedule, predicts="eps"):
        program = DDIM(steps=6).program(schedule, predicts)
        return replace(program, c_in=program.c_in / 2)


FORMS = {
    "interval": {"guidance_interval": (200.0, 600.0)},
    "rescaled": {"guidance_rescale": 0.7},
    "projected": {"guidance_rule": APG(eta=0.5, norm=2.0, momentum=-0.5)},
    "fitted": {"guidance_rule": CFGZero()},
    "scheduled": {"guidance_schedule": [0.1 * k for k in range(9)]},
    "blended": {"blend": [({"y": 1 - Y}, 0.25)]},
}


class AlongUnguided:
    """DDIM along the noise of the unguided branch."""

    def program(self, schedule, predicts="eps"):
        grid = DDIM(steps=9).grid(schedule)
        builder = ProgramBuilder(schedule, predicts, unguided=True)
        here = grid.alphas[:-1], grid.sigmas[:-1]
        builder.rows(grid.times, levels=here, x={"D": grid.alphas[1:], "eps_u": grid.sigmas[1:]})
        return builder.program("along the unguided noise")


@pytest.mark.parametrize("form", [*FORMS, "unguided"])
def test_every_form_of_guidance_is_captured(gpu, form):
    engine = make(gpu, branches=1)
    sampler = AlongUnguided() if form == "unguided" else DDIM(steps=9)
    for _ in range(2):
        check(engine, submission(sampler, **GUIDED, **FORMS.get(form, {})), branches=1)
    assert not engine.report.fallbacks and ended(gpu)


@pytest.mark.parametrize("state", ["always", "error"])
def test_warnings_during_the_first_tick_are_the_networks_alone(gpu, state):
    """Its own go where they always go, once a call; where they are errors, no step was taken and the run goes on."""
    texts = ["old weights"]

    def network(x, t):
        if texts:
            warnings.warn(texts.pop(), UserWarning, stacklevel=1)
        return net(x, t)

    engine = make(gpu, network)
    job = engine.submit(DDPM(steps=11), 4, seed=5)
    with warnings.catch_warnings(record=state == "always") as told:
        warnings.simplefilter(state)
        if state == "error":
            with pytest.raises(ulam.NetworkError, match="old weights"):
                engine.run()
        samples = engine.run()[job]
    assert state == "error" or [str(warning.message) for warning in told] == ["old weights"]
    assert torch.equal(samples.cpu(), WHOLE[:4])
    assert gpu.records and not engine.report.fallbacks


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


@pytest.mark.parametrize("gpu", ["late"], indirect=True)
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


@pytest.mark.parametrize("what", ["item", "mask", "draw"])
def test_a_network_that_is_compiled_at_its_first_call_is_captured(gpu, what):
    """Compilers wait for the device (constants are folded) and draw random numbers (candidates are timed)."""
    calls = []

    def network(x, t):
        calls.append(1)
        if len(calls) == 1:
            SYNCS[what](x) if what in SYNCS else torch.randn_like(x)
        return net(x, t)

    engine = make(gpu, network)
    check(engine, submission(DDPM(steps=11), 4))
    assert not engine.report.fallbacks and gpu.records[0].replays == 9


def test_one_kind_of_tick_that_cannot_be_captured_leaves_the_others_to_be(gpu):
    """A network that waits when a guided tick is captured: the pool of a failed capture is of no use to the next."""
    waits = []

    def network(x, t, y):
        if waits and torch.cuda.is_current_stream_capturing():
            x.sum().item()
        return net(x, t, y)

    engine = make(gpu, network)
    check(engine, submission(DDIM(steps=5), cond={"y": Y}))
    waits.append(True)
    check(engine, submission(DDIM(steps=5), **GUIDED), network=net)
    waits.clear()
    check(engine, submission(DDIM(steps=5), **GUIDED, guidance_rescale=0.5), network=net)
    check(engine, submission(DDIM(steps=5), cond={"y": Y}))
    assert len(engine.report.fallbacks) == 1 and len(ended(gpu)) == 2
    assert sum(record.replays for record in gpu.records) == 4 * 10 - 10 - 2


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


def test_captures_of_two_threads_do_not_meet(gpu):
    """torch.cuda.graph first waits for the whole device, which a capture of another thread does not survive."""
    calls, threads, results = [], [], []
    other = make(gpu)

    def run_other():
        for steps in (5, 7):
            other.submit(DDIM(steps=steps), 6, 5, cond={"y": Y})
            results.append(next(iter(other.run().values())).cpu())

    def network(x, t):
        calls.append(1)
        if len(calls) == 2:  # captured
            threads.append(threading.Thread(target=run_other))
            threads[0].start()
            threads[0].join(0.5)  # it has come as far as it can
        return net(x, t)

    engine = make(gpu, network)
    check(engine, submission(DDPM(steps=11), 12))
    threads[0].join()
    assert not engine.report.fallbacks and not other.report.fallbacks
    assert engine.report.captures == other.report.captures == 1
    for steps, result in zip((5, 7), results, strict=True):
        assert torch.equal(result, expected(submission(DDIM(steps=steps), cond={"y": Y})))


def test_first_ticks_of_two_threads_leave_torch_as_it_was(gpu):
    """The debug mode and Python's warnings are one for all threads; a wait of another thread is not the network's."""
    begun, ended, shown = [threading.Event(), threading.Event()], threading.Event(), warnings.showwarning
    results, engines = {}, []

    def run(number):
        job = engines[number].submit(DDPM(steps=11), 4, seed=5)
        results[number] = engines[number].run()[job].cpu()

    def first(x, t):
        begun[0].set()
        begun[1].wait(0.3)  # the other's network, should it come so far
        return net(x, t)

    def second(x, t):
        begun[1].set()
        ended.wait(2)
        return net(x, t)

    engines += [make(gpu, first), make(gpu, second, device="cuda:1")]
    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    threads[0].start()
    assert begun[0].wait(10)
    threads[1].start()
    torch.ones(1, device="cuda:0").item()  # warns, in this thread
    threads[0].join()
    ended.set()
    threads[1].join()
    assert torch.cuda.get_sync_debug_mode() == 0 and warnings.showwarning is shown
    for number, engine in enumerate(engines):
        assert torch.equal(results[number], WHOLE[:4]) and not engine.report.fallbacks


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_capture_that_others_spoil_is_tried_again(gpu, times):
    """Someone's torch.cuda.synchronize() in another thread; after three times the kind of tick stays eager."""
    calls, refused = [], []

    def wait_for_all():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            refused.append(str(error))

    def network(x, t):
        calls.append(1)
        if len(calls) % 2 == 0 and len(refused) < times:  # captured: ticks that were spoilt run once more, eagerly
            thread = threading.Thread(target=wait_for_all)
            thread.start()
            thread.join()
        return net(x, t)

    engine = make(gpu, network)
    check(engine, submission(DDPM(steps=17), 12))
    assert len(refused) == times and all("capturing" in text for text in refused)
    assert engine.report.captures == (times < 3)
    assert len(engine.report.fallbacks) == (times == 3)


@pytest.mark.parametrize("options", [{"backend": "reference"}, {"dtype": torch.float64}], ids=str)
def test_what_computes_on_the_host_is_not_captured_and_says_so(gpu, options):
    engine = make(gpu, **options)
    check(engine, submission(DDPM(steps=5), 4), **options)
    check(engine, submission(DDPM(steps=7), 4), **options)
    assert not gpu.records, "not even tried"
    (line,) = engine.report.fallbacks
    assert line.startswith("no CUDA graph, ticks run eagerly: ")
