"""Engines on a stand-in device and their runs, held against the CPU's bits: shared by the tests of the engine there."""

from __future__ import annotations

import torch

import ulam
from engine_cases import SCHEDULE, SHAPE, net

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
