"""DPM-Solver and DPM-Solver++ against diffusers by impulse response, and wrong arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from diffusers import DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler, EDMDPMSolverMultistepScheduler

from dpm_solver_cases import ORDERS, ZERO_SNR
from exponential_cases import (
    GRIDS,
    PREDICTS,
    assert_same_response,
    coordinates,
    name_of,
    run_ours,
    run_solver,
    their_grid,
)
from oracles import in_float64
from sampler_cases import VP
from ulam import schedules
from ulam.programs.clip import DynamicThreshold
from ulam.samplers.dpm_solver import DPMSolver
from ulam.samplers.dpm_solver_pp import DPMSolverPP

ALGORITHMS: dict[str, tuple[type[DPMSolverPP | DPMSolver], bool]] = {
    "dpmsolver++": (DPMSolverPP, False),
    "sde-dpmsolver++": (DPMSolverPP, True),
    "dpmsolver": (DPMSolver, False),
    "sde-dpmsolver": (DPMSolver, True),
}
DIFFUSERS = [  # without order 3 of the SDE, missing in the noise form, else tested below
    (name, order, variant)
    for name, (_, sde) in ALGORITHMS.items()
    for order, variant in ORDERS
    if not (sde and order == 3)
]
SINGLESTEP = [case for case in DIFFUSERS if case[0] != "sde-dpmsolver"]
# -------------------------------------------------------------------------------------- impulse response


@pytest.mark.parametrize("grid", GRIDS, ids=name_of)
@pytest.mark.parametrize(("algorithm", "order", "variant"), DIFFUSERS)
@pytest.mark.parametrize("name", VP)
def test_multistep_impulse_response(
    name: str, algorithm: str, order: int, variant: str, grid: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cls, sde = ALGORITHMS[algorithm]
    prediction = ["epsilon", "sample", "v_prediction"][(order + len(algorithm) + grid["steps"]) % 3]
    zero = cls is DPMSolverPP
    theirs = in_float64(
        DPMSolverMultistepScheduler(
            solver_order=order,
            prediction_type=prediction,
            algorithm_type=algorithm,
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
    sampler = cls(order=order, variant=variant, sde=sde, final=final, **grid)
    program = sampler.program(VP[name], PREDICTS[prediction])
    assert abs(program.time - theirs.timesteps.numpy()).max() <= ("sigmas" in grid)
    assert_same_response(program, theirs, coordinates(sampler.grid(VP[name]), VP[name]), monkeypatch)
    assert program.registers == min(order, grid["steps"])


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 14, 15, 16])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("ends", [(None, False), (False, False), (True, True), (False, True)])
@pytest.mark.parametrize("order", [2, 3])
def test_orders_of_the_last_multistep_rows(
    order: int, ends: tuple[bool | None, bool], final: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = DPMSolverMultistepScheduler(
        solver_order=order,
        final_sigmas_type=final,
        euler_at_final=ends[1],
        **({} if ends[0] is None else {"lower_order_final": ends[0]}),
    )
    in_float64(theirs, VP["linear"]).set_timesteps(steps)
    sampler = DPMSolverPP(steps, order, lower_order_final=ends[0], euler_at_final=ends[1], final=final)
    program = sampler.program(VP["linear"])
    assert_same_response(program, theirs, sampler.grid(VP["linear"]).ratios, monkeypatch)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 11, 12, 20, 24])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize(("algorithm", "order", "variant"), [*SINGLESTEP, ("sde-dpmsolver++", 3, "midpoint")])
def test_singlestep_impulse_response(
    algorithm: str, final: str, order: int, variant: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls, sde = ALGORITHMS[algorithm]
    if cls is DPMSolver:  # diffusers has final_sigmas_type="zero" for the data form only
        final = "sigma_min"
    prediction = ["epsilon", "sample", "v_prediction"][(order + steps) % 3]
    theirs = DPMSolverSinglestepScheduler(
        solver_order=order,
        prediction_type=prediction,
        algorithm_type=algorithm,
        solver_type=variant,
        final_sigmas_type=final,
    )
    in_float64(theirs, VP["cosine"]).set_timesteps(steps)
    sampler = cls(steps, order, "singlestep", variant, sde, final=final)
    program = sampler.program(VP["cosine"], PREDICTS[prediction])
    assert program.time.tolist() == theirs.timesteps.tolist()
    assert_same_response(program, theirs, sampler.grid(VP["cosine"]).ratios, monkeypatch)


@pytest.mark.parametrize("sde", [False, True])
@pytest.mark.parametrize("kind", ["multistep", "singlestep"])
@pytest.mark.parametrize("prediction", PREDICTS)
def test_flow_impulse_response(prediction: str, kind: str, sde: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    order = 2 if sde else 3
    scheduler = {"multistep": DPMSolverMultistepScheduler, "singlestep": DPMSolverSinglestepScheduler}[kind]
    theirs = scheduler(
        solver_order=order,
        prediction_type=prediction,
        use_flow_sigmas=True,
        flow_shift=3.0,
        algorithm_type="sde-dpmsolver++" if sde else "dpmsolver++",
    )
    theirs.set_timesteps(12)
    schedule = schedules.flow(3.0)
    sampler = DPMSolverPP(order=order, kind=kind, sde=sde, sigmas=theirs.sigmas.numpy())
    program = sampler.program(schedule, PREDICTS[prediction])
    assert abs(1000 * program.time - theirs.timesteps.numpy()).max() < 1 + 1e-4
    if prediction == "v_prediction":  # diffusers' x_0 is that of a path with alpha^2 + sigma^2 = 1
        alpha, sigma = sampler.grid(schedule).alphas[:-1], sampler.grid(schedule).sigmas[:-1]
        with pytest.raises(AssertionError):
            assert_same_response(program, theirs, sampler.grid(schedule).sigmas, monkeypatch)
        m, x = 0.3, 1.1
        x0, eps = np.linalg.solve([[alpha[3], sigma[3]], [-sigma[3], alpha[3]]], [x, m])
        assert program.kx[3] * x + program.km[3] * m == pytest.approx(x0)
        assert alpha[3] * eps - sigma[3] * x0 == pytest.approx(m)
        return
    assert_same_response(program, theirs, sampler.grid(schedule).sigmas, monkeypatch)


@pytest.mark.parametrize("steps", [4, 10, 30])
@pytest.mark.parametrize(("algorithm", "order", "variant"), [case for case in DIFFUSERS if "++" in case[0]])
def test_edm_impulse_response(
    algorithm: str, order: int, variant: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an EDM schedule with predicts="raw" it is EDMDPMSolverMultistepScheduler on its default karras sigmas."""
    sde = ALGORITHMS[algorithm][1]
    theirs = EDMDPMSolverMultistepScheduler(solver_order=order, solver_type=variant, algorithm_type=algorithm)
    theirs.set_timesteps(steps)
    sampler, schedule = DPMSolverPP(steps, order, variant=variant, sde=sde), schedules.edm()
    program = sampler.program(schedule, "raw")
    np.testing.assert_allclose(np.log(program.time) / 4, theirs.timesteps, atol=1e-6)
    np.testing.assert_allclose(program.c_in, [theirs._get_conditioning_c_in(s) for s in program.time], rtol=1e-12)
    assert_same_response(program, theirs, sampler.grid(schedule).sigmas, monkeypatch)


