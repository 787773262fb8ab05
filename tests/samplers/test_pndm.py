"""PNDM against diffusers by impulse response, its order, and where diffusers departs from the paper."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from gmm import Mixture
from ode_cases import Array, assert_point_is_kept, assert_same_states, our_states, recorded, their_states
from oracles import execute, impulses, in_float64
from ulam import schedules
from ulam.samplers.pndm import PNDM
from ulam.schedules import Schedule, VariancePreserving

VP = {"linear": schedules.vp_linear(), "cosine": schedules.vp_cosine(1000)}
SCHEDULES: dict[str, Schedule] = {
    **VP,
    "ve": schedules.ve(0.01, 50),
    "edm": schedules.edm(),
    "flow": schedules.flow(3.0),
    "sub_vp": schedules.sub_vp(),
    "zero_snr": schedules.zero_terminal_snr(VP["linear"]),
}
MIXTURE = Mixture(weights=(0.3, 0.5, 0.2), means=(-1.5, 0.4, 1.8), stds=(0.5, 0.6, 0.4))


def peer(schedule: VariancePreserving, steps: int, set_alpha_to_one: bool = False, **config: Any) -> Any:
    """diffusers' PNDMScheduler in float64, on our alphas_cumprod."""
    scheduler = in_float64(diffusers.PNDMScheduler(set_alpha_to_one=set_alpha_to_one, **config), schedule)
    if not set_alpha_to_one:
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(steps)
    return scheduler


def both_states(sampler: PNDM, predicts: str, theirs: Any, schedule: Schedule, patch: Any) -> tuple[Array, Array]:
    """(ours, theirs) after every row; diffusers may have one call more, which changes nothing."""
    program = sampler.program(schedule, predicts)
    assert program.time.tolist() == theirs.timesteps.tolist()[: len(program)]
    assert 0 <= len(theirs.timesteps) - len(program) <= 1
    signal = impulses(len(theirs.timesteps))
    expected = their_states(theirs, signal, patch)
    assert abs(expected[-1] - expected[len(program) - 1]).max() <= 1e-15
    return our_states(program, signal), expected[: len(program)]


# ---------------------------------------------------------------------------------------- impulse response


@pytest.mark.parametrize(
    ("prediction", "mixes"), [("epsilon", "eps"), ("epsilon", "output"), ("v_prediction", "output")]
)
@pytest.mark.parametrize(
    ("spacing", "steps"),
    [("leading", 5), ("leading", 7), ("leading", 10), ("leading", 50), ("trailing", 10), ("trailing", 20)],
)
@pytest.mark.parametrize("to_one", [False, True])
@pytest.mark.parametrize("skip_prk", [False, True])
@pytest.mark.parametrize("schedule", VP)
def test_every_state_responds_as_in_diffusers(
    schedule: str, skip_prk: bool, to_one: bool, spacing: str, steps: int, prediction: str, mixes: str, monkeypatch: Any
) -> None:
    config = {"skip_prk_steps": skip_prk, "prediction_type": prediction, "timestep_spacing": spacing}
    theirs = peer(VP[schedule], steps, to_one, **config)
    sampler = PNDM(steps, skip_prk=skip_prk, mixes=mixes, spacing=spacing, final="zero" if to_one else "sigma_min")
    predicts = {"epsilon": "eps", "v_prediction": "v"}[prediction]
    assert_same_states(*both_states(sampler, predicts, theirs, VP[schedule], monkeypatch), tolerance=1e-10)


