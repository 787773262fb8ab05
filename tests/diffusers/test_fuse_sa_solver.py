"""The fused SA-Solver against diffusers' own: orders, both predictions, tau, noise, grids and loops from the middle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fuse_cases import SHAPE, assert_same_loops, begin, loop, make
from ulam.integrations.diffusers import fuse

NAME = "SASolverScheduler"
DATA, NOISE = {"algorithm_type": "data_prediction"}, {"algorithm_type": "noise_prediction"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
TAUS: dict[str, Callable[[Any], float]] = {
    "none": lambda t: 0,
    "all": lambda t: 1.0,
    "changing": lambda t: 0.2 + float(t) / 900,
}


def in_float64(config: dict[str, Any]) -> Any:
    """diffusers' scheduler, whose coefficients are taken in float64."""
    scheduler = make(NAME, **config)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.sigmas = scheduler.sigmas.double()
    return scheduler


def check(config: dict[str, Any], steps: int, first: int = 0) -> None:
    """Call by call in float64, to 1e-9 of the largest value, and in float32 to 1e-4 of it.

    Loops that orders of 4 let grow a thousandfold turn roundings, which differ between processors, into more: to 1e-3
    of what float32 does to diffusers' own.
    """
    runs = []
    for scheduler in (fuse(in_float64(config)), in_float64(config)):
        scheduler.set_timesteps(steps)
        scheduler.sigmas = scheduler.sigmas.double()
        if first:
            scheduler.set_begin_index(first)
        runs.append(torch.stack([call[0] for call in loop(scheduler, first=first, dtype=torch.float64)]))
    assert (runs[0] - runs[1]).abs().max() <= 1e-9 * runs[1].abs().max()
    loops = []
    for scheduler in (fuse(make(NAME, **config)), make(NAME, **config)):
        scheduler.set_timesteps(steps)
        if first:
            scheduler.set_begin_index(first)
        loops.append(loop(scheduler, first=first))
    rounded = torch.stack([call[0] for call in loops[1]]).double()
    grown = float((rounded - runs[1]).abs().max() / runs[1].abs().max())
    assert_same_loops(*loops, close=max(1e-4, 1e-3 * grown))


@pytest.mark.parametrize("algorithm", [DATA, NOISE])
@pytest.mark.parametrize("orders", [(1, 1), (2, 2), (3, 1), (1, 3), (3, 4), (4, 4), (4, 2)])
@pytest.mark.parametrize("steps", [1, 3, 12])
def test_orders(orders: tuple[int, int], algorithm: dict[str, Any], steps: int) -> None:
    for lower in (True, False):
        named = {"predictor_order": orders[0], "corrector_order": orders[1], "lower_order_final": lower}
        check({**algorithm, **named}, steps)


@pytest.mark.parametrize("algorithm", [DATA, NOISE])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("tau", TAUS)
def test_taus_and_predictions(tau: str, prediction: str, algorithm: dict[str, Any]) -> None:
    check({**algorithm, "prediction_type": prediction, "tau_func": TAUS[tau]}, 9)


@pytest.mark.parametrize(
    "grid",
    [
        {"timestep_spacing": "leading", "steps_offset": 1},
        {"timestep_spacing": "trailing"},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -4.0},
        FLOW,
        {**FLOW, "flow_shift": 3.0},
    ],
    ids=lambda grid: "-".join(map(str, grid.values())),
)
def test_grids_with_noise_up_to_the_last_step(grid: dict[str, Any]) -> None:
    """Where the last level repeats, the last step goes nowhere and adds no noise."""
    check({**grid, "tau_func": TAUS["all"]}, 8)


@pytest.mark.parametrize("most", [0.5, 1.0, 1.5])
def test_thresholding(most: float) -> None:
    check({"thresholding": True, "sample_max_value": most, "dynamic_thresholding_ratio": 0.9}, 7)


@pytest.mark.parametrize("algorithm", [DATA, NOISE])
@pytest.mark.parametrize("first", [1, 5, 11])
def test_loops_that_begin_in_the_middle(first: int, algorithm: dict[str, Any]) -> None:
    check({**algorithm, "predictor_order": 3, "corrector_order": 4, "tau_func": TAUS["changing"]}, 12, first)


@pytest.mark.parametrize("tau", ["none", "all"])
def test_every_call_draws_what_diffusers_draws(tau: str) -> None:
    states = []
    for scheduler in (fuse(make(NAME, tau_func=TAUS[tau])), make(NAME, tau_func=TAUS[tau])):
        scheduler.set_timesteps(5)
        x, generator = begin(scheduler)
        for t in scheduler.timesteps:
            x = scheduler.step(0.5 * x, t, x, generator=generator).prev_sample
            states.append(generator.get_state())
    assert all(map(torch.equal, states[:5], states[5:]))


@pytest.mark.parametrize("sample", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("output", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_of_samples_and_noise(sample: torch.dtype, output: torch.dtype) -> None:
    """The result is of the sample's dtype, the noise drawn in the output's: the first step, which has no history."""
    kept = []
    for scheduler in (fuse(make(NAME, tau_func=TAUS["all"])), make(NAME, tau_func=TAUS["all"])):
        scheduler.set_timesteps(6)
        x, generator = begin(scheduler)
        m = torch.randn(SHAPE, generator=generator).to(output)
        kept.append(scheduler.step(m, scheduler.timesteps[0], x.to(sample), generator=generator).prev_sample)
    assert kept[0].dtype == kept[1].dtype == sample
    most = max(torch.finfo(d).eps for d in (sample, output, torch.float32))
    assert (kept[0].double() - kept[1].double()).abs().max() <= 8 * most * kept[1].double().abs().max()


def test_tau_is_read_again_after_it_was_set() -> None:
    """Also after set_timesteps, which compiles rows."""
    scheduler, theirs = fuse(make(NAME)), make(NAME, tau_func=TAUS["none"])
    scheduler.tau_func = TAUS["all"]
    assert_same_loops(loop(scheduler, 8), loop(make(NAME, tau_func=TAUS["all"]), 8))
    scheduler.set_timesteps(8)
    scheduler.tau_func = TAUS["none"]
    assert_same_loops(loop(scheduler), loop(theirs, 8))


@pytest.mark.parametrize("tau", [lambda t: -1, lambda t: float("nan"), lambda t: "much", lambda t: None])
def test_a_tau_that_is_no_strength_is_named(tau: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match=r"^tau_func: got .* at 999, expected a number of at least 0$"):
        fuse(make(NAME, tau_func=tau)).set_timesteps(4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"predictor_order": 5}, "predictor_order=5, expected 1 to 4"),
        ({"corrector_order": 0}, "corrector_order=0, expected 1 to 4"),
        ({"tau_func": 3}, "tau_func=3, expected a function of the timestep, or none"),
        ({"prediction_type": "flow_prediction"}, "prediction_type='flow_prediction', expected it with use_flow"),
    ],
)
def test_options_without_rows_are_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^scheduler: got {message}"):
        fuse(make(NAME, **config))
