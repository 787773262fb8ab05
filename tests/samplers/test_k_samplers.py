"""Euler, EulerAncestral, Heun, DPM2 and LMS against diffusers by impulse response, and against exact laws."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from ode_cases import (
    assert_law_of_a_point_is_kept,
    assert_point_is_kept,
    assert_same_states,
    gaussian_variance,
    our_states,
    peer,
    recorded,
    their_states,
)
from oracles import impulses
from ulam import schedules
from ulam.samplers.dpm2 import DPM2
from ulam.samplers.euler import Euler, EulerAncestral
from ulam.samplers.grid import GridSampler
from ulam.samplers.heun import Heun
from ulam.samplers.lms import LMS, adams_bashforth
from ulam.schedules import Schedule

VP = {"linear": schedules.vp_linear(), "cosine": schedules.vp_cosine(1000)}
SCHEDULES: dict[str, Schedule] = {
    **VP,
    "ve": schedules.ve(0.01, 50),
    "edm": schedules.edm(),
    "flow": schedules.flow(3.0),
    "sub_vp": schedules.sub_vp(),
    "zero_snr": schedules.zero_terminal_snr(VP["linear"]),
}
PREDICTS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
DPM2Ancestral = partial(DPM2, eta=1.0)
PEERS: dict[str, tuple[Any, Callable[..., GridSampler]]] = {
    "euler": (diffusers.EulerDiscreteScheduler, Euler),
    "euler_ancestral": (diffusers.EulerAncestralDiscreteScheduler, EulerAncestral),
    "heun": (diffusers.HeunDiscreteScheduler, Heun),
    "dpm2": (diffusers.KDPM2DiscreteScheduler, DPM2),
    "dpm2_ancestral": (diffusers.KDPM2AncestralDiscreteScheduler, DPM2Ancestral),
    "lms": (diffusers.LMSDiscreteScheduler, LMS),
}
DETERMINISTIC = (Euler, Heun, DPM2, LMS)

# ---------------------------------------------------------------------------------------- impulse response


def offered(name: str, prediction: str, sigmas: str | None) -> bool:
    if sigmas is not None and name == "euler_ancestral":
        return False
    return prediction != "sample" or name in ("euler", "heun", "lms")


SPACED = [("leading", 7), ("leading", 50), ("linspace", 5), ("linspace", 12), ("trailing", 10), ("trailing", 30)]
NAMED = [("karras", 8), ("exponential", 20), ("beta", 9)]
CASES = [
    pytest.param(name, prediction, spacing, sigmas, steps, id=f"{name}-{prediction}-{spacing or sigmas}{steps}")
    for name in PEERS
    for prediction in PREDICTS
    for spacing, sigmas, steps in [*((s, None, n) for s, n in SPACED), *((None, s, n) for s, n in NAMED)]
    if offered(name, prediction, sigmas)
]


@pytest.mark.parametrize("schedule", VP)
@pytest.mark.parametrize(("name", "prediction", "spacing", "sigmas", "steps"), CASES)
def test_every_state_responds_as_in_diffusers(
    name: str, prediction: str, spacing: str | None, sigmas: str | None, steps: int, schedule: str, monkeypatch: Any
) -> None:
    config = {"timestep_spacing": spacing} if spacing else {f"use_{sigmas}_sigmas": True}
    theirs = peer(PEERS[name][0](prediction_type=prediction, **config), steps, monkeypatch, VP[schedule])
    sampler = PEERS[name][1](steps, spacing=spacing, sigmas=sigmas)
    program, levels = recorded(sampler, VP[schedule], PREDICTS[prediction])
    np.testing.assert_allclose(program.time, theirs.timesteps, rtol=1e-7, atol=1e-5)
    x, outputs, noises = impulses(len(program))
    mine = our_states(program, (levels[0, 0] * x, outputs, noises)) / levels[1:, 0, None, None]  # x / alpha
    assert_same_states(mine, their_states(theirs, (x, outputs, noises), monkeypatch))


def test_defaults_are_those_of_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    for scheduler, ours in PEERS.values():
        theirs = peer(scheduler(), 10, monkeypatch, VP["linear"])
        np.testing.assert_allclose(ours(10).program(VP["linear"]).time, theirs.timesteps, rtol=1e-7, atol=1e-6)


def test_euler_that_ends_at_sigma_min_equals_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = diffusers.EulerDiscreteScheduler(final_sigmas_type="sigma_min", timestep_spacing="trailing")
    theirs = peer(scheduler, 10, monkeypatch, VP["linear"])
    program, levels = recorded(Euler(10, spacing="trailing", final="sigma_min"), VP["linear"], "eps")
    signal = impulses(10)
    mine = our_states(program.rescaled(levels[:, 0]), signal)
    assert_same_states(mine, their_states(theirs, signal, monkeypatch))


@pytest.mark.parametrize("steps", [5, 28])
@pytest.mark.parametrize(
    ("scheduler", "ours"),
    [(diffusers.FlowMatchEulerDiscreteScheduler, Euler), (diffusers.FlowMatchHeunDiscreteScheduler, Heun)],
)
def test_flow_equals_diffusers(scheduler: Any, ours: Any, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = peer(scheduler(shift=3.0), steps, monkeypatch)
    sigmas = theirs.sigmas.unique().flip(0)
    assert len(sigmas) == steps + 1 and sigmas[0] == 1 and sigmas[-1] == 0
    program = ours(sigmas=sigmas).program(schedules.flow(), "flow")
    np.testing.assert_allclose(1000 * program.time, theirs.timesteps, rtol=1e-12)
    signal = impulses(len(program))
    assert_same_states(our_states(program, signal), their_states(theirs, signal, monkeypatch))
    if ours is Euler:  # x + (s - t) m
        np.testing.assert_allclose(program.A[:, 0, 0], 1, rtol=1e-14)
        np.testing.assert_allclose(program.A[:, 0, 2], np.diff(sigmas), rtol=1e-12)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_edm_euler_equals_diffusers(sigma_data: float, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = peer(diffusers.EDMEulerScheduler(sigma_data=sigma_data), 12, monkeypatch)
    program = Euler(12).program(schedules.edm(sigma_data=sigma_data), "raw")
    np.testing.assert_allclose(program.time, np.exp(4 * theirs.timesteps.numpy()), rtol=1e-9)
    np.testing.assert_allclose(program.c_in, theirs.precondition_inputs(1.0, theirs.sigmas[:-1]), rtol=1e-12)
    signal = impulses(12)
    assert_same_states(our_states(program, signal), their_states(theirs, signal, monkeypatch))


@pytest.mark.parametrize(("s_tmin", "s_tmax"), [(0.0, math.inf), (0.1, 5.0)])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "edm"])
def test_churned_euler_equals_diffusers(
    prediction: str, s_tmin: float, s_tmax: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": 0.9}
    if prediction == "edm":
        theirs, schedule = peer(diffusers.EDMEulerScheduler(), 10, monkeypatch), SCHEDULES["edm"]
    else:
        schedule = VP["linear"]
        scheduler = diffusers.EulerDiscreteScheduler(prediction_type=prediction)
        theirs = peer(scheduler, 10, monkeypatch, VP["linear"])
    sampler = Euler(10, churn=2.5, **options)
    program = sampler.program(schedule, PREDICTS.get(prediction, "raw"))
    raised_first = s_tmax == math.inf
    assert program.nfe == 10 and len(program) == 10 + raised_first and program.evaluates[0] != raised_first
    x, outputs, noises = impulses(10, noisy_end=True)
    mine = (sampler.grid(schedule).alphas[0] * x, outputs, noises if raised_first else noises[1:])
    expected = their_states(theirs, (x, outputs, noises), monkeypatch, s_churn=2.5, **options)
    assert_same_states(our_states(program, mine)[-1:], expected[-1:])  # before, our rows hold the next raise


@pytest.mark.parametrize(("prediction", "predicts"), PREDICTS.items())
def test_clipped_heun_equals_diffusers(prediction: str, predicts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = diffusers.HeunDiscreteScheduler(prediction_type=prediction, clip_sample=True, clip_sample_range=0.8)
    theirs = peer(scheduler, 9, monkeypatch, VP["linear"])
    program, levels = recorded(Heun(9, clip=(-0.8, 0.8)), VP["linear"], predicts)
    draw = np.random.default_rng(8)
    x, outputs = draw.normal(size=(3, 4)), draw.normal(size=(17, 3, 4))
    mine = our_states(program, (levels[0, 0] * x, outputs, 0 * outputs)) / levels[1:, 0, None, None]
    assert_same_states(mine, their_states(theirs, (x, outputs, outputs), monkeypatch))


# ------------------------------------------------------------------------------ where diffusers is wrong


def test_churn_evaluates_the_raised_state_where_diffusers_evaluates_the_old_one() -> None:
    """Karras 2022, algorithm 2, line 7: D(x_hat; sigma_hat). diffusers adds the noise after the network has run."""
    sampler, schedule = Euler(10, churn=2.5), VP["linear"]
    program, levels = recorded(sampler, schedule, "eps")
    np.testing.assert_allclose(levels[:-1, 1] / levels[:-1, 0], 1.25 * sampler.grid(schedule).ratios[:-1], rtol=1e-12)
    told = program.time[program.evaluates]  # above the last training step the last is told
    assert told[0] == 999
    np.testing.assert_allclose(schedule.t_of_sigma(levels[1:-1, 1] / levels[1:-1, 0]), told[1:], atol=0.1)


def test_churned_v_is_read_at_the_raised_level_where_diffusers_reads_it_at_the_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """x_hat = alpha_hat mu + sigma_hat eps and its v say D = mu; ours: see the law of a point below."""
    scheduler = diffusers.EulerDiscreteScheduler(prediction_type="v_prediction")
    theirs = peer(scheduler, 10, monkeypatch, VP["linear"])
    theirs.set_begin_index(5)
    t, mu, hat = theirs.timesteps[5], 1.7, 1.25 * theirs.sigmas[5]
    y = mu + hat * torch.ones(1, dtype=torch.float64)  # x_hat / alpha_hat for eps = 1
    v = (1 - hat * mu) / torch.sqrt(1 + hat**2)
    monkeypatch.setattr(diffusers.schedulers.scheduling_euler_discrete, "randn_tensor", lambda *_, **__: 0 * y)
    theirs.scale_model_input(y, t)
    D = theirs.step(v, t, y, s_churn=2.5).pred_original_sample
    assert (y - hat * torch.sqrt(1 + hat**2) * v) / (1 + hat**2) == pytest.approx(mu, rel=1e-12)
    assert abs(D - mu) > 0.1


@pytest.mark.parametrize(("name", "steps"), [("euler_ancestral", 4), ("dpm2_ancestral", 5)])
def test_ancestral_samplers_are_exact_where_diffusers_gives_nan(
    name: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sqrt(sigma_s^2 - up^2) cancels where one step divides sigma by thousands, as on cosine schedules."""
    scheduler, ours = PEERS[name]
    theirs = scheduler(beta_schedule="squaredcos_cap_v2")
    theirs.set_timesteps(steps)
    signal = impulses(len(theirs.timesteps))
    assert np.isnan(their_states(theirs, tuple(part.astype(np.float32) for part in signal), monkeypatch)).any()
    assert_law_of_a_point_is_kept(ours(steps), VP["cosine"], "eps")


