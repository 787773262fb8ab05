"""Checks of the arguments of a fused scheduler's methods."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor

from ulam_kernels.arguments import described, is_real, real, switch, whole
from ulam_kernels.validation import REALS, check_tensor, real_numbers

from ...arguments import resolve_device
from ...files import one_line
from .configuration import MOST_STEPS, short

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
CHURN_OFF = (0.0, 0.0, math.inf, 1.0)
COUNTS = ("num_inference_steps", "original_inference_steps")
GRIDS = ("timesteps", "sigmas")


def check_batch(tensor: object, name: str) -> None:
    """Raises TypeError, ValueError or RuntimeError unless the tensor is a float batch in memory, [B, *shape]."""
    if isinstance(tensor, torch.Tensor) and (tensor.is_meta or isinstance(tensor, FakeTensor)):
        raise RuntimeError(f"{name}: got a {type(tensor).__name__} without memory, expected one with numbers")
    check_tensor(tensor, name)
    assert isinstance(tensor, torch.Tensor)
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{name}: got {described(tensor)}, expected a float tensor")
    if not tensor.dim():
        raise ValueError(f"{name}: got shape [], expected [B, *shape]")


def check_sample(sample: torch.Tensor, model_output: torch.Tensor, model_name: str = "model_output") -> None:
    """Raises TypeError, ValueError or RuntimeError unless `model_output` can be a network's output for `sample`."""
    if (
        type(sample) is type(model_output) is torch.Tensor
        and sample.dtype in FLOATS
        and model_output.dtype in FLOATS
        and sample.layout is model_output.layout is torch.strided
        and sample.device == model_output.device
        and not sample.is_meta
        and sample.dim()
        and sample.shape == model_output.shape
    ):  # the usual case, at a third of the time
        return
    check_batch(sample, "sample")
    check_batch(model_output, model_name)
    shape = sample.shape
    if model_output.shape != shape:
        doubled = (*shape[:1], 2 * shape[1], *shape[2:]) if len(shape) > 1 else shape
        if model_output.shape != doubled:
            right = f"{list(shape)} like sample, or twice the channels"
            raise ValueError(f"{model_name}: got shape {list(model_output.shape)}, expected {right}")
    if model_output.device != sample.device:
        raise ValueError(f"{model_name}: got one on {model_output.device}, expected {sample.device} like sample")


def check_noise(noise: object, sample: torch.Tensor, name: str) -> None:
    """Raises TypeError, ValueError or RuntimeError unless the noise is a float batch of the sample's shape."""
    check_batch(noise, name)
    assert isinstance(noise, torch.Tensor)
    if noise.shape != sample.shape:
        raise ValueError(f"{name}: got shape {list(noise.shape)}, expected {list(sample.shape)} like sample")


def check_no_gradient(**tensors: object) -> None:
    """Raises RuntimeError where autograd expects a gradient of the step, which has none."""
    if not torch.is_grad_enabled():
        return
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
            raise RuntimeError(
                f"{name}: got a tensor that requires grad, but step has no gradient, expected its .detach(), or a call "
                "under torch.no_grad()"
            )


def number(value: object) -> float:
    """A timestep that is no tensor, as a float. Raises TypeError or ValueError for what is not a number."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(())[()]
    if not is_real(value):
        raise TypeError(f"timestep: got {described(value)}, expected one of scheduler.timesteps")
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        raise ValueError(f"timestep: got {described(value)}, expected one of scheduler.timesteps") from None


def check_timestep(timestep: torch.Tensor) -> None:
    """Raises TypeError, ValueError or RuntimeError for a tensor that cannot hold timesteps."""
    if timestep.is_meta or isinstance(timestep, FakeTensor):
        raise RuntimeError(f"timestep: got a {type(timestep).__name__} without memory, expected one with numbers")
    check_tensor(timestep, "timestep")
    if timestep.dtype not in REALS or not timestep.numel():
        raise TypeError(f"timestep: got {described(timestep)}, expected one of scheduler.timesteps")


def check_index(timestep: object) -> None:
    """Raises ValueError for an integer, which would be an index of the timesteps, as diffusers does."""
    if isinstance(timestep, torch.Tensor):
        if timestep.is_floating_point():
            return
        check_timestep(timestep)
    elif not isinstance(timestep, (int, np.integer)) or isinstance(timestep, bool):
        return
    raise ValueError(f"timestep: got {described(timestep)}, an index, expected one of scheduler.timesteps")


def check_return_dict(value: object) -> None:
    """Raises TypeError for a value that is neither True nor False."""
    if value is not True and value is not False:
        switch(value, "return_dict")


def churn(s_churn: float, s_tmin: float, s_tmax: float, s_noise: float) -> tuple[float, float, float, float]:
    """The arguments of churn [Karras 2022, algorithm 2], `CHURN_OFF` where there is none.

    Raises TypeError or ValueError for a number below 0, or what is not a number.
    """
    floats = type(s_churn) is type(s_tmin) is type(s_tmax) is type(s_noise) is float
    if floats and (s_churn, s_tmin, s_tmax, s_noise) == CHURN_OFF:  # the usual case
        return CHURN_OFF
    given = {"s_churn": s_churn, "s_tmin": s_tmin, "s_noise": s_noise}
    made = {name: real(value, name, "a finite number of at least 0") for name, value in given.items()}
    made["s_tmax"] = real(s_tmax, "s_tmax", "a number of at least 0", float("inf"))
    for name, value in made.items():
        if value < 0:
            raise ValueError(f"{name}: got {value:g}, expected at least 0")
    if not made["s_churn"]:
        return CHURN_OFF
    return made["s_churn"], made["s_tmin"], made["s_tmax"], made["s_noise"]


def check_grid(given: Mapping[str, Any]) -> None:
    """Raises TypeError or ValueError for an invalid argument of `set_timesteps`, given by name.

    What depends on the class, such as which arguments exclude one another, is left to diffusers.
    """
    for name in COUNTS:
        if given.get(name) is not None:
            whole(given[name], name, 1, MOST_STEPS)
    for name in GRIDS:
        if given.get(name) is None:
            continue
        values = real_numbers(name, given[name])
        if values.dim() != 1 or not 0 < len(values) <= MOST_STEPS or not values.isfinite().all():
            raise ValueError(f"{name}: got {short(values.tolist())}, expected finite numbers, at least one")
    if given.get("mu") is not None:
        real(given["mu"], "mu")
    if "strength" in given and not 0 < real(given["strength"], "strength", "a number from 0 to 1") <= 1:
        raise ValueError(f"strength: got {described(given['strength'])}, expected a number above 0 and at most 1")
    if given.get("device") is not None:
        resolve_device(given["device"])


def refused_by_diffusers(error: Exception, who: str, given: Mapping[str, Any]) -> Exception:
    """diffusers' error about the arguments of `set_timesteps`, as one line that begins with their names."""
    named = {name: value for name, value in given.items() if value is not None and name != "device"}
    named = named or {"num_inference_steps": None}
    came = ", ".join(map(described, named.values()))
    kind = type(error) if isinstance(error, (TypeError, ValueError)) else ValueError
    return kind(f"{', '.join(named)}: got {came}, expected what {who} takes: {one_line(error)[:200]}")
