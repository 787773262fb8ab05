"""UniPC and DEIS against diffusers by impulse response, and against the exact flow of mixture data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from diffusers import DEISMultistepScheduler, UniPCMultistepScheduler
from scipy.integrate import quad

from exponential_cases import (
    GRIDS,
    PREDICTS,
    assert_same_response,
    coordinates,
    flow_error,
    log_snr_sampler,
    name_of,
    run_ours,
    run_solver,
    signals,
    their_grid,
)
from oracles import in_float64
from ulam import schedules
from ulam.programs.clip import DynamicThreshold
from ulam.samplers.deis import DEIS
from ulam.samplers.exponential import moments
from ulam.samplers.grid import Grid
from ulam.samplers.unipc import UniPC
from ulam.schedules import Schedule

VP = {"linear": schedules.vp_linear(), "cosine": schedules.vp_cosine(1000)}
ZERO_SNR = schedules.zero_terminal_snr(VP["linear"])
SCHEDULES: dict[str, Schedule] = {"cosine": VP["cosine"], "ve": schedules.ve(0.01, 50), "flow": schedules.flow()}
CONTINUOUS = {"edm": schedules.edm(), "sub_vp": schedules.sub_vp(), "flow": schedules.flow(3.0), "ve": SCHEDULES["ve"]}
# -------------------------------------------------------------------------------------- impulse response


@pytest.mark.parametrize("grid", GRIDS, ids=name_of)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("predict_x0", [True, False])
@pytest.mark.parametrize("name", VP)
def test_unipc_impulse_response(
    name: str, predict_x0: bool, variant: str, order: int, grid: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    prediction = ["epsilon", "sample", "v_prediction"][(order + grid["steps"]) % 3]
    zero = predict_x0 and variant == "bh2"  # the others multiply infinity by 0 in the last row
    theirs = in_float64(
        UniPCMultistepScheduler(
            solver_order=order,
            prediction_type=prediction,
            predict_x0=predict_x0,
            solver_type=variant,
            final_sigmas_type="zero" if zero else "sigma_min",
            **their_grid(**grid),
        ),
        VP[name],
    )
    theirs.set_timesteps(grid["steps"])
    final: str | float = "zero" if zero else "sigma_min"
    if not zero and "sigmas" in grid:  # their last row would go nowhere
        final = theirs.sigmas[-1] = 0.005
    sampler = UniPC(order=order, variant=variant, predict_x0=predict_x0, final=final, **grid)
    program = sampler.program(VP[name], PREDICTS[prediction])
    assert abs(program.time - theirs.timesteps.numpy()).max() <= ("sigmas" in grid)
    assert_same_response(program, theirs, coordinates(sampler.grid(VP[name]), VP[name]), monkeypatch)
    assert program.registers == 1 + min(order, (grid["steps"] + 1) // 2)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 15])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("disabled", [(), (0,), (0, 2), range(15)])
@pytest.mark.parametrize("lower", [True, False])
def test_unipc_without_correction_or_lower_orders(
    lower: bool, disabled: tuple[int, ...], order: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = UniPCMultistepScheduler(
        solver_order=order,
        lower_order_final=lower,
        disable_corrector=list(disabled),
        final_sigmas_type="zero" if lower else "sigma_min",
    )
    in_float64(theirs, VP["linear"]).set_timesteps(steps)
    sampler = UniPC(
        steps,
        order,
        lower_order_final=lower,
        disable_corrector=disabled,
        final="zero" if lower else "sigma_min",
    )
    program = sampler.program(VP["linear"])
    assert_same_response(program, theirs, sampler.grid(VP["linear"]).ratios, monkeypatch)
    assert program.order == (min(order, 2) if len(disabled) and steps > 1 else 3)


@pytest.mark.parametrize("grid", GRIDS, ids=name_of)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", VP)
def test_deis_impulse_response(name: str, order: int, grid: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    prediction = ["epsilon", "sample", "v_prediction"][(order + grid["steps"]) % 3]
    scheduler = DEISMultistepScheduler(solver_order=order, prediction_type=prediction, **their_grid(**grid))
    theirs = in_float64(scheduler, VP[name])
    theirs.set_timesteps(grid["steps"])
    sampler = DEIS(order=order, **grid)
    if "sigmas" in grid:  # their last row would go nowhere, ours by default goes on to the data
        assert sampler.grid(VP[name]).sigmas[-1] == 0
        theirs.sigmas[-1] = 0.005
        sampler = dataclasses.replace(sampler, final=0.005)
    program = sampler.program(VP[name], PREDICTS[prediction])
    assert abs(program.time - theirs.timesteps.numpy()).max() <= ("sigmas" in grid)
    # 1e-8: on the steepest grid their differences of antiderivatives cancel
    assert_same_response(program, theirs, coordinates(sampler.grid(VP[name]), VP[name]), monkeypatch, 1e-8)
    assert program.registers == order


@pytest.mark.parametrize("steps", [1, 2, 3, 14, 15])
@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("order", [2, 3])
def test_orders_of_the_last_deis_rows(order: int, lower: bool, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = in_float64(DEISMultistepScheduler(solver_order=order, lower_order_final=lower), VP["linear"])
    theirs.set_timesteps(steps)
    sampler = DEIS(steps, order, lower_order_final=lower)
    program = sampler.program(VP["linear"])
    assert_same_response(program, theirs, sampler.grid(VP["linear"]).ratios, monkeypatch)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "flow_prediction"])
@pytest.mark.parametrize("name", ["unipc", "deis"])
def test_flow_impulse_response(name: str, prediction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = {"unipc": UniPCMultistepScheduler, "deis": DEISMultistepScheduler}[name]
    theirs = cls(solver_order=3, prediction_type=prediction, use_flow_sigmas=True, flow_shift=3.0)
    theirs.set_timesteps(12)
    levels = theirs.sigmas.numpy()
    if name == "unipc":
        sampler: UniPC | DEIS = UniPC(order=3, sigmas=levels)
    else:  # their last row goes nowhere
        theirs.sigmas[-1] = 0.01
        sampler = DEIS(order=3, sigmas=levels[:-1], final=float(np.float32(0.01)))
    schedule = schedules.flow(3.0)
    program = sampler.program(schedule, PREDICTS[prediction])
    assert abs(1000 * program.time - theirs.timesteps.numpy()).max() < 1 + 1e-4
    assert_same_response(program, theirs, sampler.grid(schedule).sigmas, monkeypatch)


@pytest.mark.parametrize("steps", [6, 20])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("name", ["unipc", "deis"])
def test_clipping_equals_diffusers(name: str, prediction: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their thresholding with sample_max_value = 1 is clip=(-1, 1)."""
    cls = {"unipc": UniPCMultistepScheduler, "deis": DEISMultistepScheduler}[name]
    theirs = cls(solver_order=3, prediction_type=prediction, thresholding=True, sample_max_value=1.0)
    in_float64(theirs, VP["cosine"]).set_timesteps(steps)
    sampler = {"unipc": UniPC, "deis": DEIS}[name](steps, 3, clip=(-1, 1))
    program, draw = sampler.program(VP["cosine"], PREDICTS[prediction]), np.random.default_rng(1)
    signal = draw.normal(size=(3, 4)), draw.normal(size=(steps, 3, 4)), np.zeros((steps, 3, 4))
    expected = run_solver(theirs, sampler.grid(VP["cosine"]).ratios, signal, monkeypatch)
    np.testing.assert_allclose(run_ours(program, signal), expected, rtol=1e-9, atol=1e-9)
    dynamic = dataclasses.replace(sampler, clip=DynamicThreshold(0.9, 2.0)).program(VP["cosine"], PREDICTS[prediction])
    assert dynamic.threshold.all() and (dynamic.lo == 0.9).all() and (dynamic.hi == 2).all()
    np.testing.assert_array_equal(dynamic.A, program.A)


