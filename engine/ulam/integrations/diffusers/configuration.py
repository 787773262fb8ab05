"""Checks of a diffusers scheduler's configuration, by key, before anything is made from it."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

MOST_STEPS, HUGE = 10**6, 1e18  # larger whole numbers do not fit into torch's


class Rule(NamedTuple):
    """What a value must be, in words, and a test of it."""

    expected: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        return False
    return not math.isnan(value) if isinstance(value, float) else bool(value == value)


def _number(least: float = -math.inf, most: float = math.inf, *, above: bool = False, infinite: bool = False) -> Rule:
    """A finite number from `least` (or above it) to `most`."""

    def holds(value: Any) -> bool:
        if not _is_number(value) or not (abs(value) < HUGE or (infinite and math.isinf(value))):
            return False
        return bool((least < value if above else least <= value) and value <= most)

    limits = f" above {least:g}" if above else "" if least == -math.inf else f" of at least {least:g}"
    if most < math.inf:
        limits = f" from {least:g} to {most:g}"
    return Rule(f"a {'' if infinite else 'finite '}number{limits}", holds)


def _whole(least: int = -MOST_STEPS, most: int = MOST_STEPS) -> Rule:
    def holds(value: Any) -> bool:
        return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(least <= value <= most)

    return Rule(f"a whole number from {least} to {most}", holds)


def _choice(*names: str) -> Rule:
    return Rule(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


def _or_none(rule: Rule) -> Rule:
    return Rule(f"{rule.expected}, or none", lambda value: value is None or rule.holds(value))


def _are_betas(value: Any) -> bool:
    if not isinstance(value, (list, tuple, np.ndarray)) or not 0 < len(value) <= MOST_STEPS:
        return False
    flat: list[Any] = value.tolist() if isinstance(value, np.ndarray) else list(value)
    return all(_is_number(beta) and 0 <= beta < 1 for beta in flat)


FLAG = Rule("true or false", lambda value: isinstance(value, (bool, np.bool_)))
NAME = Rule("a name", lambda value: isinstance(value, str))
POSITIVE = _number(0, above=True)
SOLVERS = (
    *("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"),
    *("deis", "data_prediction", "noise_prediction"),
)
COUNTED_FLAGS = ("use_beta_sigmas", "use_exponential_sigmas", "use_karras_sigmas")  # diffusers adds them up
FLAGS = (
    "clip_sample",
    "euler_at_final",
    "invert_sigmas",
    "lower_order_final",
    "predict_x0",
    "rescale_betas_zero_snr",
    "set_alpha_to_one",
    "skip_prk_steps",
    "stochastic_sampling",
    "thresholding",
    "use_dynamic_shifting",
    "use_flow_sigmas",
    "use_lu_lambdas",
)
RULES: dict[str, Rule] = {
    **dict.fromkeys(COUNTED_FLAGS, FLAG),
    **dict.fromkeys(FLAGS, _or_none(FLAG)),
    "prediction_type": NAME,
    "beta_schedule": _choice("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "exp", "laplace"),
    "algorithm_type": _choice(*SOLVERS),
    "solver_type": _choice("midpoint", "heun", "logrho", "bh1", "bh2"),
    "variance_type": _or_none(NAME),
    "num_train_timesteps": _whole(1),
    "beta_start": _number(0, 1),
    "beta_end": _number(0, 1),
    "trained_betas": _or_none(Rule("a list of numbers from 0 to below 1", _are_betas)),
    "clip_sample_range": POSITIVE,
    "sample_max_value": _number(0, above=True, infinite=True),
    "dynamic_thresholding_ratio": _number(),
    "timestep_spacing": _choice("linspace", "leading", "trailing"),
    "timestep_type": _choice("discrete", "continuous"),
    "final_sigmas_type": _choice("zero", "sigma_min"),
    "interpolation_type": _choice("linear", "log_linear"),
    "sigma_schedule": _choice("karras", "exponential"),
    "time_shift_type": _choice("exponential", "linear"),
    "steps_offset": _whole(0),
    "solver_order": _whole(1, 100),
    "predictor_order": _whole(1, 100),
    "corrector_order": _whole(0, 100),
    "original_inference_steps": _whole(1),
    "correct_steps": _whole(1),
    "timestep_scaling": _number(0),
    "flow_shift": POSITIVE,
    "shift": POSITIVE,
    "shift_terminal": _or_none(_number(0, 1)),
    "base_shift": _or_none(_number()),
    "max_shift": _or_none(_number()),
    "sigma_min": _or_none(_number(0)),
    "sigma_max": _or_none(POSITIVE),
    "sigma_data": POSITIVE,
    "rho": POSITIVE,
    "snr": POSITIVE,
    "eta": _number(0),
    "s_noise": _number(0),
    "scheduler_type": _choice("euler", "unipc", "dmd"),
    "stages": _whole(1),
    "gamma": POSITIVE,
    "tsr_k": POSITIVE,
    "tsr_sigma": POSITIVE,
    "t_lim_ode": _number(),
    "t_lim_ode_below": _number(),
    "clip_denoised": FLAG,
    "beta_min": POSITIVE,
    "beta_max": POSITIVE,
    "snr_shift_scale": POSITIVE,
    "scaler": POSITIVE,
    "s": _number(0, 1),
    "sampling_eps": _number(0, 1),
    "lambda_min_clipped": _number(infinite=True),
    "disable_corrector": Rule(
        "a list of whole numbers",
        lambda value: isinstance(value, (list, tuple)) and all(_whole(0).holds(step) for step in value),
    ),
}


NEEDS_SIGMAS = (
    *("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "ScoreSdeVeScheduler"),
    *("CMStochasticIterativeScheduler", "KarrasVeScheduler"),
)
# Those whose step reads one or two levels: with a beta_end above 1 they have the steps before the signal ends.
TRAINING_STEPS = (
    *("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler"),
    *("DDIMInverseScheduler", "LCMScheduler", "TCDScheduler"),
)


def check_config(config: Mapping[str, Any], name: str, argument: str = "scheduler", place: str = "") -> None:
    """Raises ValueError, in one line that names the key, for an invalid value.

    name: the scheduler's class. argument, place: how the caller named the configuration, and where it was found.
    """
    rules = RULES | (dict.fromkeys(("sigma_min", "sigma_max"), POSITIVE) if name in NEEDS_SIGMAS else {})
    rules |= {"beta_end": _number(0)} if name in TRAINING_STEPS else {}
    for key, rule in rules.items():
        if key in config and not rule.holds(config[key]):
            raise ValueError(f"{argument}: got {key}={short(config[key])}{place}, expected {rule.expected}")


def check_complete(config: Mapping[str, Any], parameters: Iterable[str], argument: str = "scheduler") -> None:
    """Raises ValueError, as `check_config`, for one of these parameters of its class that the configuration lacks."""
    for key in parameters:
        if key in RULES and key not in config:
            raise ValueError(f"{argument}: got a configuration without {key}, expected {RULES[key].expected}")


def unsupported(key: str, value: object, right: str) -> ValueError:
    """The error of a valid option that has no rows; right: what to use in its place."""
    return ValueError(f"scheduler: got {key}={value!r}, expected {right}")


def short(value: object) -> str:
    """A value in a few words on one line."""
    try:
        return " ".join(reprlib.repr(value).split())
    except Exception:  # a repr of its own that fails, or nesting beyond the limit
        return f"a {type(value).__name__}"
