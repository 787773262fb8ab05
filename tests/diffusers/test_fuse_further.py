"""Fused distilled, inverse, ancestral and CogVideoX schedulers against diffusers' own, call by call."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fuse_cases import SHAPE, assert_same_loops, begin, loop, make, network
from ulam.integrations.diffusers import fuse

CLOSE = 1e-5
PREDICTIONS = ("epsilon", "sample", "v_prediction")
LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
TRAILING = {"timestep_spacing": "trailing"}
LINSPACE = {"timestep_spacing": "linspace"}
ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", **TRAILING}
SIGMAS: list[dict[str, Any]] = [
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
]
CONSISTENCY, INVERSE = "CMStochasticIterativeScheduler", "DPMSolverMultistepInverseScheduler"
TCD, UNCLIP, IPNDM, DDIM_INVERSE = "TCDScheduler", "UnCLIPScheduler", "IPNDMScheduler", "DDIMInverseScheduler"
ANCESTRAL, MINIMAX, DDIM_COG = "KDPM2AncestralDiscreteScheduler", "MiniMaxH3Scheduler", "CogVideoXDDIMScheduler"
BETAS = [0.99, 0.8, 0.7, 0.5, 0.3, 0.1, 0.0]


def both(name: str, config: dict[str, Any]) -> tuple[Any, Any]:
    return fuse(make(name, **config)), make(name, **config)


def check(name: str, config: dict[str, Any], steps: int, first: int = 0, **step: Any) -> None:
    runs = []
    for scheduler in both(name, config):
        scheduler.set_timesteps(steps)
        if first and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        doubled = config.get("variance_type") == "learned_range"
        runs.append(loop(scheduler, first=first, doubled=doubled, **step))
    coarse = name == ANCESTRAL and steps == 2  # diffusers' derivative at the last level cancels in float32
    assert_same_loops(*runs, close=5e-5 if coarse else CLOSE)


def predicted(name: str, *grids: dict[str, Any], predictions: tuple[str, ...] = PREDICTIONS) -> list[Any]:
    return [(name, {**grid, "prediction_type": prediction}) for prediction in predictions for grid in grids]


DATA_FIRST = {"clip_sample": False, "set_alpha_to_one": False}
CASES = [
    ("DDPMParallelScheduler", {}),
    ("DDPMParallelScheduler", {"variance_type": "learned_range"}),
    ("DDIMParallelScheduler", {"thresholding": True, "sample_max_value": 1.5}),
    *predicted(TCD, {}, {"beta_schedule": "squaredcos_cap_v2"}),
    (IPNDM, {}),
    *predicted(ANCESTRAL, LINSPACE, LEADING, TRAILING, *SIGMAS, predictions=("epsilon", "v_prediction")),
    *predicted(DDIM_INVERSE, LEADING, TRAILING, predictions=("epsilon", "v_prediction")),
    *predicted(DDIM_INVERSE, DATA_FIRST, predictions=("epsilon", "v_prediction")),
    *predicted(INVERSE, TRAILING),
    *predicted(UNCLIP, {}, {"clip_sample": False}, predictions=("epsilon", "sample")),
    (UNCLIP, {"variance_type": "learned_range"}),
    (CONSISTENCY, {}),
    (CONSISTENCY, {"clip_denoised": False, "s_noise": 1.1, "rho": 5.0, "sigma_data": 1.0}),
    *predicted(DDIM_COG, LINSPACE, LEADING, TRAILING, {"set_alpha_to_one": False}),
    (DDIM_COG, ZERO_SNR),
    (DDIM_COG, {"snr_shift_scale": 1.0, "beta_schedule": "linear"}),
    (MINIMAX, {"shift": 3.0}),
]


@pytest.mark.parametrize(("name", "config"), CASES)
@pytest.mark.parametrize("steps", [2, 7, 20])
def test_loops(name: str, config: dict[str, Any], steps: int) -> None:
    check(name, config, steps)


@pytest.mark.parametrize("name", sorted({name for name, _ in CASES} - {MINIMAX}))
def test_loops_that_begin_in_the_middle(name: str) -> None:
    check(name, {}, 12, first=4)


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.45, 1.0])
def test_tcd_with_every_share_of_fresh_noise(eta: float) -> None:
    for steps in (1, 4, 9):
        check(TCD, {}, steps, eta=eta)
    runs = []
    for scheduler in both(TCD, {}):
        scheduler.set_timesteps(timesteps=[979, 719, 459, 199], strength=0.6)  # draws noise in its last step too
        runs.append(loop(scheduler, eta=eta))
    assert_same_loops(*runs, close=CLOSE)


def test_ddim_parallel_with_eta() -> None:
    check("DDIMParallelScheduler", {}, 10, eta=0.7, use_clipped_model_output=True)


def test_ipndm_on_given_levels() -> None:
    check(IPNDM, {"trained_betas": BETAS}, len(BETAS) - 1)


def test_ipndm_goes_on_with_a_history_that_the_caller_sets() -> None:
    past = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(2))
    runs = []
    for scheduler in both(IPNDM, {}):
        scheduler.set_timesteps(8)
        scheduler.ets = list(past)
        runs.append(loop(scheduler, first=3))
    assert_same_loops(*runs, close=0.0)


@pytest.mark.parametrize("steps", [9, 20])
@pytest.mark.parametrize(
    "config",
    [
        *(config for _, config in predicted("", LINSPACE, LEADING)),
        *({"solver_order": order} for order in (1, 3, 4)),
        {"solver_type": "heun"},
        {"algorithm_type": "dpmsolver"},
        {"algorithm_type": "dpmsolver", "prediction_type": "v_prediction", "solver_type": "heun"},
        *SIGMAS[:2],
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
        {"euler_at_final": True},
        {"lower_order_final": False},
        {"thresholding": True, "sample_max_value": 1.5},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"lambda_min_clipped": -4.0},
    ],
)
def test_dpm_solver_inversion(config: dict[str, Any], steps: int) -> None:
    check(INVERSE, config, steps)


@pytest.mark.parametrize(
    ("name", "config"),
    [(INVERSE, {}), (INVERSE, SIGMAS[2]), (DDIM_INVERSE, {**DATA_FIRST, "prediction_type": "sample"})],
)
def test_inversions_in_float64(name: str, config: dict[str, Any]) -> None:
    """Near the data they cancel: diffusers in float32 is off by more than 1e-5 there, not in float64."""
    for steps in (1, 4, 9, 20):
        runs = []
        for scheduler in both(name, config):
            scheduler.set_timesteps(steps)
            for levels in ("sigmas", "alphas_cumprod", "initial_alpha_cumprod"):
                if hasattr(scheduler, levels):
                    setattr(scheduler, levels, getattr(scheduler, levels).double())
            runs.append(torch.stack([call[0] for call in loop(scheduler, dtype=torch.float64)]))
        assert (runs[0] - runs[1]).abs().max() <= 1e-8 * runs[1].abs().max()


@pytest.mark.parametrize(
    ("name", "order", "most"),
    [(f"{name}Scheduler", order, 3) for name in ("DPMSolverMultistep", "DEISMultistep") for order in (4, 7)],
)
def test_an_order_above_the_highest_is_the_highest(name: str, order: int, most: int) -> None:
    for steps in (6, 17):
        check(name, {"solver_order": order}, steps)
        runs = [loop(fuse(make(name, solver_order=given)), steps) for given in (order, most)]
        assert all(torch.equal(mine[0], other[0]) for mine, other in zip(*runs, strict=True))


@pytest.mark.parametrize("config", [{}, {"variance_type": "learned_range"}, {"prediction_type": "sample"}])
def test_unclip_goes_where_it_is_told(config: dict[str, Any]) -> None:
    """To the next of the timesteps, as its pipelines have it; to others; and from timesteps off the grid."""
    doubled = "variance_type" in config
    for times, ends in (([999, 700, 300, 0], [700, 300, 0, None]), ([900, 500, 31], [400, 499, -1])):
        if doubled and ends[-1] == -1:
            continue  # diffusers takes the logarithm of 0
        runs = []
        for scheduler in both(UNCLIP, config):
            scheduler.set_timesteps(4)
            scheduler.timesteps = torch.tensor([999, 700, 300, 0])
            (x, generator), returned = begin(scheduler), []
            for time, end in zip(times, ends, strict=True):
                t, to = torch.tensor(time), end if end is None or doubled else torch.tensor(end)
                output = scheduler.step(network(x, t, doubled), t, x, prev_timestep=to, generator=generator)
                x = output.prev_sample
                returned.append(output.to_tuple())
            runs.append(returned)
        assert_same_loops(*runs, close=CLOSE)


@pytest.mark.parametrize(("end", "message"), [(700, "got 700, expected one below"), (-2, "got -2"), (2.5, "got 2.5")])
def test_unclip_goes_down_alone(end: Any, message: str) -> None:
    scheduler = fuse(make(UNCLIP))
    scheduler.set_timesteps(4)
    x, _ = begin(scheduler)
    with pytest.raises((TypeError, ValueError), match=f"^prev_timestep: {message}"):
        scheduler.step(x, 666, x, prev_timestep=end)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        (INVERSE, {"algorithm_type": "sde-dpmsolver++"}, "algorithm_type='sde-dpmsolver\\+\\+', expected dpmsolver"),
        (UNCLIP, {"variance_type": "fixed_large"}, "variance_type='fixed_large', expected fixed_small_log or"),
        (ANCESTRAL, {"prediction_type": "sample"}, "prediction_type='sample', expected one of epsilon, v_prediction"),
        (CONSISTENCY, {"s_noise": -1.0}, "s_noise=-1.0, expected a finite number of at least 0"),
    ],
)
def test_options_without_rows_are_named(name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"scheduler: got {message}"):
        fuse(make(name, **config))


def test_ddim_inversion_of_estimates_of_the_data_says_where_it_cannot_begin() -> None:
    """At the data's own level they say nothing about noise (diffusers gives NaN); from the second step on they do."""
    scheduler = fuse(make(DDIM_INVERSE, prediction_type="sample"))
    scheduler.set_timesteps(10)
    x, _ = begin(scheduler)
    with pytest.raises(ValueError, match="prediction_type='sample', expected another, or set_alpha_to_one=False"):
        scheduler.step(x, scheduler.timesteps[0], x)


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler"])
def test_a_step_to_the_data_in_the_middle_ends_there(name: str) -> None:
    """Its first call gives the estimate of the data, as in Euler's method; no later call changes it."""
    scheduler = fuse(make(name))
    scheduler.set_timesteps(5)
    scheduler.sigmas[3:] = 0.0
    if name != "HeunDiscreteScheduler":
        scheduler.sigmas_interpol[3:] = 0.0
    samples = [x for x, _ in loop(scheduler)]
    t, sigma, x = scheduler.timesteps[2], float(scheduler.sigmas[2]), samples[1]
    data = x - sigma * network(x / (sigma**2 + 1) ** 0.5, t)
    assert len(samples) == 9
    for sample in samples[2:]:
        torch.testing.assert_close(sample, data, rtol=1e-4, atol=1e-4)