def test_clipped_noise_form_of_unipc_takes_the_noise_of_the_clipped_estimate() -> None:
    """diffusers ignores thresholding there. With D at the limit eps is (x - alpha D) / sigma, so UniPC without
    correction of order 1 is alpha_t D + sigma_t eps."""
    sampler = UniPC(5, 1, predict_x0=False, clip=(-1, 1), disable_corrector=range(5), final="sigma_min")
    grid, program = sampler.grid(VP["linear"]), sampler.program(VP["linear"], "x0")
    x = np.array([0.3])
    states = run_ours(program, (x, np.full((5, 1), 7.0), np.zeros((5, 1))))
    for row in range(5):
        eps = (x - grid.alphas[row]) / grid.sigmas[row]
        x = grid.alphas[row + 1] + grid.sigmas[row + 1] * eps
        assert states[row] == pytest.approx(x, rel=1e-12)


# ---------------------------------------------------------------------------------------- limits and schedules


@pytest.mark.parametrize("steps", range(1, 13))
@pytest.mark.parametrize("order", [1, 2, 3])
def test_ends_at_the_data_with_the_denoised_estimate(order: int, steps: int) -> None:
    """Whatever the number of rows, D of the last row, never NaN, also from zero terminal SNR and without lower orders,
    where diffusers divides by an infinite step."""
    samplers = [
        UniPC(steps, order, variant, lower_order_final=lower) for variant in ("bh1", "bh2") for lower in (False, True)
    ]
    for sampler in (*samplers, DEIS(steps, order, final="zero"), DEIS(steps, order, False, final="zero")):
        for schedule, spacing in ((VP["cosine"], "linspace"), (ZERO_SNR, "trailing")):
            signal = signals(steps)
            states = run_ours(dataclasses.replace(sampler, spacing=spacing).program(schedule, "x0"), signal)
            assert np.isfinite(states).all()
            np.testing.assert_allclose(states[-1], signal[1][-1], atol=1e-12)


