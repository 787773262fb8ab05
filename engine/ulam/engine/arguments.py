"""Checks of an engine's arguments: one clear error each, before anything runs."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch

import ulam_kernels.dispatch
from ulam_kernels.arguments import described
from ulam_kernels.validation import check_data, real_numbers

from ..arguments import seed_int64, whole_number
from ..conditioning import Shared
from ..denoiser import Denoiser, Sampler
from ..programs.program import Program
from ..samplers.grid import GridSampler
from ..samplers.start import start_below_noise
from ..schedules import Schedule
from .errors import warn

LAST_ROW = 1 << 59  # so that no row of a program goes beyond the 2^60 of noise-v1
NORMS_DEFINED = 3  # the fewest elements whose inverse squared norm has a mean
NORMS_USABLE = 202  # and those from which 2 / (n - 2), what it adds to a standard deviation, is at most 1%


def check_slots(slots: object) -> int:
    """How many chains stand in a batch. Raises TypeError or ValueError unless it is 1 to 2^31 - 1."""
    count = whole_number("slots", slots)
    if not 1 <= count < 1 << 31:
        raise ValueError(f"slots: got {count}, expected at least 1" + (" and at most 2^31 - 1" if count > 0 else ""))
    return count


def check_network_device(denoiser: Denoiser, device: torch.device) -> None:
    """Raises ValueError for a network with parameters elsewhere."""
    if isinstance(denoiser.net, torch.nn.Module):
        for name, parameter in denoiser.net.named_parameters():
            if parameter.device != device:
                raise ValueError(f"device: got {device}, but the network's {name} is on {parameter.device}")


def check_x_init(x_init: object, shape: tuple[int, ...]) -> None:
    """Raises TypeError or ValueError unless ``x_init`` is a float tensor of this shape."""
    if not isinstance(x_init, torch.Tensor) or not x_init.is_floating_point():
        raise TypeError(f"x_init: got {described(x_init)}, expected a float tensor {list(shape)} or None")
    check_data(x_init, "x_init")
    if tuple(x_init.shape) != shape:
        raise ValueError(f"x_init: got shape {list(x_init.shape)}, expected {list(shape)} (chains first)")


def check_first_states(x_init: torch.Tensor | Shared | None, chains: int, shape: tuple[int, ...]) -> None:
    """Raises TypeError or ValueError unless these are ``[chains, *shape]``, or ``[*shape]`` under :class:`Shared`."""
    if isinstance(x_init, Shared):
        check_x_init(x_init.tensor, shape)
    elif x_init is not None:
        check_x_init(x_init, (chains, *shape))


def check_first_row(first_row: object) -> int:
    """The noise row at which a run begins. Raises TypeError or ValueError unless it is a row that noise-v1 has."""
    row = whole_number("first_row", first_row)
    if not 0 <= row < LAST_ROW:
        raise ValueError(f"first_row: got {row}, expected 0 to 2^59 - 1")
    return row


def check_seed(seed: int | None, anew: bool) -> int:
    """The seed as an int64, 0 for None; ``anew``: say that it gives a state that goes on the noise it had before."""
    if seed is None and anew:
        warn(
            "x_init: got states without a seed, the noise begins anew at row 0 of seed 0, expected first_row= (rows "
            "that they have run so far) or another seed= where they go on from an earlier run"
        )
    return seed_int64(0 if seed is None else seed)


def check_start(sampler: Sampler, schedule: Schedule) -> None:
    """Warn where a run without x_init starts from noise alone at a level that holds signal."""
    if isinstance(sampler, GridSampler) and (told := start_below_noise(sampler, schedule)) is not None:
        warn(told)


def check_norms(program: Program, shape: tuple[int, ...]) -> None:
    """Warn, or raise ValueError, where steps come from a chain's own norms and it has few elements.

    See :class:`ulam.samplers.PredictorCorrector` for the bias.
    """
    elements = math.prod(shape)
    if not program.normalise.any() or elements >= NORMS_USABLE:
        return
    told = f"norms: got 'chain' for samples of {elements} elements, expected"
    if elements < NORMS_DEFINED:
        raise ValueError(f"{told} at least {NORMS_DEFINED}: the variance has no bound, use norms='expected'")
    warn(
        f"{told} at least {NORMS_USABLE}: standard deviations come out about {200 / (elements - 2):.2g}% too large, "
        "use norms='expected'"
    )


def fallbacks(name: str, backend: str | None, dtype: torch.dtype) -> tuple[str, ...]:
    """What runs on the slow reference without having been asked for."""
    asked = backend or os.environ.get("ULAM_BACKEND")
    if name != "reference" or asked == "reference" or dtype == torch.float64:
        return ()
    return (ulam_kernels.dispatch.why_reference(),)


def check_guidance_options(
    guidance: object, interval: object, rescale: object
) -> tuple[tuple[float, float] | None, float]:
    """The interval as (lo, hi) or None, rounded to float32 as the slots hold it, and phi.

    Raises:
        TypeError, ValueError: what cannot be an interval or a phi.
    """
    phi = _number("guidance_rescale", rescale)
    if not 0 <= phi <= 1:
        raise ValueError(f"guidance_rescale: got {described(rescale)}, expected a number in [0, 1]")
    if guidance is None and (interval is not None or phi):
        name = "guidance_rescale" if interval is None else "guidance_interval"
        raise ValueError(f"guidance: got None beside {name}, expected a weight")
    if interval is None:
        return None, phi
    if not isinstance(interval, Sequence) or len(interval) != 2:
        raise TypeError(f"guidance_interval: got {described(interval)}, expected a pair (lo, hi) of times, or None")
    lo, hi = (torch.tensor(_number("guidance_interval", end), dtype=torch.float32).item() for end in interval)
    if not lo <= hi:  # NaN too
        raise ValueError(f"guidance_interval: got {described(interval)}, expected lo <= hi")
    return (lo, hi), phi


def check_callback(callback: object, every: object, finish: object) -> None:
    """Raises TypeError or ValueError for what cannot be called, or not every so often."""
    for name, function in (("callback", callback), ("finish", finish)):
        if function is not None and not callable(function):
            raise TypeError(f"{name}: got {type(function).__name__}, expected a callable or None")
    if whole_number("every", every) < 1:
        raise ValueError(f"every: got {every}, expected at least 1")


def _number(name: str, value: object) -> float:
    number = real_numbers(name, value)
    if number.dim():
        raise ValueError(f"{name}: got shape {list(number.shape)}, expected a number")
    return float(number)
