"""SA-Solver against diffusers' scheduler and ComfyUI's loop by impulse response, and where its noise is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SASolverScheduler

from exponential_cases import GRIDS, PREDICTS, assert_same_response, name_of, run_ours, run_solver, their_grid
from oracles import in_float64
from sa_solver_loop import sa_solver
from sampler_cases import VP
from sde_loops import responses
from ulam import schedules
from ulam.samplers.sa_solver import SASolver, level_on_the_way
from ulam.schedules import Schedule

SCHEDULES: dict[str, Schedule] = {"vp": VP["linear"], "ve": schedules.ve(0.01, 50), "flow": schedules.flow(3.0)}
ORDERS = [(1, 0), (1, 1), (2, 0), (2, 2), (1, 3), (3, 1), (3, 4), (4, 5)]
PREDICTIONS = {"vp": "eps", "ve": "x0", "flow": "flow"}


def theirs_and_ours(
    orders: tuple[int, int], algorithm: str, grid: dict[str, Any], prediction: str = "epsilon", **options: Any
) -> tuple[Any, SASolver]:
    """diffusers' scheduler in float64, and ours with its tau at every step's start."""
    config = {"thresholding": True, "sample_max_value": 1.0} if "clip" in options else {}
    scheduler = SASolverScheduler(
        predictor_order=orders[0],
        corrector_order=orders[1],
        algorithm_type=f"{algorithm}_prediction",
        prediction_type=prediction,
        lower_order_final=options.get("lower_order_final", True),
        **config,
        **their_grid(**grid),
    )
    scheduler = in_float64(scheduler, VP["linear"])
    scheduler.set_timesteps(grid["steps"])
    final: str | float = "sigma_min"
    if "sigmas" in grid:  # their last row would go nowhere
        final = scheduler.sigmas[-1] = 0.005
    taus = [float(scheduler.tau_func(t)) for t in scheduler.timesteps.tolist()]
    sampler = SASolver(
        predictor_order=orders[0],
        corrector_order=orders[1],
        tau=tuple(taus),
        predict_x0=algorithm == "data",
        final=final,
        **options,
        **grid,
    )
    return scheduler, sampler


@pytest.mark.parametrize("grid", GRIDS, ids=name_of)
@pytest.mark.parametrize("algorithm", ["data", "noise"])
@pytest.mark.parametrize("orders", [(1, 1), (2, 2), (1, 3), (3, 4), (4, 4), (4, 1)])
def test_equals_diffusers(
    orders: tuple[int, int], algorithm: str, grid: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    prediction = ["epsilon", "sample", "v_prediction"][(sum(orders) + grid["steps"]) % 3]
    theirs, sampler = theirs_and_ours(orders, algorithm, grid, prediction)
    program = sampler.program(VP["linear"], PREDICTS[prediction])
    assert abs(program.time - theirs.timesteps.numpy()).max() <= ("sigmas" in grid)
    assert_same_response(program, theirs, sampler.grid(VP["linear"]).ratios, monkeypatch)


@pytest.mark.parametrize("lower_order_final", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("orders", [(1, 1), (2, 2), (3, 4), (2, 4)])
def test_orders_of_the_last_rows(
    orders: tuple[int, int], steps: int, lower_order_final: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = {"steps": steps, "spacing": "linspace"}
    theirs, sampler = theirs_and_ours(orders, "data", grid, lower_order_final=lower_order_final)
    assert_same_response(sampler.program(VP["linear"]), theirs, sampler.grid(VP["linear"]).ratios, monkeypatch)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_clipping_equals_diffusers(prediction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their thresholding with sample_max_value = 1 is clip=(-1, 1); their noise form reads a time it is not given."""
    grid = {"steps": 9, "spacing": "linspace"}
    theirs, sampler = theirs_and_ours((3, 4), "data", grid, prediction, clip=(-1, 1))
    draw = np.random.default_rng(1)
    signal = draw.normal(size=(3, 4)), draw.normal(size=(9, 3, 4)), draw.normal(size=(9, 3, 4))
    expected = run_solver(theirs, sampler.grid(VP["linear"]).ratios, signal, monkeypatch)
    program = sampler.program(VP["linear"], PREDICTS[prediction])
    np.testing.assert_allclose(run_ours(program, signal), expected, rtol=1e-9, atol=1e-9)


# --------------------------------------------------------------------------------------------------- ComfyUI


@pytest.mark.parametrize("to_data", [True, False])
@pytest.mark.parametrize("simple", [True, False])
@pytest.mark.parametrize("pece", [True, False])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("orders", ORDERS)
def test_equals_comfyuis_loop(orders: tuple[int, int], name: str, pece: bool, simple: bool, to_data: bool) -> None:
    schedule, tau = SCHEDULES[name], 0.8
    levels = np.array([9.0, 5.0, 3.0, 2.0, 1.1, 0.6, 0.3, 0.1])
    levels = levels / (1 + levels) if name == "flow" else levels
    above, below = level_on_the_way(schedule, 0.2), level_on_the_way(schedule, 0.6)
    sampler = SASolver(
        predictor_order=orders[0],
        corrector_order=orders[1],
        tau=tau,
        interval=(0.2, 0.6),
        s_noise=0.9,
        pece=pece,
        simple_order_2=simple,
        lower_order_final=to_data,  # ComfyUI lowers orders on the way to the data only
        sigmas=tuple(levels[:-1]),
        final="zero" if to_data else float(levels[-1]),
    )
    mine, theirs, program = responses(
        sampler,
        schedule,
        PREDICTIONS[name],
        partial(
            sa_solver,
            orders=orders,
            tau_of=lambda sigma: tau if below <= sigma <= above else 0.0,
            s_noise=0.9,
            pece=pece,
            simple=simple,
        ),
    )
    assert abs(mine - theirs).max() <= 1e-10 * abs(theirs).max()
    corrections = 6 if orders[1] else 0
    assert program.nfe == 7 + pece * corrections
    assert 0 < (program.A[:, :, -1] != 0).any(axis=1).sum() < 7  # the interval leaves some steps without noise


