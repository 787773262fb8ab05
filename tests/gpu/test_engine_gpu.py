"""The engine on a GPU: with CUDA graphs and without, everything has the bits of the CPU.

The network is products and sums alone, one rounding each, so that it has one answer everywhere. On the CPU the same
tests show that what they compare is there to be compared.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

import ulam
import ulam_kernels
from moments_cases import arguments
from ulam.guidance import APG, CFGZero
from ulam.samplers import DDIM, DDPM, DPMSolverPP, DynamicThreshold, PredictorCorrector, RePaint

pytestmark = pytest.mark.filterwarnings("ignore:norms. got 'chain'")

SCHEDULE = ulam.schedules.vp_linear(1000, 1e-4, 0.02)
SHAPE = (3, 8, 8)
SLOTS = 8
STATES = ulam_kernels.backends()
BACKENDS = [pytest.param(("cpu", None), id="cpu")]
for name in ("cuda", "triton"):
    missing = pytest.mark.skipif(STATES[name] != "usable", reason=f"no GPU for {name}: {STATES[name]}")
    BACKENDS.append(pytest.param(("cuda", name), marks=[pytest.mark.gpu, missing], id=name))
Place = tuple[str, str | None]


def net(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
    """Each of these operations rounds once (the powers of two not at all), the same on every device."""
    out = x * 0.4375 + (t.to(x.dtype) * 2.0**-11).view(-1, 1, 1, 1)
    return out if y is None else out + (y.to(x.dtype) * 0.125).view(-1, 1, 1, 1)


def engine(place: Place, network: Any = net, **options: Any) -> ulam.Engine:
    device, backend = place
    return ulam.Engine(ulam.Denoiser(network, SCHEDULE), SHAPE, SLOTS, device, backend, **options)


def on_cpu(*jobs: tuple[Any, dict[str, Any]], network: Any = net) -> list[torch.Tensor]:
    """The jobs' results by the CPU, each alone."""
    results = []
    for sampler, options in jobs:
        made = engine(("cpu", None), network)
        job = made.submit(sampler, **options)
        results.append(made.run()[job])
    return results


def check_graphs(made: ulam.Engine, place: Place, captures: int = 1) -> None:
    """Nothing slower ran than was asked for, and on a GPU ticks were captured."""
    assert made.report.fallbacks == ()
    if place[0] == "cuda":
        assert made.report.as_dict()["captures"] >= captures
        assert made.report.backend == place[1]


def labels(chains: int, first: int = 0) -> torch.Tensor:
    return torch.arange(first, first + chains) % 10


GUIDED = {"cond": {"y": labels(12)}, "uncond": {"y": torch.full((12,), 3)}}
MIXED = [
    (DDPM(steps=40), {"chains": 20, "seed": 1}),
    (DDIM(steps=25), {"chains": 12, "seed": 2}),
    (DPMSolverPP(20), {"chains": range(100, 111), "seed": 3}),
    (DDPM(steps=15, clip=(-1.0, 1.0)), {"chains": 5, "seed": -4}),
]


@pytest.mark.parametrize("place", BACKENDS)
@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "eager"])
@pytest.mark.parametrize("check", [True, False], ids=["checked", "unchecked"])
def test_mixed_programs_have_the_bits_of_the_cpu(place: Place, graphs: bool, check: bool) -> None:
    made = engine(place, graphs=graphs, check_finite=check)
    jobs = [made.submit(sampler, **options) for sampler, options in MIXED]
    results = made.run()
    for job, expected in zip(jobs, on_cpu(*MIXED), strict=True):
        assert torch.equal(results[job].cpu(), expected), job.program.sampler
    if graphs:
        check_graphs(made, place)


@pytest.mark.parametrize("place", BACKENDS)
@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "eager"])
def test_smaller_batches_for_the_last_chains(place: Place, graphs: bool) -> None:
    made = engine(place, graphs=graphs, ladder=ulam.Ladder(tolerance=1e-9))
    jobs = [made.submit(sampler, **options) for sampler, options in MIXED]
    results = made.run()
    for job, expected in zip(jobs, on_cpu(*MIXED), strict=True):
        assert torch.equal(results[job].cpu(), expected), job.program.sampler
    assert made.report.rows < made.report.ticks * SLOTS
    assert made.report.ladder and all(note.endswith("the same bits") for note in made.report.ladder)
    if graphs:
        check_graphs(made, place, captures=2)


@pytest.mark.parametrize("place", BACKENDS)
def test_programs_that_enter_a_running_engine(place: Place) -> None:
    """Each brings rows, some of them registers; graphs are used before and after."""
    made, found, captured = engine(place), {}, []
    todo = iter(MIXED[1:])
    first = made.submit(MIXED[0][0], **MIXED[0][1])
    jobs = [first]
    for count, result in enumerate(made.stream()):
        found[result.job, result.chain] = result.x.cpu()
        if count % 8 == 3 and (entry := next(todo, None)) is not None:
            captured.append(made.report.as_dict().get("captures"))
            jobs.append(made.submit(entry[0], **entry[1]))
    assert len(jobs) == len(MIXED)
    for job, expected in zip(jobs, on_cpu(*MIXED), strict=True):
        got = torch.stack([found[job, int(chain)] for chain in job.chain_ids])
        assert torch.equal(got, expected), job.program.sampler
    check_graphs(made, place)
    if place[0] == "cuda":
        assert captured[0] >= 1, "the first program was replayed before the others came"


