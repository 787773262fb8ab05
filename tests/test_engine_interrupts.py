"""An interrupt at any bytecode of the engine: going on gives the undisturbed bits, each chain once, or raises.

A signal may land between any two bytecodes of Python, so a tracing function raises at the n-th that the engine's files
execute. Every n: `make interrupts`; here a fixed sample of them.
"""

from __future__ import annotations

import os
import random
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from engine_cases import SCHEDULE

import ulam
from ulam.samplers import DDIM, DDPM, DPMSolverPP, DynamicThreshold, RePaint

ENGINE = str(Path(ulam.__file__).parent)
SHAPE = (2,)


class Interrupt(BaseException):
    """As KeyboardInterrupt."""


def net(x, t, y):
    return torch.tanh(x) * (1 + t[:, None] / 1000) + 0.1 * y[:, None]


def engine_with_jobs():
    """Mixed programs in three slots: registers, reductions, guidance in an interval, silent rows and known images."""
    engine = ulam.Engine(ulam.Denoiser(net, SCHEDULE), SHAPE, 3)
    y, null = {"y": torch.arange(2.0)}, {"y": torch.full((2,), 10.0)}
    image = {"known": torch.ones(2, 2), "mask": torch.tensor([[1.0, 0.0]]).repeat(2, 1)}
    jobs = [
        engine.submit(DDPM(steps=2), 2, 5, y),
        engine.submit(DDIM(steps=3), 2, 6, y, 2.0, null, guidance_interval=(100.0, 700.0)),
        engine.submit(DPMSolverPP(3, clip=DynamicThreshold(0.9)), 2, 7, y, finish=lambda x: x + 1),
        engine.submit(RePaint(3, 1, 2), 2, 8, y, **image),
    ]
    return engine, jobs


def by_run(engine, delivered):
    for job, x in engine.run().items():
        for place in range(len(x)):
            delivered.append((job, place, x[place]))


def by_stream(engine, delivered):
    for result in engine.stream():
        delivered.append((result.job, result.chain, result.x))


def tracer(at, counted):
    """Raises at the bytecode number ``at`` of the engine's files (0: nowhere); counts them."""

    def trace(frame, event, argument):
        if not frame.f_code.co_filename.startswith(ENGINE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            counted[0] += 1
            if counted[0] == at:
                sys.settrace(None)
                raise Interrupt
        return trace

    return trace


def run_traced(deliver, at=0):
    """What was delivered (job, chain, x), the jobs, the bytecodes up to the interrupt or the end, and whether going on
    was refused."""
    engine, jobs = engine_with_jobs()
    delivered, counted, refused = [], [0], False
    before = sys.gettrace()
    sys.settrace(tracer(at, counted))
    try:
        deliver(engine, delivered)
    except Interrupt:
        pass
    finally:
        sys.settrace(before)
    if at:
        try:
            deliver(engine, delivered)
        except RuntimeError as error:
            assert "expected a new engine" in str(error)
            refused = True
    return delivered, jobs, counted[0], refused


def failures(deliver, places):
    """The places after which going on gave other chains or bits than the undisturbed run, and how many were refused."""
    undisturbed, jobs, _, _ = run_traced(deliver)
    expected = {(jobs.index(job), chain): x for job, chain, x in undisturbed}
    wrong, refusals = [], 0
    for at in places:
        delivered, jobs, _, refused = run_traced(deliver, at)
        refusals += refused
        came = Counter((jobs.index(job), chain) for job, chain, _ in delivered)
        same = all(torch.equal(x, expected[jobs.index(job), chain]) for job, chain, x in delivered)
        if not same or (came and max(came.values()) > 1) or (not refused and came.keys() != expected.keys()):
            wrong.append(at)
    return wrong, refusals


@pytest.mark.parametrize("deliver", [by_run, by_stream])
def test_an_interrupt_anywhere_costs_nothing(deliver):
    _, _, total, _ = run_traced(deliver)
    # The last bytecode of run() returns the results: from there on they are the caller's.
    places = range(1, total if deliver is by_run else total + 1)
    count = int(os.environ.get("ULAM_INTERRUPTS", 120))
    wrong, refusals = failures(deliver, random.Random(0).sample(places, min(count, len(places))))
    assert not wrong, f"{len(wrong)}: {wrong[:20]}"
    assert refusals <= 0.2 * count, "only where the scheduler itself changes is a new engine needed"
