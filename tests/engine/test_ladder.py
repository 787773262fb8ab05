"""Smaller batches for the last chains: the same bits, checked once, used only where the network allows it."""

from __future__ import annotations

import pytest
import torch

import ulam
import ulam.engine.ladder
from engine_cases import SCHEDULE, SHAPE, Silent, net
from ulam.samplers import DDIM, DDPM, DPMSolverPP, DynamicThreshold, Euler, RePaint

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")

SLOTS = 32
LEAST = 1e-9  # tolerance, at which sizes other than multiples of 32 are checked too
LABELS = {"cond": {"y": torch.arange(6.0)}, "uncond": {"y": torch.zeros(6)}}
IMAGE = {"known": torch.linspace(-1, 1, 6 * 105).reshape(6, *SHAPE), "mask": torch.ones(6, *SHAPE).triu()}
# Jobs of six chains that share a batch, long enough for a check to pay.
JOBS = {
    "plain": [(DDPM(steps=11), {}), (DDIM(steps=27), {})],
    "registers": [(DPMSolverPP(steps=16), {}), (DDPM(steps=29), {})],
    "guided": [(DDIM(steps=17, eta=0.5), {"guidance": 2.0, **LABELS}), (DDPM(steps=25), {"cond": LABELS["cond"]})],
    "thresholds": [(DDIM(steps=15, clip=DynamicThreshold(0.9)), {}), (DDPM(steps=9), {})],
    "silent rows": [(Silent(), {}), (DDPM(steps=19), {})],
    "intervals": [(DDIM(steps=17), {"guidance": 2.0, "guidance_interval": (100.0, 600.0), **LABELS})],
    "known images": [(RePaint(steps=15), IMAGE)],
    "own noise": [(DDPM(steps=15), {"noise": lambda row, chains: torch.full((len(chains), *SHAPE), 0.1 * row)})],
    "callbacks": [(DDPM(steps=15), {"callback": lambda preview: None, "every": 2})],
    "not finite": [(DDPM(steps=35), {"x_init": torch.full((6, *SHAPE), float("nan"))}), (DDPM(steps=35), {})],
}


def run(jobs, network=net, ladder=None, slots=SLOTS, **options):
    engine = ulam.Engine(ulam.Denoiser(network, SCHEDULE), SHAPE, slots, ladder=ladder, **options)
    submitted = [engine.submit(sampler, 6, seed, **more) for seed, (sampler, more) in enumerate(jobs)]
    results = engine.run()
    return [results[job] for job in submitted], engine.report


def same(ours, theirs):
    return all(map(torch.equal, (x.nan_to_num(9e9) for x in ours), (x.nan_to_num(9e9) for x in theirs)))


@pytest.mark.filterwarnings("ignore:x_init. got states without a seed")
@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}, {"dtype": torch.float64}], ids=str)
@pytest.mark.parametrize("kind", JOBS)
def test_chains_have_the_bits_of_a_run_without_it(kind, options):
    expected, padded = run(JOBS[kind], slots=96, **options)
    found, report = run(JOBS[kind], ladder=ulam.Ladder((32, 64)), slots=96, **options)
    assert same(found, expected)
    assert report.ladder and all(note.endswith(": the same bits") for note in report.ladder)
    assert report.ticks == padded.ticks and report.evaluations == padded.evaluations
    assert report.rows < padded.rows == 96 * padded.ticks and report.occupancy > padded.occupancy


@pytest.mark.parametrize(("slots", "rung", "odd"), [(64, 33, 33), (96, 12, 12), (100, 50, 50), (100, 32, 100)])
def test_on_the_cpu_only_multiples_of_32_are_held_to_have_the_same_bits(slots, rung, odd):
    """The last elements of a tensor go through other code, whose bits the check would see by luck alone."""

    def network(x, t, y=None):
        return torch.nn.functional.silu(x) * (1 + t.view(-1, 1, 1, 1) / 1000)

    expected, _ = run(JOBS["plain"], network, slots=slots)
    found, report = run(JOBS["plain"], network, ulam.Ladder((rung,)), slots)
    assert same(found, expected) and report.rows == slots * report.ticks
    (note,) = report.ladder
    assert note.startswith(f"{rung} of {slots} slots: not used: on the CPU") and f"batch of {odd} " in note


@pytest.mark.parametrize("kind", ["guided", "intervals"])
@pytest.mark.parametrize("doubled", [False, True])
def test_a_tuned_network_call_keeps_its_bits(doubled, kind):
    options = ulam.NetworkOptions(doubled=doubled, channels_last=True)
    expected, _ = run(JOBS[kind], options=options)
    found, report = run(JOBS[kind], options=options, ladder=ulam.Ladder(tolerance=LEAST))
    assert same(found, expected) and report.rows < SLOTS * report.ticks


