"""Checks of an engine's own arguments: one clear error each, before anything is allocated."""

from __future__ import annotations

import os

import torch

import ulam_kernels.dispatch
from ulam_kernels.arguments import choice, described, positive
from ulam_kernels.ops import FLOATS

from ..arguments import whole_number
from ..denoiser import Denoiser
from .ladder import Ladder
from .network import NetworkOptions
from .scheduler import POLICIES
from .tuned import Tuned

DEFAULT_SLOTS = 256
RESULTS = ("device", "host")


def check_options(
    denoiser: object,
    dtype: object,
    options: object,
    *,
    policy: object = "fifo",
    queue: object = None,
    results: object = "device",
    watchdog: object = None,
    ladder: object = None,
    **switches: object,
) -> NetworkOptions:
    """How the network is called: as the options, or what was tuned, say.

    Raises TypeError or ValueError for an invalid argument of :class:`ulam.Engine`, named in the message.
    """
    if not isinstance(denoiser, Denoiser):
        raise TypeError(f"denoiser: got {described(denoiser)}, expected a ulam.Denoiser")
    if not isinstance(dtype, torch.dtype) or dtype not in (*FLOATS, torch.float64):
        raise ValueError(f"dtype: got {described(dtype)}, expected float32, bfloat16, float16 or float64")
    if queue is not None and whole_number("queue", queue) < 1:
        raise ValueError(f"queue: got {queue}, expected at least 1 chain, or None")
    for name, chosen, choices in (("policy", policy, POLICIES), ("results", results, RESULTS)):
        if not isinstance(chosen, str) or chosen not in choices:
            choice(chosen, name, choices)
    if watchdog is not None:
        positive(watchdog, "watchdog")
    if options is not None and not isinstance(options, NetworkOptions | Tuned):
        raise TypeError(f"options: got {described(options)}, expected a ulam.NetworkOptions or Tuned, or None")
    if ladder is not None and not isinstance(ladder, Ladder):
        raise TypeError(f"ladder: got {described(ladder)}, expected a ulam.Ladder or None")
    for name, flag in switches.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name}: got {described(flag)}, expected True or False")
    return options.options if isinstance(options, Tuned) else options or NetworkOptions()


def default_slots(options: NetworkOptions | Tuned | None) -> int:
    """The number of slots where none is given: as tuned, or ``DEFAULT_SLOTS``."""
    return options.slots if isinstance(options, Tuned) else DEFAULT_SLOTS


def check_slots(slots: object) -> int:
    """The number of slots as an int. Raises TypeError or ValueError unless it is 1 to 2^31 - 1."""
    count = whole_number("slots", slots)
    if not 1 <= count < 1 << 31:
        raise ValueError(f"slots: got {count}, expected at least 1" + (" and at most 2^31 - 1" if count > 0 else ""))
    return count


def backend_name(
    denoiser: Denoiser, device: torch.device, backend: str | None, dtype: torch.dtype
) -> tuple[str, tuple[str, ...]]:
    """The name of the backend that runs, and why it is the slow reference where nobody asked for that.

    Raises ValueError for a backend that cannot be used here, or a network with parameters on another device.
    """
    name = ulam_kernels.dispatch.name_of(ulam_kernels.dispatch.select(backend, device.type, dtype))
    for net, whose in ((denoiser.net, "network"), (denoiser.guide, "guide")):
        for parameter_name, parameter in net.named_parameters() if isinstance(net, torch.nn.Module) else ():
            if parameter.device != device:
                mismatch = f"got {device}, but the {whose}'s {parameter_name} is on {parameter.device}"
                raise ValueError(f"device: {mismatch}, expected the same for both")
    return name, fallbacks(name, backend, dtype)


def fallbacks(name: str, backend: str | None, dtype: torch.dtype) -> tuple[str, ...]:
    """Why operations run on the slow reference though nobody asked for it; empty if they do not."""
    asked = backend or os.environ.get("ULAM_BACKEND")
    if name != "reference" or asked == "reference" or dtype == torch.float64:
        return ()
    return (ulam_kernels.dispatch.why_reference(),)