# ------------------------------------------------------------------------------------------- exact laws

PAIRS = [(name, predicts) for name in SCHEDULES for predicts in ("eps", "x0", "v", "score", "flow", "raw")]
DEFINED = [
    (name, predicts)
    for name, predicts in PAIRS
    if not (predicts == "raw" and name != "edm") and not (predicts in ("eps", "score") and name == "zero_snr")
]


def grids(name: str, predicts: str) -> list[dict[str, Any]]:
    """Grids to 0 and to a level above it; from alpha = 0 where the prediction allows it."""
    if name == "flow" and predicts in ("eps", "score"):
        return [{"sigmas": (0.9, 0.7, 0.4, 0.3)}, {"sigmas": (0.9, 0.7, 0.4, 0.3), "final": 0.1}]
    if name == "flow":
        return [{"steps": 7}, {"steps": 7, "final": 0.1}]
    if name == "zero_snr":
        return [{"steps": 7, "spacing": "trailing"}, {"steps": 7, "spacing": "trailing", "final": "sigma_min"}]
    return [{"steps": 7}, {"sigmas": (10.0, 5.0, 2.0, 1.0, 0.5), "final": 0.2}]


@pytest.mark.parametrize(("name", "predicts"), DEFINED)
@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_deterministic_samplers_are_exact_on_a_point(sampler: Any, name: str, predicts: str) -> None:
    for grid in grids(name, predicts):
        assert_point_is_kept(sampler(**grid), SCHEDULES[name], predicts)