@pytest.mark.parametrize("skip_prk", [False, True])
def test_defaults_and_stable_diffusions_offset(skip_prk: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = schedules.vp_scaled_linear()
    theirs = peer(schedule, 20, skip_prk_steps=skip_prk)
    assert_same_states(*both_states(PNDM(20, skip_prk), "eps", theirs, schedule, monkeypatch), tolerance=1e-10)
    theirs = peer(schedule, 20, skip_prk_steps=skip_prk, steps_offset=1)
    sampler = PNDM(timesteps=range(951, 0, -50), skip_prk=skip_prk)
    mine, expected = both_states(sampler, "eps", theirs, schedule, monkeypatch)
    assert len(mine) == len(theirs.timesteps)  # the last time is 1, a step before the end
    assert_same_states(mine, expected, tolerance=1e-10)


# ------------------------------------------------------------------------------ where diffusers is wrong


def test_the_first_stage_goes_to_the_time_told_where_diffusers_is_one_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Liu 2022, eq. 13 has e2 = eps(x1, h) with x1 at h. T // n = 33: diffusers tells 940 and moves x1 to 941."""
    schedule = VP["linear"]
    mine, theirs = both_states(PNDM(30), "eps", peer(schedule, 30), schedule, monkeypatch)
    first = [0, 4, 8]
    np.testing.assert_allclose(np.delete(mine, first, 0), np.delete(theirs, first, 0), rtol=0, atol=1e-12)
    program, levels = recorded(PNDM(30), schedule, "eps")
    for row in first:
        start, told = int(program.time[row]), int(program.time[row + 1])
        for at, state in ((told, mine), (told + 1, theirs)):
            # a point's flow: x1 = alpha mu + sigma eps from x = alpha mu + sigma eps
            alpha, sigma = schedule.levels([start, at])
            gain = (alpha[1] / alpha[0], sigma[1] - alpha[1] / alpha[0] * sigma[0])
            before = impulses(len(theirs) + 1)[0] if row == 0 else state[row - 1]
            expected = gain[0] * before
            expected[1 + row] += gain[1]
            np.testing.assert_allclose(state[row], expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(levels[row + 1], schedule.levels(told), rtol=1e-14)


@pytest.mark.parametrize("skip_prk", [False, True])
def test_steps_go_to_the_next_time_of_the_grid_where_diffusers_goes_elsewhere(
    skip_prk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """linspace steps are 111, diffusers always steps by T // n = 100: its state is not at the level told."""
    schedule = VP["linear"]
    sampler = PNDM(10, skip_prk=skip_prk, spacing="linspace", final="zero")
    assert_point_is_kept(sampler, schedule, "eps")
    theirs = peer(schedule, 10, True, timestep_spacing="linspace", skip_prk_steps=skip_prk)
    mu, x = 1.7, torch.tensor([1.7 * float(schedule.alpha(999))], dtype=torch.float64)
    for t in theirs.timesteps:
        alpha, sigma = schedule.levels(float(t))
        x = theirs.step((x - alpha * mu) / sigma, t, x).prev_sample
    assert abs(float(x) - mu) > 0.01


@pytest.mark.parametrize("skip_prk", [False, True])
def test_weights_over_v_are_of_first_order_where_those_over_eps_are_of_second(skip_prk: bool) -> None:
    """Liu 2022 averages eps; diffusers averages v and turns the mean into eps with the x_t of the step's start."""
    orders = {mixes: slope("cosine", "v", skip_prk=skip_prk, mixes=mixes) for mixes in ("eps", "output")}
    assert orders["eps"] > 1.7 and 0.7 < orders["output"] < 1.3


# ------------------------------------------------------------------------------------------- exact laws


def slope(name: str, predicts: str, **options: Any) -> float:
    """The order of accuracy of the last halving, against the exact probability flow, uniform in log-SNR."""
    schedule, errors = SCHEDULES[name], []
    for steps in (80, 160):
        values = np.geomspace(15, 0.1, steps + 1)
        values = values / (1 + values) if name == "flow" else values
        sampler = PNDM(sigmas=values[:-1], final=float(values[-1]), **options)
        program, levels = recorded(sampler, schedule, predicts)
        x = np.linspace(-2.2, 2.2, 12) * np.hypot(1.2 * levels[0, 0], levels[0, 1])

        def network(row: int, state: Array, levels: Array = levels) -> Array:
            return MIXTURE.output(predicts, state, *levels[row])

        end = execute(program, x, network, lambda _, x=x: np.zeros_like(x))[-1]
        errors.append(np.sqrt(np.mean((end - MIXTURE.transport(x, tuple(levels[0]), tuple(levels[-1]))) ** 2)))
    return float(np.log2(errors[0] / errors[1]))


@pytest.mark.parametrize("mixes", ["eps", "output"])
@pytest.mark.parametrize("skip_prk", [False, True])
@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "score", "flow"])
@pytest.mark.parametrize("name", ["cosine", "ve", "flow"])
def test_order_is_as_declared(name: str, predicts: str, skip_prk: bool, mixes: str) -> None:
    order = PNDM(9, skip_prk, mixes).program(VP["linear"], predicts).order
    assert slope(name, predicts, skip_prk=skip_prk, mixes=mixes) >= order - 0.3


@pytest.mark.parametrize("skip_prk", [False, True])
@pytest.mark.parametrize(
    ("name", "predicts"), [("edm", "raw"), *itertools.product(SCHEDULES, ("eps", "x0", "v", "score", "flow"))]
)
def test_a_point_is_kept(name: str, predicts: str, skip_prk: bool) -> None:
    if predicts in ("eps", "score") and name in ("zero_snr", "flow"):
        with pytest.raises(ValueError, match="says nothing about x_0"):
            PNDM(9, skip_prk, spacing="trailing" if name == "zero_snr" else None).program(SCHEDULES[name], predicts)
        return
    spacing = {"spacing": "trailing"} if name == "zero_snr" else {}
    for steps in (1, 2, 3, 4, 9):
        for final in ("sigma_min", "zero"):
            assert_point_is_kept(PNDM(steps, skip_prk, final=final, **spacing), SCHEDULES[name], predicts)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_cosine_with_few_steps_is_finite(steps: int, spacing: str) -> None:
    for predicts in ("eps", "x0", "v", "flow", "score"):
        for options in ({}, {"skip_prk": True}, {"mixes": "output"}, {"sigmas": "karras", "spacing": spacing}):
            sampler = PNDM(steps, **{"spacing": spacing} | options)
            assert np.isfinite(sampler.program(VP["cosine"], predicts).A).all()


# ----------------------------------------------------------------------------------- counts and arguments


@pytest.mark.parametrize(
    ("sampler", "nfe", "registers"),
    [
        (PNDM(10, final="zero"), 19, 5),
        (PNDM(10), 18, 5),  # the tenth time is where the grid ends
        (PNDM(10, skip_prk=True, final="zero"), 11, 4),
        (PNDM(10, skip_prk=True), 10, 4),
        (PNDM(3, final="zero"), 9, 5),
        (PNDM(1), 1, 5),  # from the noisiest level to the smallest
        (PNDM(timesteps=[0]), 1, 5),  # its only time is where the grid ends: it ends at the data
        (PNDM(1, final="zero"), 1, 5),
        (PNDM(1, skip_prk=True, final="zero"), 1, 4),
    ],
    ids=repr,
)
def test_counts(sampler: PNDM, nfe: int, registers: int) -> None:
    program = sampler.program(VP["linear"])
    assert (program.nfe, len(program), program.registers, program.order) == (nfe, nfe, registers, 2)


BAD: dict[str, Callable[[], object]] = {
    "skip_prk: got 1, expected True or False": lambda: PNDM(5, 1),
    "mixes: got 'v', expected one of eps, output": lambda: PNDM(5, mixes="v"),
    "final: got .*, expected 'zero', 'sigma_min' or": lambda: PNDM(5, final="one"),
    "steps: got None, expected a number of steps": lambda: PNDM(),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BAD[message]()
