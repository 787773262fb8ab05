"""ComfyUI's and k-diffusion's samplers on data of known laws: points exactly, Gaussians at the declared order."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

import k_loops as loops
from ode_cases import assert_law_of_a_point_is_kept, assert_point_is_kept, gaussian_variance
from ulam import schedules
from ulam.samplers import DDIM, DPM2, LMS, DPMSolverPP, Euler, EulerAncestral
from ulam.samplers.dpm_fast import DPMFast
from ulam.samplers.dpm_solver_pp_ancestral import DPMSolverPP2SAncestral
from ulam.samplers.gradient_estimation import GradientEstimation
from ulam.samplers.heun_pp import HeunPP
from ulam.samplers.res_multistep import RESMultistep
from ulam.samplers.restart import Restart
from ulam.samplers.seeds import SEEDS
from ulam.schedules import Schedule

SCHEDULES: dict[str, Schedule] = {
    "cosine": schedules.vp_cosine(1000),
    "ve": schedules.ve(0.01, 50),
    "edm": schedules.edm(),
    "flow": schedules.flow(3.0),
    "sub_vp": schedules.sub_vp(),
    "zero_snr": schedules.zero_terminal_snr(schedules.vp_linear()),
}
PREDICTS = {"cosine": ("eps", "v"), "ve": ("x0", "eps"), "edm": ("raw",), "flow": ("flow", "x0"), "sub_vp": ("score",)}
PAIRS = [(name, predicts) for name in SCHEDULES for predicts in PREDICTS.get(name, ("v", "x0"))]
DETERMINISTIC: dict[str, Any] = {
    "ipndm": partial(LMS, polynomial="index"),
    "deis": partial(LMS, order=3, polynomial="vp-time"),
    "heunpp2": HeunPP,
    "gradient_estimation": GradientEstimation,
    "gradient_estimation_cfg_pp": partial(GradientEstimation, cfg_pp=True),
    "res_multistep": RESMultistep,
    "res_multistep_cfg_pp": partial(RESMultistep, cfg_pp=True),
    "exp_heun_2_x0": partial(SEEDS, eta=0.0, r=1.0, solver_type="phi_2"),
    "exp_heun_2_x0 phi_1": partial(SEEDS, eta=0.0, r=1.0),
    "dpmpp_2s": partial(DPMSolverPP2SAncestral, eta=0.0),
    "dpm_fast": DPMFast,
    "euler_cfg_pp": partial(Euler, cfg_pp=True),
    "ddim cfg_pp": partial(DDIM, cfg_pp=True),
    "dpmpp_2m_cfg_pp": partial(DPMSolverPP, cfg_pp=True),
}
STOCHASTIC: dict[str, Any] = {
    "euler_ancestral RF": partial(EulerAncestral, rectified=True),
    "euler_ancestral RF eta 0.4": partial(EulerAncestral, eta=0.4, rectified=True),
    "euler_ancestral_cfg_pp": partial(EulerAncestral, cfg_pp=True),
    "dpm_2_ancestral RF": partial(DPM2, eta=1.0, rectified=True),
    "dpmpp_2s_ancestral": DPMSolverPP2SAncestral,
    "dpmpp_2s_ancestral RF eta 0.6": partial(DPMSolverPP2SAncestral, eta=0.6, rectified=True),
    "dpmpp_2s_ancestral_cfg_pp": partial(DPMSolverPP2SAncestral, cfg_pp=True),
    "res_multistep_ancestral": partial(RESMultistep, eta=1.0),
    "res_multistep_ancestral eta 3": partial(RESMultistep, eta=3.0),
    "exp_heun_2_x0_sde": partial(SEEDS, r=1.0, solver_type="phi_2"),
    "exp_heun_2_x0_sde eta 0.5": partial(SEEDS, eta=0.5, r=1.0, solver_type="phi_2"),
    "dpm_fast eta": partial(DPMFast, eta=1.0),
    "heunpp2 churn": partial(HeunPP, churn=2.0, s_tmin=0.3, s_tmax=8.0),
    "ddim cfg_pp": partial(DDIM, eta=1.0, cfg_pp=True),
    "restart": partial(Restart, restarts=((3, 2, 0.5, 3.0), (2, 1, 0.5, 9.0))),
}


def grids(name: str) -> list[dict[str, Any]]:
    """Grids to the data and to a level above; from alpha = 0 where there is one."""
    if name == "flow":
        return [{"steps": 7}, {"steps": 7, "final": 0.02}]
    if name == "zero_snr":
        return [{"steps": 7, "spacing": "trailing"}, {"steps": 7, "spacing": "trailing", "final": "sigma_min"}]
    return [{"steps": 7}, {"sigmas": (10.0, 5.0, 2.0, 1.0, 0.5), "final": 0.2}]


@pytest.mark.parametrize(("name", "predicts"), PAIRS)
@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_the_flow_of_a_point_is_exact(sampler: str, name: str, predicts: str) -> None:
    for grid in grids(name):
        assert_point_is_kept(DETERMINISTIC[sampler](**grid), SCHEDULES[name], predicts)


@pytest.mark.parametrize(("name", "predicts"), PAIRS)
@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_the_law_of_a_point_is_kept(sampler: str, name: str, predicts: str) -> None:
    for grid in grids(name):
        assert_law_of_a_point_is_kept(STOCHASTIC[sampler](**grid), SCHEDULES[name], predicts)


@pytest.mark.parametrize("name", ["cosine", "ve", "flow"])
@pytest.mark.parametrize("sampler", [s for s in STOCHASTIC if "eta 3" not in s and "heunpp2" not in s])
def test_the_variance_converges_at_the_declared_order(sampler: str, name: str) -> None:
    schedule, errors = SCHEDULES[name], []
    for steps in (99, 198, 396):
        levels = np.geomspace(15, 0.1, steps + 1)
        levels = levels / (1 + levels) if name == "flow" else levels
        options: dict[str, Any] = {"sigmas": levels[:-1], "final": float(levels[-1])}
        if sampler == "restart":
            options["restarts"] = ((steps // 4, 2, 0.5, 3.0),)
        solver = STOCHASTIC[sampler](**options)
        variance, exact = gaussian_variance(solver, schedule, 0.5)
        errors.append(abs(variance / exact - 1))
    order = solver.program(schedule, "v").order
    assert np.log2(errors[-2] / errors[-1]) >= order - 0.3 and errors[-1] < 0.04, errors


def test_ancestral_res_keeps_alpha_on_flow_schedules_where_comfyuis_does_not() -> None:
    """At s the mean of data at mu is (1 - s) mu; theirs steps down to s_down < s and adds noise: (1 - s_down) mu."""
    mu, levels = 1.7, np.array([0.9, 0.6])
    outputs = iter([(np.full((1, 1), mu), np.full((1, 1), mu))])
    model = loops.Model("x0", outputs, flow=True)
    mean = loops.res_multistep((1 - levels[:1]) * mu, levels, model, lambda: np.zeros((1, 1)), eta=1.0)
    down, _ = loops.ancestral(*levels, 1.0)
    assert mean == pytest.approx((1 - down) * mu) and abs(mean - (1 - levels[1]) * mu) > 0.1
    sampler = RESMultistep(sigmas=levels[:1], final=0.6, eta=1.0)
    assert_law_of_a_point_is_kept(sampler, SCHEDULES["flow"], "x0")
