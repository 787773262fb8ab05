"""Every fused scheduler against diffusers' own: the same samples, call by call, with the same generator."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from fuse_cases import assert_same_loops, begin, loop
from ulam import schedules
from ulam.integrations.diffusers import fuse
from ulam.samplers import DDIM

LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
TRAILING = {"timestep_spacing": "trailing"}
GRIDS: list[dict[str, Any]] = [
    {},
    LEADING,
    TRAILING,
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
]
PREDICTIONS = ("epsilon", "sample", "v_prediction")
SIGMA_MIN = {"final_sigmas_type": "sigma_min"}


def check(name: str, steps: int = 12, *, step: dict[str, Any] | None = None, **config: Any) -> None:
    theirs, ours = (getattr(diffusers, name)(**config) for _ in range(2))
    doubled = str(config.get("variance_type")).startswith("learned")
    runs = [loop(scheduler, steps, doubled=doubled, **(step or {})) for scheduler in (fuse(ours), theirs)]
    assert_same_loops(*runs)


def over(*names: str, grids: list[dict[str, Any]], predictions: tuple[str, ...] = PREDICTIONS) -> list[Any]:
    return [
        pytest.param(name, {**grid, "prediction_type": prediction}, id=f"{name}-{prediction}-{'-'.join(grid)}")
        for name in names
        for prediction in predictions
        for grid in grids
    ]


@pytest.mark.parametrize(
    ("name", "config"),
    [
        *over("DDPMScheduler", grids=[{}, LEADING, TRAILING, {"timestep_spacing": "linspace"}]),
        *over("DDIMScheduler", grids=[{}, LEADING, {"set_alpha_to_one": False}]),
        *over("PNDMScheduler", grids=[{}, LEADING], predictions=("epsilon", "v_prediction")),
        *over("LCMScheduler", grids=[{}]),
        *over("EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler", grids=GRIDS),
        *over("KDPM2DiscreteScheduler", grids=GRIDS, predictions=("epsilon", "v_prediction")),
        *over("EulerAncestralDiscreteScheduler", grids=GRIDS[:3], predictions=("epsilon", "v_prediction")),
        *over("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler", grids=GRIDS),
        *over("DPMSolverSinglestepScheduler", grids=[{}, *GRIDS[3:]]),
    ],
)
def test_predictions_and_grids(name: str, config: dict[str, Any]) -> None:
    check(name, 10 if name == "PNDMScheduler" else 12, **config)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large", "learned_range", "other"])
@pytest.mark.parametrize("offset", [0, 1])
def test_ddpm_variances(variance: str, offset: int) -> None:
    check("DDPMScheduler", variance_type=variance, steps_offset=offset)


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler", "LCMScheduler", "HeunDiscreteScheduler"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_clip_sample(name: str, prediction: str) -> None:
    check(name, clip_sample=True, clip_sample_range=0.7, prediction_type=prediction)
    check(name, clip_sample=False, prediction_type=prediction)


@pytest.mark.parametrize("most", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    "name",
    [
        "DDPMScheduler",
        "DDIMScheduler",
        "LCMScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "UniPCMultistepScheduler",
        "DEISMultistepScheduler",
    ],
)
def test_dynamic_thresholding(name: str, most: float) -> None:
    check(name, thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=most)


def test_edm_dynamic_thresholding_of_the_preconditioned_output() -> None:
    check("EDMDPMSolverMultistepScheduler", thresholding=True, sample_max_value=2.0)


@pytest.mark.parametrize("rederive", [False, True])
@pytest.mark.parametrize("config", [{}, {"thresholding": True}, {"clip_sample": False}, TRAILING])
def test_ddim_eta(config: dict[str, Any], rederive: bool) -> None:
    steps = 10 if config is TRAILING else 12
    check("DDIMScheduler", steps, step={"eta": 0.7, "use_clipped_model_output": rederive}, **config)


def test_ddim_variance_noise() -> None:
    theirs = diffusers.DDIMScheduler()
    ours = fuse(theirs)
    x, generator = begin(theirs)
    m, z = (torch.randn(x.shape, generator=generator) for _ in range(2))
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(10)
    samples = [s.step(m, 500, x, eta=1.0, variance_noise=z).prev_sample for s in (ours, theirs)]
    torch.testing.assert_close(*samples, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("spacing", "steps"), [("linspace", 12), ("trailing", 30)])
def test_ddim_goes_to_the_next_timestep_where_diffusers_does_not(spacing: str, steps: int) -> None:
    """[Song 2021a, eq. 12] steps from one time of the grid to the next; diffusers always steps by T // n.

    The oracle is the equation in float64 on the scheduler's own timesteps, by impulse on the output of each call.
    """
    scheduler = fuse(diffusers.DDIMScheduler(clip_sample=False, timestep_spacing=spacing))
    scheduler.set_timesteps(steps)
    abar = np.append(schedules.vp_linear().alphas_cumprod[scheduler.timesteps.numpy()], 1.0)
    x, m = torch.full((1, 1, 1, 1), 0.3), torch.full((1, 1, 1, 1), -1.2)
    for i, t in enumerate(scheduler.timesteps):
        D = (0.3 + np.sqrt(1 - abar[i]) * 1.2) / np.sqrt(abar[i])
        expected = np.sqrt(abar[i + 1]) * D - 1.2 * np.sqrt(1 - abar[i + 1])
        assert scheduler.step(m, t, x).prev_sample.item() == pytest.approx(expected, rel=2e-5, abs=2e-5)
        if spacing == "linspace" and 0 < i < steps - 1:
            theirs = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing=spacing)
            theirs.set_timesteps(steps)
            assert abs(theirs.step(m, t, x).prev_sample.item() - expected) > 1e-3 * abs(expected)
    assert DDIM(steps, spacing=spacing).program(schedules.vp_linear()).time.tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize("timestep", [1, 377, 999])
def test_ddim_off_its_grid(timestep: int) -> None:
    theirs = diffusers.DDIMScheduler()
    ours = fuse(theirs)
    x, generator = begin(theirs)
    m = torch.randn(x.shape, generator=generator)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(7)
    outputs = [s.step(m, timestep, x, return_dict=False) for s in (ours, theirs)]
    torch.testing.assert_close(outputs[0][0], outputs[1][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(outputs[0][1], outputs[1][1], rtol=1e-5, atol=1e-5)


def test_ddpm_before_set_timesteps_has_all_training_steps() -> None:
    theirs = diffusers.DDPMScheduler(num_train_timesteps=25)
    assert_same_loops(loop(fuse(theirs)), loop(theirs))


@pytest.mark.parametrize("times", [[999, 700, 300, 20], [800, 100]])
@pytest.mark.parametrize("name", ["DDPMScheduler", "LCMScheduler", "DPMSolverMultistepScheduler"])
def test_custom_timesteps(name: str, times: list[int]) -> None:
    theirs = getattr(diffusers, name)()
    ours = fuse(theirs)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(timesteps=times)
    assert_same_loops(loop(ours), loop(theirs))


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("one", [False, True])
def test_pndm_starts(skip: bool, one: bool) -> None:
    for steps in (10, 25):
        check("PNDMScheduler", steps, skip_prk_steps=skip, set_alpha_to_one=one)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "EDMEulerScheduler"])
def test_churn(name: str, prediction: str) -> None:
    if (name, prediction) != ("EDMEulerScheduler", "sample"):
        step = {"s_churn": 8.0, "s_tmin": 0.05, "s_tmax": 5.0, "s_noise": 1.01}
        check(name, step=step, prediction_type=prediction)


@pytest.mark.parametrize(
    "config",
    [
        {**SIGMA_MIN},
        {"interpolation_type": "log_linear"},
        {"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", **TRAILING},
        {"beta_schedule": "scaled_linear", "sigma_min": 0.05, "sigma_max": 9.0, "use_karras_sigmas": True},
    ],
)
def test_euler_options(config: dict[str, Any]) -> None:
    check("EulerDiscreteScheduler", **config)


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler", "LCMScheduler"])
@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_zero_terminal_snr(name: str, prediction: str) -> None:
    spacing = {} if name == "LCMScheduler" else TRAILING
    check(name, 10, rescale_betas_zero_snr=True, prediction_type=prediction, **spacing)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_orders(order: int) -> None:
    check("LMSDiscreteScheduler", step={"order": order})


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sigmas", ["karras", "exponential"])
def test_edm(sigmas: str, prediction: str) -> None:
    config = {"sigma_schedule": sigmas, "prediction_type": prediction, "sigma_data": 0.7}
    check("EDMEulerScheduler", **config)
    for more in ({}, SIGMA_MIN, {"solver_order": 3, "solver_type": "heun"}, {"algorithm_type": "sde-dpmsolver++"}):
        check("EDMDPMSolverMultistepScheduler", **config, **more)


def test_edm_takes_an_estimate_of_x0() -> None:
    theirs = diffusers.EDMEulerScheduler()
    ours = fuse(theirs)
    x, generator = begin(theirs)
    D = torch.randn(x.shape, generator=generator)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(6)
    samples = [s.step(x, s.timesteps[2], x, pred_original_sample=D, return_dict=False) for s in (ours, theirs)]
    for mine, other in zip(*samples, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"shift": 3.0},
        {"stochastic_sampling": True},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        {"shift_terminal": 0.1},
    ],
)
def test_flow_matching(config: dict[str, Any]) -> None:
    check("FlowMatchEulerDiscreteScheduler", **config)


@pytest.mark.parametrize("steps", [9, 16])
@pytest.mark.parametrize("solver", ["midpoint", "heun"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpm_solver_orders(order: int, solver: str, steps: int) -> None:
    config = {"solver_order": order, "solver_type": solver}
    many, single = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
    for name in (many, single):
        check(name, steps, **config)
        check(name, steps, **config, **SIGMA_MIN)
        check(name, steps, **config, **SIGMA_MIN, algorithm_type="dpmsolver")
    check(single, steps, **config, lower_order_final=True)
    check(many, steps, **config, euler_at_final=True)
    if order < 3:  # of order 3 the formula has another sign than diffusers
        check(many, steps, **config, algorithm_type="sde-dpmsolver++")
        check(many, steps, **config, **SIGMA_MIN, algorithm_type="sde-dpmsolver")
    if order < 3 or solver == "midpoint":
        check(single, steps, **config, algorithm_type="sde-dpmsolver++")


@pytest.mark.parametrize(
    "config",
    [
        {"use_lu_lambdas": True},
        {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2"},
        {"variance_type": "learned_range"},
        {"lower_order_final": False, **SIGMA_MIN},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", **TRAILING},
    ],
)
def test_dpm_solver_options(config: dict[str, Any]) -> None:
    check("DPMSolverMultistepScheduler", 16, **config)


@pytest.mark.parametrize("steps", [9, 16])
@pytest.mark.parametrize("predict_x0", [True, False])
@pytest.mark.parametrize("solver", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_orders(order: int, solver: str, predict_x0: bool, steps: int) -> None:
    config = {"solver_order": order, "solver_type": solver, "predict_x0": predict_x0, **SIGMA_MIN}
    check("UniPCMultistepScheduler", steps, **config)
    check("UniPCMultistepScheduler", steps, **config, lower_order_final=False, disable_corrector=[0, 3])


@pytest.mark.parametrize(("offset", "steps"), [(1, 34), (1, 20), (5, 10), (4, 9), (3, 12)])
@pytest.mark.parametrize("name", ["DDIM", "PNDM"])
def test_leading_steps_end_where_those_of_diffusers_do(name: str, offset: int, steps: int) -> None:
    """An offset of at least T // n has the last step go to a training step, which is not the data yet."""
    options = {"skip_prk_steps": True} if name == "PNDM" else {"timestep_spacing": "leading"}
    check(f"{name}Scheduler", steps, num_train_timesteps=37, steps_offset=offset, set_alpha_to_one=True, **options)


