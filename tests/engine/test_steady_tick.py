"""A tick without events: its operations are bound, its bits stay, and its Python is the same for any slots and jobs."""

from __future__ import annotations

import itertools
import sys
from collections import Counter

import pytest
import torch

import ulam
from engine_cases import SCHEDULE, SHAPE, Silent, net
from ulam import NetworkOptions
from ulam.samplers import DDIM, DDPM, DPMSolverPP, DynamicThreshold, Euler, RePaint
from ulam_kernels.cpu import BoundTick

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")

MOST_PYTHON, MOST_C = 11, 17  # calls of a steady tick, the network's own left out
LABELS = {"cond": {"y": torch.arange(6.0)}, "uncond": {"y": torch.zeros(6)}}
IMAGE = {"known": torch.linspace(-1, 1, 6 * 105).reshape(6, *SHAPE), "mask": torch.ones(6, *SHAPE).triu()}
# Jobs that share a batch: alone those without **, whose ticks are not bound.
JOBS = {
    "plain": [(DDPM(steps=11), {}), (DDIM(steps=7), {})],
    "clipped": [(DDPM(steps=11, clip=(-1, 1)), {})],
    "registers": [(DPMSolverPP(steps=6), {}), (DDPM(steps=9), {})],
    "guided": [(DDIM(steps=7, eta=0.5), {"guidance": 2.0, **LABELS}), (DDPM(steps=5), {"cond": LABELS["cond"]})],
    "thresholds": [(DDIM(steps=5, clip=DynamicThreshold(0.9)), {}), (DDPM(steps=9), {})],
    "silent rows": [(Silent(), {}), (DDPM(steps=9), {})],
    "intervals": [(DDIM(steps=7), {"guidance": 2.0, "guidance_interval": (100.0, 600.0), **LABELS})],
    "rescaled": [(DDIM(steps=7), {"guidance": 2.0, "guidance_rescale": 0.7, **LABELS})],
    "known images": [(RePaint(steps=5), IMAGE)],
    "own noise": [(DDPM(steps=5), {"noise": lambda row, chains: torch.full((len(chains), *SHAPE), 0.1 * row)})],
    "callbacks": [(DDPM(steps=5), {"callback": lambda preview: None, "every": 2})],
}
BOUND = ("plain", "clipped", "registers", "guided")
NETWORKS = {
    "as it is": net,
    "strided": lambda x, t, y=None: net(x, t, y).mT.contiguous().mT,
    "its input": lambda x, t, y=None: x,
    "float64": lambda x, t, y=None: net(x, t, y).double(),
    "bfloat16": lambda x, t, y=None: net(x, t, y).bfloat16(),
    "variances": lambda x, t, y=None: torch.cat([net(x, t, y)] * 2, 1),
    "not finite": lambda x, t, y=None: torch.where((t < 500).view(-1, 1, 1, 1), float("nan"), net(x, t, y)),
    "a parameter": lambda x, t, y=None: torch.nn.Parameter(net(x, t, y), requires_grad=False),
    "negative": lambda x, t, y=None: torch._neg_view(net(x, t, y)),
}


def results(jobs, network, slots=4, **options):
    """All results, and how many ticks were steps of a bound tick, of how many."""
    engine = ulam.Engine(ulam.Denoiser(network, SCHEDULE), SHAPE, slots, **options)
    for seed, (sampler, more) in enumerate(jobs):
        engine.submit(sampler, 6, seed, **more)
    done = Counter()
    step = BoundTick.step

    def counted(self, model, uncond):
        done[taken := step(self, model, uncond)] += 1
        return taken

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BoundTick, "step", counted)
        outputs = list(engine.run().values())
    return outputs, done[True], engine.report.ticks


def same(ours, theirs):
    return all(map(torch.equal, (x.nan_to_num(9e9) for x in ours), (x.nan_to_num(9e9) for x in theirs)))