@pytest.mark.parametrize("place", BACKENDS)
def test_guidance_intervals_and_rescaling(place: Place) -> None:
    """Guidance's branches are kinds of tick of their own."""
    job = {"chains": 12, "seed": 5, **GUIDED, "guidance": torch.linspace(0, 3, 12)}
    todo = [
        (DDIM(steps=20), job),
        (DDPM(steps=20), {**job, "guidance_interval": (200.0, 700.0)}),
        (DDIM(steps=10), {"chains": 12, "seed": 6, "cond": GUIDED["cond"]}),
    ]
    made = engine(place)
    jobs = [made.submit(sampler, **options) for sampler, options in todo]
    results = made.run()
    for job_, expected in zip(jobs, on_cpu(*todo), strict=True):
        assert torch.equal(results[job_].cpu(), expected)
    check_graphs(made, place, captures=2)


@pytest.mark.parametrize("place", BACKENDS)
def test_rules_and_schedules_of_guidance(place: Place) -> None:
    """Each kind of tick is captured once; the sums that the rules are made of have the bits of the CPU."""
    job = {"chains": 12, "seed": 5, **GUIDED, "guidance": torch.linspace(0, 3, 12)}
    todo = [
        (DDIM(steps=20), {**job, "guidance_rule": APG(eta=0.5, norm=2.0, momentum=-0.5)}),
        (DDIM(steps=10), {**job, "guidance_rule": CFGZero()}),
        (DDPM(steps=10), {**job, "guidance_schedule": [0.25 * k for k in range(10)]}),
        (DDIM(steps=10), {**job, "guidance_rescale": 0.7}),
    ]
    made = engine(place)
    jobs = [made.submit(sampler, **options) for sampler, options in todo]
    results = made.run()
    for job_, expected in zip(jobs, on_cpu(*todo), strict=True):
        assert torch.equal(results[job_].cpu(), expected)
    assert not made.report.fallbacks
    for shape in ((1000, 3), (3, 3, 32, 32), (2, 40_001)):
        x, y = arguments(shape)
        found = ulam_kernels.moments(x.to(place[0]), y.to(place[0]), backend=place[1])
        assert torch.equal(found.cpu(), ulam_kernels.moments(x, y)), shape


@pytest.mark.parametrize("place", BACKENDS)
def test_reductions_and_known_images(place: Place) -> None:
    image, mask = torch.linspace(-1, 1, 192).view(SHAPE), torch.zeros(SHAPE)
    mask[:, :4] = 1.0
    mask[:, 4, :3] = 0.25
    known = {"known": ulam.shared(image), "mask": ulam.shared(mask)}
    todo = [
        (DDPM(steps=20, clip=DynamicThreshold(0.9)), {"chains": 10, "seed": 7}),
        (PredictorCorrector(steps=8, norms="chain"), {"chains": 9, "seed": 8}),
        (RePaint(6, jump_length=2, jump_n_sample=2), {"chains": 9, "seed": 9, **known}),
    ]
    made = engine(place)
    jobs = [made.submit(sampler, **options) for sampler, options in todo]
    results = made.run()
    for job, expected in zip(jobs, on_cpu(*todo), strict=True):
        assert torch.equal(results[job].cpu(), expected), job.program.sampler
    check_graphs(made, place)


@pytest.mark.parametrize("place", BACKENDS)
def test_previews_and_noise_of_the_caller(place: Place) -> None:
    """Callbacks see the CPU's states and estimates, and jobs beside them keep their bits."""

    def noise(row: int, chains: torch.Tensor) -> torch.Tensor:
        return ulam.noise.normal(SHAPE, seed=11, chains=chains, row=row)

    seen: dict[str, list[ulam.Preview]] = {"here": [], "there": []}
    results = {}
    for name, where in (("here", ("cpu", None)), ("there", place)):
        made = engine(where)
        plain = made.submit(DDPM(steps=12), 4, seed=10)
        watched = made.submit(DDIM(steps=12), 3, seed=11, callback=seen[name].append, every=4)
        own = made.submit(DDPM(steps=9), 4, seed=12, noise=noise)
        done = made.run()
        results[name] = [done[job].cpu() for job in (plain, watched, own)]
    assert all(map(torch.equal, results["here"], results["there"]))
    assert len(seen["here"]) == len(seen["there"]) >= 3
    for a, b in zip(seen["here"], seen["there"], strict=True):
        assert (a.chains, a.row) == (b.chains, b.row)
        assert torch.equal(a.x, b.x.cpu()) and a.x0 is not None and b.x0 is not None
        assert torch.equal(a.x0, b.x0.cpu())