STOCHASTIC = {
    "euler_ancestral": EulerAncestral,
    "eta 0.4": partial(EulerAncestral, eta=0.4),
    "eta 3": partial(EulerAncestral, eta=3.0),
    "dpm2_ancestral": DPM2Ancestral,
    "dpm2 eta 0.6": partial(DPM2, eta=0.6),
    "euler churn": partial(Euler, churn=2.0, s_tmin=0.3, s_tmax=8.0),
    "heun churn": partial(Heun, churn=9.0, s_tmax=8.0),
    "heun churn all": partial(Heun, churn=2.0),
}


@pytest.mark.parametrize(("name", "predicts"), DEFINED)
@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_stochastic_samplers_keep_the_law_of_a_point(sampler: str, name: str, predicts: str) -> None:
    if sampler == "heun churn all" and name == "sub_vp":
        pytest.skip("no levels above the first")
    for grid in grids(name, predicts):
        assert_law_of_a_point_is_kept(STOCHASTIC[sampler](**grid), SCHEDULES[name], predicts)


@pytest.mark.parametrize("name", ["cosine", "ve", "flow"])
@pytest.mark.parametrize(
    "sampler", [EulerAncestral, DPM2Ancestral, partial(Euler, churn=9.0), partial(Heun, churn=9.0)]
)
def test_variance_converges_at_the_declared_order(sampler: Any, name: str) -> None:
    schedule, errors = SCHEDULES[name], []
    for steps in (100, 200, 400):
        levels = np.geomspace(15, 0.1, steps + 1)
        levels = levels / (1 + levels) if name == "flow" else levels
        solver = sampler(sigmas=levels[:-1], final=float(levels[-1]))
        variance, exact = gaussian_variance(solver, schedule, 0.5)
        errors.append(abs(variance / exact - 1))
    order = solver.program(schedule, "v").order
    assert np.log2(errors[-2] / errors[-1]) >= order - 0.3 and errors[-1] < 0.04, errors


