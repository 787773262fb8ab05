"""Schedules on which samplers are tested, and their programs' responses to given outputs and noise."""

from __future__ import annotations

import numpy as np

from oracles import execute
from ulam import Program, schedules

VP = {"linear": schedules.vp_linear(), "cosine": schedules.vp_cosine(1000)}
CONTINUOUS = {
    "ve": schedules.ve(0.01, 50),
    "edm": schedules.edm(),
    "flow": schedules.flow(3.0),
    "sub_vp": schedules.sub_vp(),
}


def ours(program: Program, x: np.ndarray, outputs: np.ndarray, noises: np.ndarray) -> np.ndarray:
    return execute(program, x, lambda row, _: outputs[row], lambda row: noises[row])
