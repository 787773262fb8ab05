"""Samplers by k-diffusion's and ComfyUI's names against their loops: every coefficient of the last state."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import k_loops as loops
from ulam import schedules
from ulam.samplers import DDIM, DPM2, LMS, DPMSolverPP, Euler, EulerAncestral
from ulam.samplers.dpm_fast import DPMFast
from ulam.samplers.dpm_solver_pp_ancestral import DPMSolverPP2SAncestral
from ulam.samplers.gradient_estimation import GradientEstimation
from ulam.samplers.grid import GridSampler
from ulam.samplers.heun_pp import HeunPP
from ulam.samplers.lms import adams_bashforth
from ulam.samplers.res_multistep import RESMultistep
from ulam.samplers.restart import Restart
from ulam.samplers.seeds import SEEDS
from ulam.schedules import Schedule

SCHEDULES: dict[str, Schedule] = {
    "ve": schedules.ve(0.01, 50),
    "linear": schedules.vp_linear(),
    "flow": schedules.flow(3.0),
}
CASES = [("ve", "x0"), ("linear", "eps"), ("linear", "v"), ("flow", "flow")]
LEVELS = (14.0, 9.0, 5.5, 4.0, 2.1, 1.0, 0.6, 0.25, 0.1)  # of sigma / alpha, uneven
Make = Callable[..., GridSampler]

MULTISTEP: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "ipndm": (loops.ipndm, {"polynomial": "index"}),
    "ipndm_v": (loops.ipndm_v, {"euler_at_final": True}),
    "deis": (loops.deis_tab, {"polynomial": "vp-time"}),
}
# the loop, its arguments, ours; for flow schedules: None where ComfyUI's is for others alone, or the options there
PAIRS: dict[str, tuple[Callable[..., Any], dict[str, Any], Make, dict[str, Any] | None]] = {
    "euler_ancestral": (
        loops.euler_ancestral, {"eta": 0.7, "s_noise": 1.1}, partial(EulerAncestral, eta=0.7, s_noise=1.1), None,
    ),
    "euler_ancestral RF": (
        partial(loops.euler_ancestral, form="RF"), {"eta": 0.7, "s_noise": 1.1},
        partial(EulerAncestral, eta=0.7, s_noise=1.1), {"rectified": True},
    ),
    "euler_cfg_pp": (
        loops.euler_ancestral, {"eta": 0.0, "s_noise": 0.0, "cfg_pp": True}, partial(Euler, cfg_pp=True), {},
    ),
    "euler_ancestral_cfg_pp": (
        loops.euler_ancestral, {"eta": 1.0, "s_noise": 0.9, "cfg_pp": True},
        partial(EulerAncestral, s_noise=0.9, cfg_pp=True), {},
    ),
    "dpm_2_ancestral": (
        loops.second_order_ancestral, {"kind": "dpm_2", "eta": 1.0, "s_noise": 1.1},
        partial(DPM2, eta=1.0, s_noise=1.1), {"rectified": True},
    ),
    "dpmpp_2s_ancestral": (
        loops.second_order_ancestral, {"kind": "dpmpp_2s", "eta": 0.8, "s_noise": 1.1},
        partial(DPMSolverPP2SAncestral, eta=0.8, s_noise=1.1), {"rectified": True},
    ),
    "dpmpp_2s_ancestral_cfg_pp": (
        loops.second_order_ancestral, {"kind": "dpmpp_2s", "eta": 1.0, "s_noise": 1.0, "cfg_pp": True},
        partial(DPMSolverPP2SAncestral, cfg_pp=True), {"rectified": True},
    ),
    "heunpp2": (loops.heun_pp, {}, HeunPP, {}),
    "gradient_estimation": (loops.gradient_estimation, {"gamma": 2.0}, GradientEstimation, {}),
    "gradient_estimation_cfg_pp": (
        loops.gradient_estimation, {"gamma": 1.7, "cfg_pp": True},
        partial(GradientEstimation, gamma=1.7, cfg_pp=True), {},
    ),
    "res_multistep": (loops.res_multistep, {"eta": 0.0}, RESMultistep, {}),
    "res_multistep_cfg_pp": (
        loops.res_multistep, {"eta": 0.0, "cfg_pp": True}, partial(RESMultistep, cfg_pp=True), {},
    ),
    "res_multistep_ancestral": (
        loops.res_multistep, {"eta": 0.9, "s_noise": 1.1}, partial(RESMultistep, eta=0.9, s_noise=1.1), None,
    ),
    "res_multistep_ancestral_cfg_pp": (
        loops.res_multistep, {"eta": 1.0, "cfg_pp": True}, partial(RESMultistep, eta=1.0, cfg_pp=True), None,
    ),
    "dpmpp_2m_cfg_pp": (
        loops.dpmpp_2m_cfg_pp, {}, partial(DPMSolverPP, cfg_pp=True, lower_order_final=False), None,
    ),
    "exp_heun_2_x0": (
        loops.exp_heun, {"eta": 0.0, "weights": "phi_2"}, partial(SEEDS, eta=0.0, r=1.0, solver_type="phi_2"), {},
    ),
    "exp_heun_2_x0 phi_1": (loops.exp_heun, {"eta": 0.0, "weights": "phi_1"}, partial(SEEDS, eta=0.0, r=1.0), {}),
    "exp_heun_2_x0_sde": (
        loops.exp_heun, {"eta": 0.8, "weights": "phi_2"}, partial(SEEDS, eta=0.8, r=1.0, solver_type="phi_2"), {},
    ),
}  # fmt: skip


def levels_on(name: str) -> tuple[float, ...]:
    return tuple(u / (1 + u) for u in LEVELS) if name == "flow" else LEVELS


def ends(name: str) -> list[dict[str, Any]]:
    """Grids to the data, to noise, and of one and two steps; on flow schedules from pure noise too."""
    levels = levels_on(name)
    grids: list[dict[str, Any]] = [
        {"sigmas": (*levels, 0.0)}, {"sigmas": levels[:-1], "final": levels[-1]}, {"sigmas": (*levels[:2], 0.0)},
        {"sigmas": (levels[0], 0.0)},
    ]  # fmt: skip
    return grids + ([{"sigmas": (1.0, *levels, 0.0)}] if name == "flow" else [])


def assert_equal(mine: Any, theirs: Any) -> None:
    assert np.isfinite(theirs).all()
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-10 * abs(theirs).max())


@pytest.mark.parametrize(("name", "predicts"), CASES)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("known_as", MULTISTEP)
def test_multistep_samplers_are_the_loops(known_as: str, order: int, name: str, predicts: str) -> None:
    weights, options = MULTISTEP[known_as]
    loop = partial(loops.multistep, weights=weights, order=order)
    for grid in ends(name):
        mine, theirs, *_ = loops.responses(LMS(order=order, **options, **grid), SCHEDULES[name], predicts, loop)
        assert_equal(mine, theirs)


@pytest.mark.parametrize(("name", "predicts"), CASES)
@pytest.mark.parametrize("known_as", PAIRS)
def test_samplers_are_the_loops(known_as: str, name: str, predicts: str) -> None:
    loop, arguments, make, on_flow = PAIRS[known_as]
    if on_flow is None if name == "flow" else known_as.endswith("RF"):
        return
    options = on_flow if name == "flow" and on_flow is not None else {}
    for grid in ends(name):
        if name == "flow" and grid["sigmas"][0] == 1 and loop is loops.exp_heun:
            continue  # ComfyUI starts it at another level
        sampler = make(**options, **grid)
        mine, theirs, _, asked = loops.responses(sampler, SCHEDULES[name], predicts, loop, **arguments)
        assert_equal(mine, theirs)
        program = sampler.program(SCHEDULES[name], predicts)
        if name != "linear":  # there the network is told the level itself
            np.testing.assert_allclose(program.time[program.evaluates], asked, rtol=1e-12)


@pytest.mark.parametrize(("name", "predicts"), CASES[:3])
@pytest.mark.parametrize("nfe", [2, 3, 4, 5, 6, 9, 11])
def test_dpm_fast_is_the_loop(nfe: int, name: str, predicts: str) -> None:
    values = np.linspace(12.0, 0.3, nfe)  # only its ends count
    for grid in ({"sigmas": (*values, 0.0)}, {"sigmas": tuple(values), "final": 0.2}):
        sampler = DPMFast(**grid)
        loop = partial(loops.dpm_fast, nfe=nfe)
        mine, theirs, levels, asked = loops.responses(sampler, SCHEDULES[name], predicts, loop)
        assert_equal(mine, theirs)
        assert levels.ratios[-1] == pytest.approx(grid.get("final", 0.3), rel=1e-12)
        np.testing.assert_allclose(levels.ratios[:-1], asked, rtol=1e-10)
        for eta in (0.3, 1.0, 4.0):
            loop = partial(loops.dpm_fast, nfe=nfe, eta=eta, s_noise=1.1)
            mine, theirs, *_ = loops.responses(DPMFast(eta=eta, s_noise=1.1, **grid), SCHEDULES[name], predicts, loop)
            assert_equal(mine, theirs)


PLAN = ((3, 2, 0.6, 4.0), (2, 1, 0.1, 0.9))


@pytest.mark.parametrize(("name", "predicts"), CASES[:3])
def test_restart_is_the_loop(name: str, predicts: str) -> None:
    for grid in ends(name)[:2]:
        sampler = Restart(restarts=PLAN, s_noise=1.1, **grid)
        loop = partial(loops.restart, plan=PLAN, s_noise=1.1)
        assert_equal(*loops.responses(sampler, SCHEDULES[name], predicts, loop)[:2])


@pytest.mark.parametrize(("steps", "plan"), [(19, ()), (20, ((9, 1, 0.1, 2.0),)), (44, ((11, 2, 0.1, 2.0),))])
def test_restart_by_default_is_a1111s(steps: int, plan: tuple[Any, ...]) -> None:
    sampler = Restart(steps, sigmas="karras")
    schedule = SCHEDULES["linear"]
    assert len(sampler.grid(schedule)) == steps - sum(n * times for n, times, *_ in plan)
    assert sampler.program(schedule).nfe == 2 * steps - 1
    assert_equal(*loops.responses(sampler, schedule, "eps", partial(loops.restart, plan=plan))[:2])


def their_ipndm_v(steps: np.ndarray) -> np.ndarray:
    """ComfyUI's weights of order 4, of the length of the step; `steps` are the last four, newest first."""
    h, h_1, h_2, h_3 = steps
    first = (1 - h / (3 * (h + h_1)) * (h * (h + h_1)) / (h_1 * (h_1 + h_2))) / 2
    second = (1 - h / (3 * (h + h_1))) / 2 + (1 - h / (2 * (h + h_1))) * h / (6 * (h + h_1 + h_2))
    second *= h * (h + h_1) * (h + h_1 + h_2) / (h_1 * (h_1 + h_2) * (h_1 + h_2 + h_3))
    a, b = h_1 / h_2, h_1 * (h_1 + h_2) / (h_2 * (h_2 + h_3))
    return np.array([
        1 + h / h_1 / 2 + first + second,
        -h / h_1 / 2 - (1 + a) * first - (1 + a + b) * second,
        a * first + (a + b * (1 + h_2 / h_3)) * second,
        -b * a * second,
    ])  # fmt: skip


