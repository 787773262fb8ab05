"""Fused flow matching and few-step schedulers against diffusers' own: options, levels, starts, dtypes and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fuse_cases import assert_same_loops, loop, make
from oracles import execute
from ulam import samplers
from ulam.integrations.diffusers import fuse
from ulam.samplers import Euler, Heun
from ulam.schedules import flow

CLOSE = 1e-5
HEUN_CLOSE = 2e-4  # diffusers divides a difference of samples, in float32, by the next level, 0.001 at the end
EULER, HEUN, LCM = (f"FlowMatch{kind}Scheduler" for kind in ("EulerDiscrete", "HeunDiscrete", "LCM"))
LTX, MAP, HELIOS = "LTXEulerAncestralRFScheduler", "FlowMapEulerDiscreteScheduler", "HeliosScheduler"
NAMED = ({}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True})
DYNAMIC = {"use_dynamic_shifting": True}


def check(name: str, grid: dict[str, Any], config: dict[str, Any], first: int = 0, **step: Any) -> None:
    """The same loop on the grid of set_timesteps(**grid), from its call `first` on."""
    runs = []
    for scheduler in (fuse(make(name, **config)), make(name, **config)):
        scheduler.set_timesteps(**grid)
        if first or "sigmas" in grid:
            scheduler.set_begin_index(first)
        runs.append(loop(scheduler, first=first, **step))
    assert_same_loops(*runs, close=HEUN_CLOSE if name == HEUN else CLOSE)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize(
    ("name", "config"),
    [
        *((name, {"shift": shift}) for name in (EULER, HEUN, LCM, MAP) for shift in (1.0, 3.0)),
        *((EULER, {**named, "stochastic_sampling": True, "shift": 2.0}) for named in NAMED),
        *((EULER, {"invert_sigmas": True, "stochastic_sampling": fresh}) for fresh in (False, True)),
        *((LCM, {**named, "shift": 2.0}) for named in NAMED),
        (LCM, {"invert_sigmas": True}),
        *((LTX, {"eta": eta, "s_noise": s_noise}) for eta in (0.0, 0.4, 1.0) for s_noise in (0.0, 0.9, 1.0)),
        (HELIOS, {"scheduler_type": "euler"}),
        (HELIOS, {"shift": 3.0, "time_shift_type": "linear"}),
        (HELIOS, {"solver_order": 1}),
    ],
)
def test_loops(name: str, config: dict[str, Any], steps: int) -> None:
    check(name, {"num_inference_steps": steps}, config)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize(("name", "config"), [(EULER, {}), (EULER, {"stochastic_sampling": True}), (LCM, {})])
def test_shifts_by_the_size_of_an_image(name: str, config: dict[str, Any], kind: str) -> None:
    for terminal in ({}, {"shift_terminal": 0.1}):
        check(
            name,
            {"num_inference_steps": 6, "mu": 0.8},
            {**config, **DYNAMIC, "time_shift_type": kind, **terminal},
        )


@pytest.mark.parametrize("sigmas", [[1.0, 0.7, 0.2], [0.9, 0.9, 0.4], [1.0, 0.5, 0.0], [0.3]])
@pytest.mark.parametrize("name", [EULER, LCM, LTX])
def test_given_levels(name: str, sigmas: list[float]) -> None:
    check(name, {"sigmas": sigmas}, {})
    if name == EULER:
        check(name, {"sigmas": sigmas}, {"stochastic_sampling": True})
    if name != LTX:
        times = (1000 * np.linspace(0.95, 0.2, len(sigmas))).tolist()
        check(name, {"sigmas": sigmas, "timesteps": times}, {"shift": 2.0})


@pytest.mark.parametrize("sigmas", [[1.0, 0.6, 0.0], [1.0, 0.6, 0.3]])
def test_ltx_has_a_timestep_at_the_end_of_given_levels_that_changes_nothing(sigmas: list[float]) -> None:
    scheduler = fuse(make(LTX))
    scheduler.set_timesteps(sigmas=sigmas)
    assert len(scheduler.timesteps) == 3
    *_, before, last = loop(scheduler)
    assert torch.equal(before[0], last[0])


CHURN = [{"s_churn": 5.0}, {"s_churn": 1.5, "s_tmin": 0.2, "s_tmax": 0.8, "s_noise": 1.02}, {"s_churn": 99.0}]


@pytest.mark.parametrize("step", CHURN)
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_heun_with_churn(steps: int, step: dict[str, Any]) -> None:
    check(HEUN, {"num_inference_steps": steps}, {"shift": 2.0}, **step)


@pytest.mark.parametrize(
    ("name", "config", "first"),
    [(HEUN, {}, 4), (LCM, {}, 3), (LTX, {}, 3), (EULER, {"stochastic_sampling": True}, 3), (MAP, {"shift": 5.0}, 3)],
)
def test_loops_that_begin_in_the_middle(name: str, config: dict[str, Any], first: int) -> None:
    grid: dict[str, Any] = {"num_inference_steps": 9}
    check(name, grid, config, first=first)
    if name == HEUN:
        check(name, grid, config, first=first, **CHURN[0])
        scheduler = fuse(make(HEUN))
        scheduler.set_timesteps(9)
        scheduler.set_begin_index(3)
        with pytest.raises(ValueError, match="timestep: got that of call 3 to begin at, expected the first of"):
            loop(scheduler, first=3)


@pytest.mark.parametrize(("name", "sampler"), [(EULER, Euler), (HEUN, Heun), (LCM, samplers.LCM)])
def test_the_rows_are_those_of_ulam_samplers_on_these_levels(name: str, sampler: Any) -> None:
    scheduler = fuse(make(name, shift=3.0))
    scheduler.set_timesteps(6)
    levels = scheduler.sigmas.double().numpy()
    levels = (*levels[::2], 0.0) if name == HEUN else tuple(levels)
    ours = scheduler._call_rows(0, scheduler.usual_options).program
    theirs = sampler(sigmas=levels).program(flow(), "flow")
    unit = np.eye(2 * len(ours) + 1)[:, None, :]
    runs = [execute(p, unit[-1], lambda i, x: unit[i], lambda i: unit[len(ours) + i]) for p in (ours, theirs)]
    assert np.abs(runs[0] - runs[1]).max() < 1e-12


@pytest.mark.parametrize(
    ("name", "change"),
    [(LTX, {"eta": 0.3}), (EULER, {"stochastic_sampling": True}), (HELIOS, {"solver_order": 1})],
)
def test_options_changed_after_set_timesteps_count(name: str, change: dict[str, Any]) -> None:
    runs = []
    for scheduler in (fuse(make(name)), make(name)):
        scheduler.set_timesteps(5)
        scheduler.register_to_config(**change)
        runs.append(loop(scheduler))
    assert_same_loops(*runs, close=CLOSE)
