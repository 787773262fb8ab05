"""A network whose rows are independent, and runs of it: shared by the tests of the engine."""

from __future__ import annotations

import torch

import ulam
from ulam.programs.builder import ProgramBuilder
from ulam.samplers import DDPM

SCHEDULE = ulam.schedules.vp_linear(1000, 1e-4, 0.02)
SHAPE = (3, 5, 7)


def net(x, t, y=None):
    """Rows are independent: elementwise, time and label enter per row."""
    out = torch.tanh(x) * (1 + t.to(x.dtype).view(-1, 1, 1, 1) / 1000)
    return out if y is None else out + 0.1 * y.view(-1, 1, 1, 1).to(x.dtype)


def draw(sampler=DDPM(steps=11), chains=64, *, network=net, **options):  # noqa: B008
    denoiser = options.pop("denoiser", None) or ulam.Denoiser(network, SCHEDULE)
    return ulam.sample(denoiser, sampler, options.pop("shape", SHAPE), chains, 5, progress=False, **options)


WHOLE = draw()


def silent_program(schedule, predicts):
    """Rows without the network before, between and after those that call it."""
    builder = ProgramBuilder(schedule, predicts, registers=2)
    builder.moves(x={"x": 1.0, "z": 0.1})
    builder.rows(500.0, x={"x": 0.9, "eps": 0.1, "z": 0.2}, r1={"x": 1.0})
    builder.moves(x={"x": 0.5, "r1": 0.25, "z": 0.3})
    builder.moves(r1={"x": 1.0, "z": 0.3})
    builder.rows(100.0, x={"x": 0.9, "r1": 0.5, "eps": 0.1})
    builder.moves(x={"x": 1.0, "z": 0.4})
    return builder.program(sampler="silent")


class Silent:
    def program(self, schedule, predicts="eps"):
        return silent_program(schedule, predicts)