@pytest.mark.parametrize("steps", [6, 20])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [
        ("multistep", "dpmsolver++"),
        ("multistep", "sde-dpmsolver++"),
        ("multistep", "dpmsolver"),
        ("multistep", "sde-dpmsolver"),
        ("singlestep", "dpmsolver++"),
        ("singlestep", "sde-dpmsolver++"),  # the noise form raises in diffusers
    ],
)
def test_clipping_equals_diffusers(
    kind: str, algorithm: str, prediction: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their thresholding with sample_max_value = 1 is clip=(-1, 1)."""
    cls, sde = ALGORITHMS[algorithm]
    scheduler = {"multistep": DPMSolverMultistepScheduler, "singlestep": DPMSolverSinglestepScheduler}[kind]
    theirs = scheduler(
        solver_order=2,
        prediction_type=prediction,
        algorithm_type=algorithm,
        thresholding=True,
        sample_max_value=1.0,
        final_sigmas_type="sigma_min",
    )
    in_float64(theirs, VP["cosine"]).set_timesteps(steps)
    sampler = cls(steps, 2, kind, sde=sde, clip=(-1, 1), final="sigma_min")
    program, draw = sampler.program(VP["cosine"], PREDICTS[prediction]), np.random.default_rng(1)
    signal = draw.normal(size=(3, 4)), draw.normal(size=(steps, 3, 4)), draw.normal(size=(steps, 3, 4))
    expected = run_solver(theirs, sampler.grid(VP["cosine"]).ratios, signal, monkeypatch)
    np.testing.assert_allclose(run_ours(program, signal), expected, rtol=1e-9, atol=1e-9)
    dynamic = dataclasses.replace(sampler, clip=DynamicThreshold(0.9, 2.0)).program(VP["cosine"], PREDICTS[prediction])
    assert dynamic.threshold.all() and (dynamic.lo == 0.9).all() and (dynamic.hi == 2).all()
    np.testing.assert_array_equal(dynamic.A, program.A)


# ------------------------------------------------------------------------------------------------- arguments

BAD: dict[str, Callable[[], object]] = {
    "order: got 4, expected a whole number from 1 to 3": lambda: DPMSolverPP(5, 4),
    "order: got 0, expected a whole number from 1 to 3": lambda: DPMSolver(5, 0),
    "kind: got 'both', expected one of multistep, singlestep": lambda: DPMSolverPP(5, kind="both"),
    "variant: got 'bh2', expected one of midpoint, heun, dpmsolver": lambda: DPMSolverPP(5, variant="bh2"),
    "sde: got 1, expected True or False": lambda: DPMSolverPP(5, sde=1),
    "lower_order_final: got 'no', expected True or False": lambda: DPMSolver(5, lower_order_final="no"),
    "euler_at_final: got None, expected True or False": lambda: DPMSolver(5, euler_at_final=None),
    "clip: got .*, expected None": lambda: DPMSolverPP(5, clip=3),
    "steps: got None, expected a number of steps": lambda: DPMSolverPP(),
    "predicts: got 'eps', which says nothing": lambda: DPMSolver(5, spacing="trailing").program(ZERO_SNR, "eps"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BAD[message]()