def test_branches_in_one_call_are_checked_apart_too():
    """At ticks without guidance the network sees 8 rows of 32, or with it 16 of 64."""

    def network(x, t, y=None):
        return net(x, t, y) * (1 + 1e-6 * (len(x) == 8))

    options = ulam.NetworkOptions(doubled=True)
    expected, _ = run(JOBS["intervals"], network, options=options)
    found, report = run(JOBS["intervals"], network, ulam.Ladder((8,), tolerance=LEAST), options=options)
    assert same(found, expected) and report.rows == SLOTS * report.ticks
    assert report.ladder[0].startswith("8 of 32 slots, guided: not used: outputs differ by ")


def seen(jobs, ladder, network=net, slots=SLOTS):
    """The batches that the network saw, and the report."""
    batches = []

    def watched(x, t, y=None):
        batches.append(len(x))
        return network(x, t, y)

    return batches, run(jobs, watched, ladder, slots)


def test_the_network_sees_the_smallest_batch_that_holds_the_chains():
    batches, (_, report) = seen(
        [(DDPM(steps=20), {}), (DDPM(steps=40), {}), (DDPM(steps=60), {})], ulam.Ladder(tolerance=LEAST)
    )
    first, second = [32, 16, 16], [32, 8, 8, 8, 8]  # the checks: all slots at once, then in parts
    assert batches == [32] * 20 + first + [16] * 20 + second + [8] * 20
    assert report.rows == 20 * (32 + 16 + 8)
    assert report.ladder == ("16 of 32 slots: the same bits", "8 of 32 slots: the same bits")


def test_chains_that_enter_later_widen_it_again():
    expected, _ = run([(DDPM(steps=50), {})] * 5)
    engine = ulam.Engine(ulam.Denoiser(net, SCHEDULE), SHAPE, SLOTS, ladder=ulam.Ladder(tolerance=LEAST))
    jobs = [engine.submit(DDPM(steps=50), 6, 0, callback=lambda preview: waiting and waiting.pop()(), every=20)]
    waiting = [lambda: jobs.extend(engine.submit(DDPM(steps=50), 6, seed) for seed in (1, 2, 3, 4))]
    results = engine.run()
    assert same([results[job] for job in jobs], expected)
    assert engine.report.rows == 20 * 8 + 30 * 32 + 20 * 32 and not waiting


def test_no_check_is_made_that_costs_more_than_it_saves():
    batches, (_, report) = seen([(DDPM(steps=2), {})], ulam.Ladder(tolerance=LEAST))
    assert batches == [32, 32] and not report.ladder


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (lambda x, t, y=None: net(x, t, y) + 1e-6 * x.mean(0), "outputs differ by "),
        (lambda x, t, y=None: net(x, t, y) * (1 + 1e-6 * (len(x) < SLOTS)), "outputs differ by "),
        (lambda x, t, y=None: net(x, t, y) + torch.zeros(SLOTS, 1, 1, 1), "RuntimeError: "),
        (lambda x, t, y=None: x * float("nan"), "ValueError: all outputs are 0 or not finite"),
        (lambda x, t, y=None: x * 0, "ValueError: all outputs are 0 or not finite"),
        (lambda x, t, y=None: torch.where(torch.tensor(len(x) < SLOTS), float("nan"), x), "outputs differ by inf"),
    ],
    ids=["by batch-mates", "by size", "one size only", "never finite", "zero", "not finite"],
)
def test_a_network_with_other_bits_in_smaller_batches_sees_all_slots(network, said):
    expected, _ = run(JOBS["plain"], network)
    found, report = run(JOBS["plain"], network, ulam.Ladder((8,), tolerance=LEAST))
    assert same(found, expected) and report.rows == SLOTS * report.ticks
    (note,) = report.ladder
    assert note.startswith(f"8 of 32 slots: not used: {said}")


def test_within_a_tolerance_it_is_used_and_said():
    def network(x, t, y=None):
        return net(x, t, y) * (1 + 1e-5 * (len(x) < SLOTS))

    expected, _ = run(JOBS["plain"], network)
    found, report = run(JOBS["plain"], network, ulam.Ladder((8,), tolerance=1e-4))
    assert report.rows < SLOTS * report.ticks and not same(found, expected)
    assert all(torch.allclose(x, y, rtol=1e-3, atol=1e-3) for x, y in zip(found, expected, strict=True))
    assert report.ladder == ("8 of 32 slots: outputs differ by 1.0e-05 of the largest",)


