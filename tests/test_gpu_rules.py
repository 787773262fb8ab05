"""The engine on a GPU, as far as a stand-in with torch's own rules can tell: see gpu_stand_in."""

from __future__ import annotations

import torch
from engine_cases import SCHEDULE, SHAPE, WHOLE, net
from gpu_stand_in import gpu, network  # noqa: F401

import ulam
from ulam.samplers import DDPM


def test_a_job_is_captured_once_and_has_the_bits_of_the_cpu(gpu):  # noqa: F811
    engine = ulam.Engine(ulam.Denoiser(network(gpu, net), SCHEDULE), SHAPE, 4, "cuda:0")
    job = engine.submit(DDPM(steps=11), 12, seed=5)
    assert torch.equal(engine.run()[job].cpu(), WHOLE[:12])
    (record,) = gpu.records
    assert record.replays == engine.report.ticks - 1 and not engine.report.fallbacks
    assert record.outside[0] == "aten::index_select" and record.outside[-2:] == ["ulam::step", "aten::add_"]