@pytest.mark.parametrize("steps", range(1, 13))
@pytest.mark.parametrize("order", [1, 2, 3])
def test_noise_form_of_unipc_ends_at_the_data_as_in_the_limit(order: int, steps: int) -> None:
    """There the last row is (x^c - sigma eps) / alpha with the corrected x^c, where diffusers gives NaN."""
    for schedule, spacing in ((VP["cosine"], "linspace"), (ZERO_SNR, "trailing")):
        sampler = UniPC(steps, order, predict_x0=False, spacing=spacing)
        near = dataclasses.replace(sampler, final=1e-9)
        states = (run_ours(each.program(schedule, "x0"), signals(steps))[-1] for each in (sampler, near))
        np.testing.assert_allclose(*states, atol=1e-6)


@pytest.mark.parametrize("predict_x0", [True, False])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_from_zero_terminal_snr_is_the_limit_of_a_small_alpha(order: int, variant: str, predict_x0: bool) -> None:
    """Past estimates lie infinitely far back; the first step is corrected only where B(h) has a limit."""
    disabled = () if variant == "bh2" and predict_x0 else (0,)
    signal, states = signals(5), []
    for first, skip in ((0.0, ()), (1e-300, disabled)):
        alphas = np.array([first, 0.2, 0.4, 0.6, 0.8, 0.95])
        grid = Grid(np.arange(5.0)[::-1], alphas, np.sqrt(1 - alphas**2))
        sampler = UniPC(5, order, variant, predict_x0, disable_corrector=skip)
        states.append(run_ours(sampler.on(grid, VP["linear"], "x0"), signal))
    np.testing.assert_allclose(states[0], states[1], atol=3 / np.log(1e300))