def test_an_interrupt_in_the_check_costs_nothing():
    def network(x, t, y=None):
        if len(x) < SLOTS and waiting:
            raise waiting.pop()
        return net(x, t, y)

    waiting = [KeyboardInterrupt()]
    engine = ulam.Engine(ulam.Denoiser(network, SCHEDULE), SHAPE, SLOTS, ladder=ulam.Ladder(tolerance=LEAST))
    job = engine.submit(DDPM(steps=20), 6, 0)
    with pytest.raises(KeyboardInterrupt):
        engine.run()
    assert same([engine.run()[job]], run([(DDPM(steps=20), {})])[0])
    assert engine.report.rows == 20 * 8


def test_random_numbers_of_the_caller_go_on_as_without_it():
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    assert run(JOBS["plain"], ladder=ulam.Ladder(tolerance=LEAST))[1].ladder
    assert torch.equal(torch.randn(3), expected)


def test_random_numbers_of_the_network_go_on_as_without_a_check():
    def network(x, t, y=None):
        return torch.nn.functional.dropout(net(x, t, y), 0.1)

    torch.manual_seed(0)
    expected, _ = run(JOBS["plain"], network)
    torch.manual_seed(0)
    found, report = run(JOBS["plain"], network, ulam.Ladder((8,), tolerance=LEAST))
    assert same(found, expected) and "not used: outputs differ" in report.ladder[0]


@pytest.mark.parametrize("until", [1000, 500])
def test_a_network_that_changes_its_input_in_place_is_refused_in_smaller_batches_too(until):
    def network(x, t, y=None):
        return net(x.clamp_(-1, 1) if t.max() < until else x, t, y)

    with pytest.raises(ValueError, match="net: got its input x changed in place"):
        run([(DDPM(steps=20), {})], network, ulam.Ladder(tolerance=LEAST), slots=12)


def test_a_check_that_runs_out_of_memory_leaves_the_batch_as_it_is():
    def network(x, t, y=None):
        calls.append(len(x))
        if len(calls) == 12:  # the first of the check
            raise torch.OutOfMemoryError("no room for both")
        return net(x, t, y)

    calls = []
    found, report = run(JOBS["plain"], network, ulam.Ladder((8,), tolerance=LEAST), slots=12)
    assert same(found, run(JOBS["plain"], slots=12)[0])
    assert report.ladder == ("8 of 12 slots: not used: OutOfMemoryError: no room for both",)
    assert report.batch == 12 and not report.fallbacks


def test_no_check_is_made_of_more_calls_than_it_may_save():
    batches, (_, report) = seen([(DDPM(steps=20), {})], ulam.Ladder((1,), tolerance=LEAST), slots=32)
    assert batches == [32] * 20 and not report.ladder
    assert seen([(DDPM(steps=5), {})], ulam.Ladder(tolerance=LEAST))[0] == [32] * 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rungs": 8}, "rungs: got 8, expected sizes such as"),
        ({"rungs": ()}, r"rungs: got \(\), expected sizes such as"),
        ({"rungs": (8, 0)}, "rungs: got 0, expected sizes of at least 1"),
        ({"rungs": (8, 2.0)}, "rungs: got 2.0, expected an integer"),
        ({"tolerance": -1e-3}, "tolerance: got -0.001, expected a number from 0 to below 1"),
        ({"tolerance": 1.0}, "tolerance: got 1.0, expected a number from 0 to below 1"),
        ({"tolerance": "exact"}, "tolerance: got 'exact', expected a number from 0 to below 1"),
    ],
)
def test_what_is_no_ladder_is_refused(given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ulam.Ladder(**given)


def test_sizes_of_no_use_are_left_out():
    assert ulam.Ladder((64, 32, 8, 8)).below(32) == [8]
    assert ulam.Ladder().below(100) == [12, 25, 50] and ulam.Ladder().below(1) == []
    assert run(JOBS["plain"], ladder=ulam.Ladder((64,)))[1].ladder == ()


@pytest.mark.filterwarnings("ignore:x_init")
def test_sample_takes_it():
    denoiser = ulam.Denoiser(net, SCHEDULE)
    options = {"shape": SHAPE, "chains": 36, "slots": SLOTS, "progress": False}
    expected = ulam.sample(denoiser, Euler(20), **options)
    assert torch.equal(ulam.sample(denoiser, Euler(20), ladder=ulam.Ladder(tolerance=LEAST), **options), expected)
