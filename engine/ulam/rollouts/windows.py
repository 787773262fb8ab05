"""Programs with noise in a window of their rows alone, as MixGRPO takes them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..denoiser import Denoiser, Sampler
from ..programs.program import COLUMNS, FLAGS, SELDOM, Program


def mixed(denoiser: Denoiser, stochastic: Sampler | Program, other: Sampler | Program, rows: slice) -> Program:
    """``stochastic`` in these rows, ``other`` in the rest: an SDE in a window of an ODE [Li 2025, MixGRPO].

    >>> sde, ode = ulam.samplers.FlowSDE(25), ulam.samplers.Euler(25)
    >>> program = ulam.rollouts.mixed(denoiser, sde, ode, slice(4, 8))

    Both go through the same levels, a row a level, and keep nothing but the state: DDIM with eta and without,
    EulerAncestral and Euler, FlowSDE and Euler.

    Raises:
        TypeError, ValueError: an invalid argument; samplers of other levels, or with registers.
    """
    sde, ode = denoiser.program(stochastic), denoiser.program(other)
    if not isinstance(rows, slice) or rows.step not in (None, 1):
        raise TypeError(f"rows: got {rows!r:.80}, expected a slice of consecutive rows")
    begin, end, _ = rows.indices(len(sde))
    if begin >= end:
        raise ValueError(f"rows: got {begin} to {end}, expected at least one of {len(sde)} rows")
    for program in (sde, ode):
        if program.registers > 1:
            got = f"{program.sampler}, which keeps more than the state"
            raise ValueError(f"stochastic, other: got {got}, expected samplers without registers")
    same = len(sde) == len(ode) and sde.init_scale == ode.init_scale
    if not same or any(not np.array_equal(getattr(sde, n), getattr(ode, n), equal_nan=True) for n in ("time", "c_in")):
        raise ValueError(f"other: got {ode.sampler}, expected the levels of {sde.sampler}")
    columns = {name: getattr(ode, name).copy() for name in (*COLUMNS, *SELDOM, *FLAGS, "A", "writes")}
    for name, values in columns.items():
        values[begin:end] = getattr(sde, name)[begin:end]
    named = f"{sde.sampler} in rows {begin} to {end - 1} of {ode.sampler}"
    return replace(ode, order=min(sde.order, ode.order), sampler=named, **columns)