def test_ipndm_v_is_adams_bashforth_which_comfyuis_is_not() -> None:
    """Weights must add up to 1, else an Euler step is wrong; and integrate powers exactly [Hairer 1993, III.5]."""
    np.testing.assert_allclose(adams_bashforth(np.arange(5.0)) * 24, [55, -59, 37, -9], rtol=1e-12)
    np.testing.assert_allclose(their_ipndm_v(np.ones(4)) * 24, [57, -65, 43, -11], rtol=1e-12)
    steps = np.array([0.5, 1.0, 1.5, 3.0])
    u = np.append(0.0, np.cumsum(steps))[::-1]  # rising, with the step from u[-2] = 0.5 to u[-1] = 0
    mine = adams_bashforth(u) / (u[-1] - u[-2])
    nodes = u[:-1][::-1]
    for power in range(4):
        exact = (u[-1] ** (power + 1) - u[-2] ** (power + 1)) / (power + 1) / (u[-1] - u[-2])
        assert mine @ nodes**power == pytest.approx(exact, rel=1e-12)
    assert abs(their_ipndm_v(steps).sum() - 1) > 0.004


@pytest.mark.parametrize("make", [Restart, partial(Restart, s_noise=0.9)])
def test_restarts_are_checked(make: Make) -> None:
    with pytest.raises(ValueError, match="restarts: got None with levels in a list, expected intervals"):
        make(sigmas=(3.0, 1.0, 0.1))
    with pytest.raises(ValueError, match="restarts: got 2 to 1, expected 0 < low < high"):
        make(9, restarts=((3, 1, 2.0, 1.0),))
    with pytest.raises(
        ValueError, match=r"restarts: got 3 to 3\.1, expected an interval that holds a step of the grid"
    ):
        make(5, restarts=((3, 1, 3.0, 3.1),)).program(SCHEDULES["linear"])
    with pytest.raises(ValueError, match=r"restarts: got 400 steps, two of them at one training step"):
        make(9, restarts=((400, 1, 0.3, 2.0),)).index_program(SCHEDULES["linear"])