@pytest.mark.parametrize("place", BACKENDS)
def test_results_on_the_host(place: Place) -> None:
    """They arrive whole beside the work: what a result holds does not change afterwards."""
    made = engine(place, results="host")
    jobs = [made.submit(sampler, **options) for sampler, options in MIXED]
    kept = [(result, result.x.clone()) for result in made.stream()]
    assert all(result.x.device.type == "cpu" for result, _ in kept)
    assert all(torch.equal(result.x, copy) for result, copy in kept)
    found = {(result.job, result.chain): copy for result, copy in kept}
    for job, expected in zip(jobs, on_cpu(*MIXED), strict=True):
        assert torch.equal(torch.stack([found[job, int(chain)] for chain in job.chain_ids]), expected)
    check_graphs(made, place)


@pytest.mark.parametrize("place", BACKENDS)
def test_chains_that_fail_are_told_and_leave_the_others_alone(place: Place) -> None:
    def network(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        bad = (y == 2) & (t < 500)
        return net(x, t).masked_fill(bad.view(-1, 1, 1, 1), float("inf"))

    made = engine(place, network)
    made.submit(DDIM(steps=20), 8, seed=13, cond={"y": labels(8)})
    failed = {result.chain: result.failed for result in made.stream()}
    here = engine(("cpu", None), network)
    here.submit(DDIM(steps=20), 8, seed=13, cond={"y": labels(8)})
    assert failed == {result.chain: result.failed for result in here.stream()}
    assert failed[2] is not None and [chain for chain, row in failed.items() if row is not None] == [2]
    assert made.report.failed == 1
    check_graphs(made, place)


@pytest.mark.parametrize("place", BACKENDS)
def test_two_engines_on_two_streams(place: Place) -> None:
    """From two threads, each on a stream of its own; then both in turn on a third."""
    todo = [MIXED[0], MIXED[2]]
    expected = on_cpu(*todo)
    results: dict[int, torch.Tensor] = {}
    made = [engine(place) for _ in todo]

    def draw(number: int) -> None:
        sampler, options = todo[number]
        job = made[number].submit(sampler, **options)
        results[number] = made[number].run()[job].cpu()

    def on_own_stream(number: int) -> None:
        if place[0] == "cpu":
            draw(number)
            return
        with torch.cuda.stream(torch.cuda.Stream()):
            draw(number)

    for run in range(2):
        threads = [threading.Thread(target=on_own_stream, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(results.pop(number), expected[number]) for number in range(2)), run
    for number in range(2):
        on_own_stream(number)
        assert torch.equal(results.pop(number), expected[number])
        check_graphs(made[number], place)


@pytest.mark.parametrize("place", BACKENDS)
def test_half_precision_states_and_networks(place: Place) -> None:
    """bf16 states, and a bf16 network over fp32 states, channels-last: each operation still rounds once."""

    def half(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x.to(torch.bfloat16) * 0.5

    for network, options in ((net, {"dtype": torch.bfloat16}), (half, {})):
        results = []
        for where in (("cpu", None), place):
            made = engine(where, network, options=ulam.NetworkOptions(channels_last=True), **options)
            job = made.submit(DDPM(steps=12), 11, seed=14)
            results.append(made.run()[job].cpu())
            check_graphs(made, where)
        assert torch.equal(*results)


@pytest.mark.parametrize("place", BACKENDS)
@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "eager"])
def test_a_network_may_take_gradients_inside(place: Place, graphs: bool) -> None:
    """Their backward pass is captured with the rest of a tick."""

    def guided(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x = x.requires_grad_()
        (gradient,) = torch.autograd.grad((x * x).sum() * 0.25, x)  # x / 2, rounded the same everywhere
        return gradient - (t.to(x.dtype) * 2.0**-11).view(-1, 1, 1, 1)

    made = engine(place, guided, graphs=graphs, options=ulam.NetworkOptions(gradients=True))
    job = made.submit(DDPM(steps=12), 9, 3)
    expected = on_cpu((DDPM(steps=12), {"chains": 9, "seed": 3}), network=guided_by_hand)
    assert torch.equal(made.run()[job].cpu(), expected[0])
    if graphs:
        check_graphs(made, place)


def guided_by_hand(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return x * 0.5 - (t.to(x.dtype) * 2.0**-11).view(-1, 1, 1, 1)


@pytest.mark.parametrize("place", BACKENDS)
def test_an_altered_network_is_noticed(place: Place) -> None:
    """The comparisons can fail: a factor off by one part in 10^7 shows."""

    def altered(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return net(x, t) * (1 + 2.0**-23)

    made = engine(place, altered)
    job = made.submit(DDPM(steps=20), 4, seed=15)
    (expected,) = on_cpu((DDPM(steps=20), {"chains": 4, "seed": 15}))
    assert not torch.equal(made.run()[job].cpu(), expected)
