"""fuse against diffusers in float64: one option, any number of steps, any first call, repeated timesteps among them.

The oracle is diffusers' own class on float64 copies of what `set_timesteps` made, told where its loop begins: the same
recursion, with the roundings of float64 alone, but where diffusers calculates in float32 whatever it is given.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import diffusers
import pytest
import torch

from fuse_cases import ALL, begin, make, network

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from ulam.integrations.diffusers import fuse  # noqa: E402

# Rounded in float32 by diffusers: samples, outputs or coefficients.
FLOAT32 = (
    *("DDPMScheduler", "LCMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "EDMEulerScheduler"),
    *("EulerAncestralDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", "KDPM2DiscreteScheduler"),
    *("FlowMatchLCMScheduler", "LTXEulerAncestralRFScheduler", "HeliosScheduler"),
    *("DDPMParallelScheduler", "KDPM2AncestralDiscreteScheduler", "UnCLIPScheduler", "CMStochasticIterativeScheduler"),
    "IPNDMScheduler",
)
DIVIDED = ("FlowMatchHeunDiscreteScheduler",)  # by levels as small as 0.001, in float32
# A loop that begins there does so in ulam's own way.
WITHOUT_MIDDLE = ("LMSDiscreteScheduler", "PNDMScheduler", "HeliosScheduler")
WIDENED = (
    "sigmas",
    "alphas_cumprod",
    "sigmas_interpol",
    "final_alpha_cumprod",
    "alpha_t",
    "sigma_t",
    "lambda_t",
    "one",
)
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
OPTIONS: list[dict[str, Any]] = [
    {},
    COSINE,
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "use_beta_sigmas": True},
    {"use_karras_sigmas": True},
    {"use_karras_sigmas": True, **COSINE},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
    {"use_lu_lambdas": True},
    {"timestep_spacing": "leading", "steps_offset": 1},
    {"timestep_spacing": "trailing"},
    {"timestep_spacing": "linspace"},
    {"prediction_type": "v_prediction"},
    {"prediction_type": "sample"},
    {"final_sigmas_type": "sigma_min"},
    {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9},
    {"clip_sample": True, "clip_sample_range": 0.7},
    {"clip_sample": False},
    {"set_alpha_to_one": False},
    {"skip_prk_steps": True},
    {"solver_order": 1},
    {"solver_order": 3},
    {"solver_type": "heun"},
    {"solver_type": "bh1"},
    {"predict_x0": False, "final_sigmas_type": "sigma_min"},
    {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    {"algorithm_type": "sde-dpmsolver++"},
    {"euler_at_final": True},
    {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
    {"shift": 3.0},
    {"invert_sigmas": True},
    {"stochastic_sampling": True},
    {"variance_type": "fixed_large"},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    {"sigma_schedule": "exponential"},
    {"rho": 5.0},
    {"interpolation_type": "log_linear"},
    {"num_train_timesteps": 200},
]


def exists(name: str, option: dict[str, Any]) -> bool:
    """Whether diffusers has this class with this option."""
    if not set(option) <= set(inspect.signature(getattr(diffusers, name).__init__).parameters):
        return False
    try:
        fuse(make(name, **option))
    except (NotImplementedError, ValueError):
        return False
    return True


@cache
def options(name: str) -> list[dict[str, Any]]:
    return [option for option in OPTIONS if exists(name, option)]


def not_as_diffusers(name: str, option: dict[str, Any], steps: int) -> bool:
    """Where a family's docstring says that it goes another way: diffusers steps by T // n, wherever the next one is."""
    training = option.get("num_train_timesteps", 1000)
    spacing = option.get("timestep_spacing", "leading")
    uneven = spacing == "linspace" or (spacing == "trailing" and training % steps > 0)
    halves = name == "PNDMScheduler" and not option.get("skip_prk_steps") and training // steps % 2 > 0
    return halves or (uneven and name in ("DDIMScheduler", "DDIMParallelScheduler", "PNDMScheduler"))


def run(scheduler: Any, steps: int, first: int, *, told: bool, wide: bool) -> torch.Tensor:
    """The samples after every call from `first` on, float64."""
    scheduler.set_timesteps(steps)
    for name in WIDENED if wide else ():
        value = getattr(scheduler, name, None)
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            setattr(scheduler, name, value.double())
    if told and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    (x, generator), samples = begin(scheduler, dtype=torch.float64), []
    named = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for t in scheduler.timesteps[first:]:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(scaled, t), t, x, **named).prev_sample
        samples.append(x)
    return torch.stack(samples)


def compared(name: str, option: dict[str, Any], steps: int, start: int, told: bool) -> bool:
    """Whether there is such a loop; if so, the fused one is it. start: in hundredths, 0 up to 33."""
    first = 0
    try:
        theirs = make(name, **option)
        theirs.set_timesteps(steps)
        if start > 33:
            first = start * len(theirs.timesteps) // 100
            first -= first % theirs.order
        expected = run(make(name, **option), steps, first, told=True, wide=True)
    except Exception:
        return False  # diffusers has none
    if not_as_diffusers(name, option, steps) or not torch.isfinite(expected).all():
        return False
    ours = run(fuse(make(name, **option)), steps, first, told=told, wide=False)
    close = 1e-5 if name in FLOAT32 else 1e-3 if name in DIVIDED else 1e-9
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= close * expected.abs().max().clamp(min=1)
    return True


@pytest.mark.long
@pytest.mark.parametrize("name", ALL)
def test_fused_loops_are_those_of_diffusers(name: str) -> None:
    live = []

    @settings(
        max_examples=12,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        option=st.sampled_from(options(name)),
        steps=st.integers(1, 40),
        start=st.integers(0, 0 if name in WITHOUT_MIDDLE else 99),
        told=st.booleans(),
    )
    def check(option: dict[str, Any], steps: int, start: int, told: bool) -> None:
        live.append(compared(name, option, steps, start, told))

    check()
    assert sum(live) >= 3, "too few of these loops exist"