BAD: dict[str, Callable[[], object]] = {
    "polynomial: got 'time', expected one of sigma, index, vp-time": lambda: LMS(5, polynomial="time"),
    "euler_at_final: got 1, expected True or False": lambda: LMS(5, euler_at_final=1),  # type: ignore[arg-type]
    "eta: got 9 with rectified=True, expected at most": lambda: EulerAncestral(5, eta=9.0, rectified=True).program(
        SCHEDULES["flow"], "flow"
    ),
    "cfg_pp: got 1, expected True or False": lambda: Euler(5, cfg_pp=1),  # type: ignore[arg-type]
    "cfg_pp: got True in DPMSolverPP.*, expected kind='multistep', order=2": lambda: DPMSolverPP(5, 3, cfg_pp=True),
    "rederive_eps, cfg_pp: got both, expected at most one": lambda: DDIM(5, rederive_eps=True, cfg_pp=True),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def test_ddim_cfg_pp_is_the_papers_row() -> None:
    """x_s = alpha_s D_guided + sigma_s eps_unguided [Chung 2024]."""
    schedule = SCHEDULES["linear"]
    sampler = DDIM(6, cfg_pp=True)
    grid, program = sampler.grid(schedule), sampler.program(schedule, "eps")
    draw = np.random.default_rng(3)
    x, m, m_u = draw.normal(size=(3, 4)), draw.normal(size=(6, 3, 4)), draw.normal(size=(6, 3, 4))
    mine, state = loops.ours(program, (x, m, m_u, m)), x
    for i in range(6):
        D = (state - grid.sigmas[i] * m[i]) / grid.alphas[i]
        state = grid.alphas[i + 1] * D + grid.sigmas[i + 1] * m_u[i]
    assert_equal(mine, state)


CFG_PP: dict[str, Make] = {
    "ddim": DDIM,
    "euler": Euler,
    "euler churn": partial(Euler, churn=2.0, s_tmax=5.0),
    "euler_ancestral": EulerAncestral,
    "dpmpp_2m": DPMSolverPP,
    "dpmpp_2s_ancestral": DPMSolverPP2SAncestral,
    "res_multistep": RESMultistep,
    "res_multistep_ancestral": partial(RESMultistep, eta=1.0),
    "gradient_estimation": GradientEstimation,
}


@pytest.mark.parametrize("known_as", CFG_PP)
@pytest.mark.parametrize(("name", "predicts"), CASES)
def test_without_guidance_cfg_pp_changes_nothing(known_as: str, name: str, predicts: str) -> None:
    make = CFG_PP[known_as]
    """D_u is D and eps_u is eps then, so every sampler is itself."""
    draw = np.random.default_rng(5)
    for grid in ends(name)[:2]:
        plus, plain = (make(cfg_pp=cfg_pp, **grid).program(SCHEDULES[name], predicts) for cfg_pp in (True, False))
        assert plus.reads_unguided and not plain.reads_unguided and plus.order == plain.order
        assert plus.registers == plain.registers + 1
        m, z = draw.normal(size=(2, 2 * len(plain), 3, 4))
        x = draw.normal(size=(3, 4))
        assert_equal(loops.ours(plus, (x, m, m, z)), loops.ours(plain, (x, m, m, z)))