def test_the_way_in_time_is_comfyuis() -> None:
    """percent_to_sigma: training steps on VP, time before the shift on flow, log sigma on EDM and VE."""
    vp, middle = SCHEDULES["vp"], 0.25 * 999
    low, high = np.log(vp.ratios[[249, 250]])  # type: ignore[attr-defined]
    assert level_on_the_way(vp, 0.75) == pytest.approx(np.exp(low + (middle - 249) * (high - low)))
    assert level_on_the_way(SCHEDULES["flow"], 0.75) == pytest.approx(3 * 0.25 / (1 + 2 * 0.25))
    assert level_on_the_way(SCHEDULES["ve"], 0.75) == pytest.approx(50 * (0.01 / 50) ** 0.75)
    assert level_on_the_way(schedules.edm(0.002, 80), 0.5) == pytest.approx(np.sqrt(0.002 * 80))
    for schedule in SCHEDULES.values():
        assert (level_on_the_way(schedule, 0.0), level_on_the_way(schedule, 1.0)) == (np.inf, 0.0)


# ------------------------------------------------------------------------------------------ laws and arguments


def test_the_corrector_takes_the_noise_of_its_predictor() -> None:
    """Data at a point have D = mu everywhere: with any tau the law N(alpha mu, sigma^2) is kept exactly."""
    levels = (9.0, 4.0, 2.0, 1.0, 0.4)
    for pece in (False, True):
        for orders in ((2, 2), (3, 4)):
            sampler = SASolver(
                predictor_order=orders[0], corrector_order=orders[1], tau=(0.3, 1.0, 0.0, 2.0, 0.7), pece=pece,
                sigmas=levels, final=0.2,
            )  # fmt: skip
            program = sampler.program(SCHEDULES["ve"], "x0")
            unit = np.eye(2 + len(program))[:, :, None]
            outputs = np.broadcast_to(unit[0], (len(program), *unit[0].shape))  # mu
            end = run_ours(program, (unit[0] + 9.0 * unit[1], outputs, unit[2:]))[-1][:, 0]
            assert end[0] == pytest.approx(1.0, rel=1e-12)
            assert np.hypot.reduce(end[1:]) == pytest.approx(0.2, rel=1e-12)


@pytest.mark.parametrize("predict_x0", [True, False])
@pytest.mark.parametrize("orders", ORDERS)
def test_from_pure_noise_to_the_data(orders: tuple[int, int], predict_x0: bool) -> None:
    schedule = schedules.zero_terminal_snr(VP["linear"])
    for tau in (0.0, 1.0):
        for pece in (False, True):
            sampler = SASolver(
                7, *orders, tau, None, predict_x0=predict_x0, pece=pece, spacing="trailing", simple_order_2=tau == 0
            )
            program = sampler.program(schedule, "v")
            assert np.isfinite(program.A).all()
            assert program.A[0, 0, -1] == pytest.approx(tau * sampler.grid(schedule).sigmas[1])
            outputs = np.zeros((len(program), 1, 1))
            states = run_ours(sampler.program(schedule, "x0"), (np.ones((1, 1)), outputs + 0.7, outputs))
            np.testing.assert_allclose(states[-1], 0.7, rtol=1e-12)


def test_registers() -> None:
    """One for a corrector, and the estimates that are kept."""
    for (p, c), registers in {(1, 0): 1, (1, 1): 2, (2, 2): 3, (3, 4): 4, (4, 5): 5, (4, 0): 4}.items():
        assert SASolver(20, p, c).program(VP["linear"]).registers == registers


BAD: dict[str, Callable[[], object]] = {
    "predictor_order: got 5, expected a whole number from 1 to 4": lambda: SASolver(5, 5),
    "corrector_order: got 6, expected a whole number from 0 to 5": lambda: SASolver(5, 2, 6),
    "tau: got -1, expected a number in": lambda: SASolver(5, tau=-1),
    "tau: got .*, expected a number": lambda: SASolver(5, tau="1"),
    "tau: got 2 numbers, expected 5, one for every step": lambda: SASolver(5, tau=(1, 0)).program(VP["linear"]),
    "interval: got 0.8 before 0.2, expected fractions in order": lambda: SASolver(5, interval=(0.8, 0.2)),
    "interval: got 3, expected None or two fractions": lambda: SASolver(5, interval=3),
    "pece: got 1, expected True or False": lambda: SASolver(5, pece=1),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def test_tau_takes_arrays_and_tensors_of_numbers() -> None:
    for taus in (np.array([0.0, 1.0]), torch.tensor([0.0, 1.0]), [0, 1]):
        assert SASolver(2, tau=taus).tau == (0.0, 1.0)
