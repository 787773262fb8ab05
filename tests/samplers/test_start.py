"""Runs without x_init that start from noise alone below the schedule's noisiest level are warned of, once."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

import ulam
from ulam import schedules
from ulam.samplers import DDIM, DDPM, LCM, PNDM, Consistency, DPMSolverPP, Euler, GridSampler, Heun, UniPC
from ulam.samplers.start import noisiest, start_below_noise
from ulam.schedules import Schedule

LINEAR, COSINE, STABLE = schedules.vp_linear(), schedules.vp_cosine(), schedules.vp_scaled_linear()
ZERO_SNR = schedules.zero_terminal_snr(LINEAR)
VE, EDM, FLOW, SUB_VP = schedules.ve(0.01, 50), schedules.edm(), schedules.flow(), schedules.sub_vp()


def denoiser(schedule: Schedule) -> ulam.Denoiser:
    return ulam.Denoiser(lambda x, t: torch.zeros_like(x), schedule, "v")


LOW: list[tuple[Schedule, GridSampler, str]] = [
    (FLOW, Euler(sigmas=(0.5, 0.25, 0)), "sigmas: got a first noise level of sigma/alpha 1 without x_init, .* inf:"),
    (FLOW, Euler(timesteps=(0.9, 0.25)), "timesteps: got a first noise level of sigma/alpha 9 without x_init"),
    (VE, Heun(sigmas=(20.0, 1.0)), "sigmas: got a first .* 20 without x_init, expected the schedule's noisiest, 50:"),
    (EDM, UniPC(sigmas=(30.0, 1.0)), "sigmas: got a first .* 30 .*noisiest, 80: .*begin higher, or give x_init"),
    (LINEAR, DDPM(timesteps=(500, 100)), "timesteps: got a first .* 3.443 .*noisiest, 157.4:"),
    (ZERO_SNR, DDIM(timesteps=(500, 100)), "timesteps: got a first .*noisiest, inf:"),
    (SUB_VP, DPMSolverPP(sigmas=(1.0, 0.1)), "sigmas: got a first .* 1 "),
    (LINEAR, DDIM(2), "steps: got a first .* 3.443 .*use spacing='trailing' or more steps, or give x_init"),
    (COSINE, DDIM(5, sigmas="karras", spacing="leading"), "steps: got a first"),
    (STABLE, PNDM(5), "steps: got a first"),
]
NOISE: list[tuple[Schedule, GridSampler]] = [
    *((schedule, cls(1)) for schedule in (LINEAR, COSINE, STABLE) for cls in (DDIM, Euler, DPMSolverPP, PNDM, LCM)),
    *((schedule, cls(10)) for schedule in (VE, EDM, FLOW, SUB_VP) for cls in (DDIM, Euler, DPMSolverPP, Consistency)),
    *((schedule, DDIM(50)) for schedule in (LINEAR, COSINE, STABLE)),
    (LINEAR, DDPM(timesteps=(900, 100))),  # sigma/alpha 58: a thousandth of the variance is signal
    (FLOW, Euler(sigmas=(0.95, 0.2))),
    (VE, Euler(sigmas=(40.0, 1.0))),
    (ZERO_SNR, DDIM(10, spacing="trailing")),
    (COSINE, DDIM(2, spacing="trailing")),
]


@pytest.mark.parametrize(("schedule", "sampler", "message"), LOW)
def test_a_low_start_without_x_init_gives_one_warning(schedule: Schedule, sampler: GridSampler, message: str) -> None:
    with pytest.warns(UserWarning, match=message) as told:
        ulam.sample(denoiser(schedule), sampler, (3,), 2, progress=False)
    assert len(told) == 1 and told[0].filename == __file__  # the caller's line, not ours
    engine = ulam.Engine(denoiser(schedule), (3,), 4)
    with pytest.warns(UserWarning, match=message) as told:
        engine.submit(sampler, 2)
    assert len(told) == 1 and told[0].filename == __file__


@pytest.mark.parametrize(("schedule", "sampler"), [case[:2] for case in LOW])
def test_runs_that_go_on_are_not_warned_of(schedule: Schedule, sampler: GridSampler) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ulam.sample(denoiser(schedule), sampler, (3,), 2, seed=1, x_init=torch.zeros(2, 3), progress=False)


@pytest.mark.parametrize(("schedule", "sampler"), NOISE, ids=repr)
def test_a_start_that_is_noise_is_not_warned_of(schedule: Schedule, sampler: GridSampler) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ulam.Engine(denoiser(schedule), (3,), 4).submit(sampler, 2)


def test_a_warning_made_an_error_leaves_the_engine_as_it_was() -> None:
    engine = ulam.Engine(denoiser(FLOW), (3,), 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="sigmas"):
            engine.submit(Euler(sigmas=(0.5, 0.25, 0)), 2)
    assert list(engine.stream()) == []


def test_noisiest_is_the_end_of_each_schedule() -> None:
    expected: dict[Any, float] = {VE: 50, EDM: 80, FLOW: np.inf, ZERO_SNR: np.inf, LINEAR: float(LINEAR.ratios[-1])}
    assert {schedule: noisiest(schedule) for schedule in expected} == pytest.approx(expected)
    assert start_below_noise(Euler(sigmas=(0.5, 0)), FLOW) is start_below_noise(Euler(sigmas=(0.5, 0)), FLOW)