@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "flow"])
@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("sampler", [UniPC(8, 3), DEIS(8, 3), DEIS(8, 2, final="zero")])
def test_the_exact_flow_of_a_point_on_every_schedule(sampler: UniPC | DEIS, name: str, predicts: str) -> None:
    """Data at mu: D and eps are constant along the flow, and every solver of this family is exact."""
    mu, eps, schedule = 0.7, -1.2, CONTINUOUS[name]
    if name == "flow" and predicts == "eps":
        sampler = dataclasses.replace(sampler, steps=None, timesteps=tuple(0.98 * schedule.grid(8)))
    grid = sampler.grid(schedule)
    alphas, sigmas = grid.alphas[:-1], grid.sigmas[:-1]
    outputs = {
        "eps": np.full(8, eps),
        "x0": np.full(8, mu),
        "v": alphas * eps - sigmas * mu,
        "flow": np.full(8, eps - mu),
    }[predicts]
    x = np.array([alphas[0] * mu + sigmas[0] * eps])
    states = run_ours(sampler.program(schedule, predicts), (x, outputs[:, None], np.zeros((8, 1))))
    np.testing.assert_allclose(states[:, 0], grid.alphas[1:] * mu + grid.sigmas[1:] * eps, rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------------------------------- moments and orders


@pytest.mark.parametrize("g", [1e-9, 1e-3, 0.3, 2.0, 30.0, -1e-6, -0.5, -8.0, -60.0])
def test_moments_are_the_integrals(g: float) -> None:
    for k, value in enumerate(moments(g, 5)):
        exact = quad(lambda tau, k=k: g * math.exp(-g * (1 - tau)) * tau**k, 0, 1, epsabs=0, epsrel=1e-12)[0]
        assert value == pytest.approx(exact, rel=1e-12)
    assert moments(g, 1)[0] == pytest.approx(-math.expm1(-g), rel=1e-14)
    assert moments(math.inf, 3).tolist() == [1, 1, 1]


@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "flow"])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        *((UniPC(9, p, variant), min(p + 1, 3)) for p in (1, 2, 3, 4) for variant in ("bh1", "bh2")),
        *((UniPC(9, p, predict_x0=False), min(p + 1, 3)) for p in (1, 2, 3, 4)),
        *((UniPC(9, p, disable_corrector=range(200)), min(p, 2)) for p in (1, 2, 3)),
        *((DEIS(9, p), min(p, 2)) for p in (1, 2, 3)),
    ],
)
def test_declared_order_is_measured(sampler: UniPC | DEIS, order: int, name: str, predicts: str) -> None:
    """At least so much: UniPC-3 has order 3 by its first step, but a small constant there (up to 4 is measured)."""

    make = partial(dataclasses.replace, sampler, steps=None, lower_order_final=False)
    errors = []
    for rows in (48, 96):
        declared, error = flow_error(
            log_snr_sampler(make, SCHEDULES[name], rows, (15.0, 0.1)), SCHEDULES[name], predicts
        )
        errors.append(error)
    assert declared == order and np.log2(errors[0] / errors[1]) >= order - 0.3


def test_unipc_above_order_2_has_order_3_for_its_start() -> None:
    """The first corrector has local error O(h^3), whatever the order: the slope falls to 3."""
    errors = []
    for rows in (96, 192, 384):
        sampler = log_snr_sampler(
            lambda **levels: UniPC(order=4, variant="bh1", **levels), VP["cosine"], rows, (15.0, 0.1)
        )
        errors.append(flow_error(sampler, VP["cosine"], "x0")[1])
    assert (np.log2(np.divide(errors[:-1], errors[1:])) < 3.2).all()


# ------------------------------------------------------------------------------------------------- arguments

BAD: dict[str, Callable[[], object]] = {
    "order: got 5, expected a whole number from 1 to 4": lambda: UniPC(5, 5),
    "order: got 4, expected a whole number from 1 to 3": lambda: DEIS(5, 4),
    "variant: got 'midpoint', expected one of bh1, bh2": lambda: UniPC(5, variant="midpoint"),
    "predict_x0: got 0, expected True or False": lambda: UniPC(5, predict_x0=0),
    "lower_order_final: got None, expected True or False": lambda: UniPC(5, lower_order_final=None),
    "lower_order_final: got 1, expected True or False": lambda: DEIS(5, lower_order_final=1),
    "disable_corrector: got 3, expected a sequence of steps": lambda: UniPC(5, disable_corrector=3),
    "disable_corrector: got -1, expected a whole number of at least 0": lambda: UniPC(5, disable_corrector=[-1]),
    "clip: got .*, expected None": lambda: DEIS(5, clip=(1, 0)),
    "steps: got None, expected a number of steps": lambda: UniPC(),
    "predicts: got 'eps', which says nothing about x_0": lambda: UniPC(5, spacing="trailing").program(ZERO_SNR, "eps"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BAD[message]()