@pytest.mark.parametrize("steps", [9, 16])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_orders(order: int, steps: int) -> None:
    check("DEISMultistepScheduler", steps, solver_order=order)
    check("DEISMultistepScheduler", steps, solver_order=order, lower_order_final=False)


@pytest.mark.parametrize("name", ["DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep"])
def test_solvers_on_flow_sigmas(name: str) -> None:
    check(f"{name}Scheduler", 10, use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("DDPMScheduler", 3),
        ("DDIMScheduler", 3),
        ("EulerDiscreteScheduler", 3),
        ("EulerAncestralDiscreteScheduler", 3),
        ("HeunDiscreteScheduler", 4),
        ("KDPM2DiscreteScheduler", 4),
        ("DPMSolverMultistepScheduler", 3),
        ("DPMSolverSinglestepScheduler", 4),
        ("DPMSolverSinglestepScheduler", 5),
        ("UniPCMultistepScheduler", 3),
        ("DEISMultistepScheduler", 3),
        ("LCMScheduler", 2),
    ],
)
@pytest.mark.parametrize("announced", [False, True])
def test_loops_that_begin_in_the_middle(name: str, first: int, announced: bool) -> None:
    """Image to image: the first timesteps are left out, and solvers begin with order 1."""
    theirs = getattr(diffusers, name)()
    runs = []
    for scheduler in (fuse(theirs), theirs):
        scheduler.set_timesteps(20)
        if announced and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        runs.append(loop(scheduler, first=first))
    assert_same_loops(*runs)


@pytest.mark.parametrize("correct_steps", [1, 2])
def test_score_sde_ve(correct_steps: int) -> None:
    runs = []
    for scheduler in (diffusers.ScoreSdeVeScheduler(), fuse(diffusers.ScoreSdeVeScheduler())):
        scheduler.set_timesteps(12)
        scheduler.set_sigmas(12)
        x, generator = begin(scheduler)
        returned = []
        for i, t in enumerate(scheduler.timesteps):
            sigma = scheduler.sigmas[i]
            for _ in range(correct_steps):
                x = scheduler.step_correct(-x / (sigma**2 + 1), x, generator=generator).prev_sample
            output = scheduler.step_pred(-x / (sigma**2 + 1), t, x, generator=generator)
            x = output.prev_sample
            returned.append(output.to_tuple())
        runs.append(returned)
    assert_same_loops(runs[1], runs[0])
