"""Which backend runs an operation.

The order is: the argument ``backend=``, the environment variable ``ULAM_BACKEND``, then the fastest usable one for
the tensors' device. A backend that was asked for and cannot serve raises; a fall-back on the reference is logged, once.
"""

from __future__ import annotations

import importlib
import logging
import os
from functools import cache
from types import ModuleType

import torch

from ulam_kernels.arguments import described, one_of

NAMES = ("cpu", "triton", "cuda", "reference")


@cache
def load(name: str) -> ModuleType | str:
    """The backend's module, or the reason why it cannot be used here."""
    try:
        module = importlib.import_module(f"ulam_kernels.{name}")
        if name == "triton":
            module.require_device()  # its kernels can be imported, and compiled, without one
    except (ImportError, OSError, RuntimeError, AttributeError) as error:  # a broken installation is a reason too
        return str(error) or type(error).__name__
    return module


def backends() -> dict[str, str]:
    """Every backend with ``"usable"`` or the reason why it is not."""
    found = {name: load(name) for name in NAMES}
    return {name: module if isinstance(module, str) else "usable" for name, module in found.items()}


@cache
def _automatic(device_type: str) -> ModuleType:
    if device_type not in ("cpu", "cuda"):
        raise ValueError(f"device: got tensors on {device_type!r}, expected cpu or cuda")
    candidates = ("cpu",) if device_type == "cpu" else ("cuda", "triton")
    for name in (*candidates, "reference"):
        module = load(name)
        if isinstance(module, ModuleType):
            if name == "reference":
                logging.getLogger("ulam").warning(why_reference())
            return module
    raise RuntimeError(f"backend: got none that is usable, expected one of {', '.join(NAMES)}: {backends()}")


def why_reference() -> str:
    """The message for a fall-back on the reference backend."""
    reasons = "; ".join(f"{name}: {state}" for name, state in backends().items() if state != "usable")
    return f"the slow reference backend runs the fused operations ({reasons})"


@cache
def _named(name: str, device_type: str, source: str) -> ModuleType:
    if name not in NAMES:
        raise ValueError(f"{source}: got {name!r}, expected {one_of(name, NAMES)}")
    module = load(name)
    if isinstance(module, str):
        raise ValueError(f"{source}: got {name!r}, expected a backend that is usable here: {module}")
    serves = {"cpu": ("cpu",), "reference": ("cpu", "cuda")}.get(name, ("cuda",))
    if device_type not in serves:
        raise ValueError(f"{source}: got {name!r}, expected a backend for tensors on {device_type!r}")
    return module


def select(backend: str | None, device_type: str, dtype: torch.dtype) -> ModuleType:
    """The module that runs an operation on tensors of this device and dtype.

    float64 exists on the reference backend alone (for checking).

    Raises:
        ValueError: the backend asked for is unknown, not usable here, or does not serve these tensors.
    """
    source = "backend"
    if backend is not None and not isinstance(backend, str):
        raise TypeError(f"backend: got {described(backend)}, expected one of {', '.join(NAMES)}")
    if dtype == torch.float64:
        if backend not in (None, "reference"):
            raise ValueError(
                f"backend: got {backend!r}, expected 'reference': float64 exists on the reference backend alone"
            )
        backend = "reference"
    if backend is None:
        backend = os.environ.get("ULAM_BACKEND") or None
        source = "ULAM_BACKEND"
    return _automatic(device_type) if backend is None else _named(backend, device_type, source)


def select_for_networks(backend: str | None, device_type: str, dtype: torch.dtype) -> ModuleType:
    """As :func:`select`, for operations that hold a network: on a GPU Triton has them, and runs where nobody chose.

    Raises:
        ValueError: also for a backend that does not have them.
    """
    free = backend is None and not os.environ.get("ULAM_BACKEND")
    on_gpu = device_type == "cuda" and dtype != torch.float64
    module = select("triton" if free and on_gpu else backend, device_type, dtype)
    if not hasattr(module, "bound_walk") or (device_type == "cuda" and name_of(module) == "reference"):
        expected = "'triton'" if device_type == "cuda" else "'cpu' or 'reference'"
        raise ValueError(f"backend: got {name_of(module)!r}, expected {expected}, which has this operation")
    return module


def name_of(module: ModuleType) -> str:
    """The backend's name: ``cpu``, ``triton``, ``cuda`` or ``reference``."""
    return module.__name__.rpartition(".")[2]
