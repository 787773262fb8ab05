"""The schedule that a model was trained on, what the model predicts and is told: read off a scheduler of diffusers."""

from __future__ import annotations

import inspect
import math
from typing import Any, NamedTuple

import torch

from ... import schedules
from ...schedules import Schedule
from .configuration import check_complete, check_config
from .networks import Clock, known

VP = (
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "SASolverScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "RePaintScheduler",
)
FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")
EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
VE = ("ScoreSdeVeScheduler",)
PREDICTS = {
    "epsilon": "eps",
    "sample": "x0",
    "original_sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
}
SCHEDULERS = (*VP, *FLOW, *EDM, *VE)


class Trained(NamedTuple):
    """How a model was trained.

    predicts: as in `ulam.Denoiser`. clock: from ulam's t to what the model is told. negated: whether the model's output
    is that prediction with the other sign.
    """

    schedule: Schedule
    predicts: str
    clock: Clock
    negated: bool


def declared(schedule: Schedule, predicts: str | None = None) -> Trained:
    """What is known of a model without a scheduler: your schedule and what the model predicts.

    By default what models of that schedule predict in diffusers; they are told as in
    `loading.network_from_diffusers`, on flow schedules the index among 1000 training steps.
    """
    usual = {"flow": "flow", "edm": "raw", "ve": "score"}
    clocks: dict[str, Clock] = {"flow": TrainingIndex(1000), "edm": c_noise}
    return Trained(schedule, predicts or usual.get(schedule.kind, "eps"), clocks.get(schedule.kind, same), False)


def trained_on(scheduler: Any, argument: str) -> Trained:
    """What the configuration of a scheduler of diffusers says of the model beside it.

    Raises ValueError, naming ``argument``, for a class that is not in `SCHEDULERS` and for an invalid option.
    """
    import diffusers

    name, config = known(scheduler, SCHEDULERS), scheduler.config
    if name is None:
        came = type(scheduler).__name__
        raise ValueError(f"{argument}: got a scheduler {came}, expected one of {', '.join(SCHEDULERS)}")
    check_complete(config, inspect.signature(getattr(diffusers, name)).parameters, argument)
    check_config(config, name, argument)
    try:
        return _trained(scheduler, name, argument)
    except ValueError as error:
        said = str(error)
        if said.startswith(f"{argument}: "):
            raise
        raise ValueError(f"{argument}: got a {name}, expected a configuration with a schedule: {said}") from None


def _trained(scheduler: Any, name: str, argument: str) -> Trained:
    config = scheduler.config
    if name in EDM:
        schedule = schedules.edm(**{key: config[key] for key in ("sigma_min", "sigma_max", "sigma_data", "rho")})
        negated = _predicts(config, argument) == "v"  # the output of these networks is -F
        return Trained(schedule, "raw", c_noise, negated)
    if name in VE:
        return Trained(schedules.ve(config["sigma_min"], config["sigma_max"]), "score", same, False)
    if name in FLOW or config.get("use_flow_sigmas"):
        if config.get("use_dynamic_shifting"):
            rather = f"pass scheduler=FlowMatchEulerDiscreteScheduler(shift=...), {_shifts(config)}"
            raise ValueError(
                f"{argument}: got {name} with use_dynamic_shifting=True, expected one shift for all sizes: {rather}"
            )
        shift = config["shift"] if name in FLOW else config["flow_shift"]
        predicts = "flow" if name in FLOW else _predicts(config, argument)
        return Trained(schedules.flow(shift), predicts, TrainingIndex(config["num_train_timesteps"]), False)
    if config.get("timestep_type", "discrete") != "discrete":
        raise ValueError(
            f"{argument}: got {name} with timestep_type={config['timestep_type']!r}, expected timestep_type='discrete'"
        )
    return Trained(_variance_preserving(scheduler), _predicts(config, argument), same, False)


def _variance_preserving(scheduler: Any) -> Schedule:
    config = scheduler.config
    ends = config["num_train_timesteps"], config["beta_start"], config["beta_end"]
    if config.get("trained_betas") is not None:
        schedule = schedules.from_betas(config["trained_betas"])
    elif config["beta_schedule"] == "linear":
        schedule = schedules.vp_linear(*ends)
    elif config["beta_schedule"] == "scaled_linear":
        schedule = schedules.vp_scaled_linear(*ends)
    elif config["beta_schedule"] == "squaredcos_cap_v2":
        schedule = schedules.vp_cosine(ends[0])
    elif config["beta_schedule"] == "sigmoid":
        schedule = schedules.vp_sigmoid(*ends)
    else:
        schedule = schedules.from_betas(scheduler.betas)
    return schedules.zero_terminal_snr(schedule) if config.get("rescale_betas_zero_snr") else schedule


def _shifts(config: Any) -> str:
    """The shifts that diffusers' pipelines take at two sizes: exp(mu) or mu, mu linear in the image's tokens."""
    said = []
    for name, shift, tokens in (("base", 0.5, 256), ("max", 1.15, 4096)):
        mu = float(config.get(f"{name}_shift") or shift)
        shift = mu if config.get("time_shift_type") == "linear" else math.exp(min(mu, 99.0))
        said.append(f"{shift:.4g} for images of {config.get(f'{name}_image_seq_len') or tokens} tokens")
    return ", ".join(said)


def _predicts(config: Any, argument: str) -> str:
    name = config.get("prediction_type", "epsilon")
    if name not in PREDICTS:
        raise ValueError(f"{argument}: got prediction_type={name!r}, expected one of {', '.join(PREDICTS)}")
    return PREDICTS[name]


def same(t: torch.Tensor) -> torch.Tensor:
    """The clock of a model that is told t itself."""
    return t


def c_noise(sigma: torch.Tensor) -> torch.Tensor:
    """log(sigma) / 4 [Karras 2022, table 1]."""
    return sigma.log() / 4


class TrainingIndex:
    """The clock from t in [0, 1] to an index among the training steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, t: torch.Tensor) -> torch.Tensor:
        return t * self.steps