@pytest.mark.parametrize("kind", JOBS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bound_ticks_have_the_bits_of_the_operations_one_by_one(kind, dtype):
    for check_finite in (True, False):
        options = {"dtype": dtype, "check_finite": check_finite}
        expected, none, _ = results(JOBS[kind], net, trace=True, **options)
        found, bound, ticks = results(JOBS[kind], net, **options)
        assert same(found, expected) and none == 0
        assert bound == ticks if kind in BOUND else bound < ticks


@pytest.mark.parametrize("name", NETWORKS)
def test_whatever_the_network_returns_the_bits_are_those_of_the_operations(name):
    for kind in BOUND:
        expected, _, _ = results(JOBS[kind], NETWORKS[name], trace=True)
        assert same(results(JOBS[kind], NETWORKS[name])[0], expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_networks_with_inputs_of_their_own(dtype, channels_last):
    class Wide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(0.5, dtype=dtype))

        def forward(self, x, t):
            assert x.dtype == dtype
            return net(x, t) * self.weight

    options = {"options": NetworkOptions(channels_last=channels_last)}
    for schedule in (SCHEDULE, ulam.schedules.edm()):
        found = []
        for trace in (True, False):
            denoiser = ulam.Denoiser(Wide(), schedule, "eps" if schedule is SCHEDULE else "raw")
            engine = ulam.Engine(denoiser, SHAPE, 4, trace=trace, **options)
            engine.submit(Euler(steps=6), 6, 1)
            found.append(list(engine.run().values()))
        assert same(*found)


def test_a_network_that_keeps_its_input_object_gets_another_each_time():
    """A gradient that a network leaves on its input is not there at the next tick."""

    def network(x, t):
        with torch.inference_mode(False), torch.enable_grad():
            assert x.grad is None and not x.requires_grad
            x.requires_grad_()
            (x.tanh().sum() * 0.5).backward()
            return x.grad.clone()

    assert results(JOBS["plain"], network)[1] > 0


class Enough(Exception):
    """Raised to leave the engine in mid-run."""


def calls_of_a_steady_tick(slots, jobs, guided=False):
    """Calls of Python functions and of C functions between two ticks, less those of the network."""

    def network(x, t, y=None):
        return zero

    engine = ulam.Engine(ulam.Denoiser(network, SCHEDULE), (14,), slots)
    zero, seen, marks = torch.zeros(slots, 14), [], []
    for seed in range(jobs):
        labels = {"cond": {"y": torch.zeros(slots // jobs)}, "uncond": {"y": torch.ones(slots // jobs)}}
        more = {"guidance": 2.0, **labels} if guided else {}
        engine.submit(DDPM(steps=20 + seed), slots // jobs, seed, **more)

    def progress(_):
        marks.append(len(seen))
        if len(marks) == 9:
            raise Enough

    before = sys.getprofile()
    sys.setprofile(lambda frame, event, argument: seen.append((event, getattr(argument, "__name__", frame.f_code))))
    try:
        next(engine.finished(progress))
    except Enough:
        pass
    finally:
        sys.setprofile(before)
    ticks = [Counter(event for event, _ in seen[a:b]) for a, b in itertools.pairwise(marks[5:])]
    assert all(tick == ticks[0] for tick in ticks)
    own = 2 if guided else 1  # calls of the network
    return ticks[0]["call"] - own - 1, ticks[0]["c_call"] - own - 1  # and of progress, with its len


def test_a_steady_tick_costs_the_same_python_for_any_slots_and_jobs():
    python, c = calls_of_a_steady_tick(1, 1)
    assert (python, c) == calls_of_a_steady_tick(64, 1) == calls_of_a_steady_tick(64, 16)
    assert python <= MOST_PYTHON and c <= MOST_C, (python, c)
    guided = calls_of_a_steady_tick(1, 1, guided=True)
    assert guided == calls_of_a_steady_tick(64, 16, guided=True)
    assert guided[0] <= MOST_PYTHON + 5, guided