# ---------------------------------------------------------------------- LMS's weights, counts and arguments


def test_lms_weights_integrate_polynomials_exactly() -> None:
    draw = np.random.default_rng(2)
    for count in (1, 2, 3, 4):
        for scale in (1e-3, 1.0, 80.0):
            u = np.sort(draw.uniform(0.1, 1, size=count + 1))[::-1] * scale
            weights, nodes = adams_bashforth(u), u[-2::-1]
            for power in range(count):
                exact = (u[-1] ** (power + 1) - u[-2] ** (power + 1)) / (power + 1)
                assert weights @ nodes**power == pytest.approx(exact, abs=1e-12 * (abs(weights) @ nodes**power))
    np.testing.assert_allclose(adams_bashforth(np.arange(5.0)) * 24, [55, -59, 37, -9], rtol=1e-13)


@pytest.mark.parametrize(
    ("sampler", "nfe", "registers", "order"),
    [
        (Euler(10), 10, 1, 1),
        (EulerAncestral(10), 10, 1, 1),
        (Heun(10), 19, 2, 2),
        (Heun(10, spacing="trailing", final="sigma_min"), 20, 2, 2),
        (Heun(10, churn=5.0), 19, 2, 2),
        (Heun(1), 1, 2, 2),
        (DPM2(10), 19, 2, 2),
        (DPM2(10, 1.0), 19, 2, 2),
        (LMS(10), 10, 4, 2),
        (LMS(10, 2), 10, 2, 2),
        (LMS(10, 1), 10, 1, 1),
        (LMS(2), 2, 2, 2),
    ],
    ids=repr,
)
def test_counts(sampler: GridSampler, nfe: int, registers: int, order: int) -> None:
    program = sampler.program(VP["linear"])
    assert (program.nfe, program.registers, program.order) == (nfe, registers, order)


def test_a_first_raise_is_a_row_of_its_own_and_starts_at_the_grids_own_level() -> None:
    churned = Heun(10, churn=5.0).program(SCHEDULES["ve"], "x0")
    assert churned.evaluates.tolist() == [False] + [True] * 19 and churned.init_scale == 50
    assert churned.time[1] == 50 * math.sqrt(2)


@pytest.mark.parametrize("name", SCHEDULES)
def test_one_step_and_order_one_are_euler(name: str) -> None:
    grid = {"spacing": "trailing"} if name == "zero_snr" else {}
    for steps, samplers in ((1, (*DETERMINISTIC, EulerAncestral)), (6, (partial(LMS, order=1),))):
        euler = Euler(steps, **grid).program(SCHEDULES[name], "v")
        for sampler in (*samplers, partial(EulerAncestral, eta=0.0)):
            program = sampler(steps, **grid).program(SCHEDULES[name], "v")
            np.testing.assert_allclose(program.A[:, 0, 0], euler.A[:, 0, 0], rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(program.A[:, 0, -2], euler.A[:, 0, -2], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sampler", [*DETERMINISTIC, EulerAncestral, DPM2Ancestral])
def test_zero_terminal_snr_raises_for_eps(sampler: Any) -> None:
    with pytest.raises(ValueError, match="predicts: got 'eps', which says nothing about x_0"):
        sampler(10, spacing="trailing").program(SCHEDULES["zero_snr"], "eps")


BAD: dict[str, Callable[[], object]] = {
    "churn: got -1, expected a finite number of at least 0": lambda: Heun(5, -1),
    "churn: got '1', expected a number": lambda: Euler(5, "1"),
    "s_tmin: got -0.5, expected a finite number of at least 0": lambda: Heun(5, s_tmin=-0.5),
    "s_tmax: got nan, expected a finite number": lambda: Heun(5, s_tmax=math.nan),
    "s_tmin, s_tmax: got 3 and 2, expected s_tmin <= s_tmax": lambda: Euler(5, s_tmin=3, s_tmax=2),
    "s_noise: got inf, expected a finite number of at least 0": lambda: EulerAncestral(5, s_noise=math.inf),
    "eta: got -1, expected a finite number of at least 0": lambda: EulerAncestral(5, -1),
    "eta: got None, expected a number": lambda: DPM2(5, None),
    "order: got 5, expected a whole number from 1 to 4": lambda: LMS(5, 5),
    "order: got 2.0, expected a whole number from 1 to 4": lambda: LMS(5, 2.0),
    "clip: got 3, expected .*": lambda: Heun(5, clip=3),
    "steps: got None, expected a number of steps": lambda: LMS(),
    "churn: got 1, which raises sigma out of range .*, expected a smaller s_tmax": lambda: Heun(5, churn=1.0).program(
        SCHEDULES["sub_vp"]
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BAD[message]()
