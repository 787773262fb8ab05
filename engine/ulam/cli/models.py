"""From names to denoisers: the built-in models, and a user's own ``module:factory`` with safetensors weights."""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from ulam_kernels.arguments import described

from .. import schedules
from ..denoiser import Denoiser
from ..files import one_line
from ..models import load_digits
from ..models.digits import NULL_CLASS
from ..schedules import Schedule


@dataclass(frozen=True)
class Model:
    """A denoiser ready to sample. ``classes`` and ``null_class`` are None where it takes no label ``label``."""

    name: str
    denoiser: Denoiser
    shape: tuple[int, ...]
    classes: int | None = None
    null_class: int | None = None
    label: str = "y"


def digits() -> Model:
    """The class-conditional digits U-Net: labels 0 to 9, and 10 for none."""
    denoiser = Denoiser(load_digits(), schedules.vp_linear(1000, 1e-4, 0.02), predicts="eps")
    return Model("digits", denoiser, (1, 28, 28), classes=NULL_CLASS, null_class=NULL_CLASS)


BUILT_IN = {"digits": digits}


def load_model(
    name: str,
    weights: Path | None = None,
    shape: tuple[int, ...] | None = None,
    schedule: str | None = None,
    predicts: str | None = None,
    null_class: int | None = None,
) -> Model:
    """A built-in model, that in the folder of a saved diffusers pipeline, or the one that ``module:factory`` makes.

    A folder brings schedule and prediction along, and the shape where its configuration has one.
    The factory takes no arguments and returns a network ``net(x, t, **cond)``, or a :class:`ulam.Denoiser`, which
    brings its schedule and prediction along. A network gets those from ``schedule`` (a call such as
    ``"vp_linear(1000)"``, the default) and ``predicts`` (default eps). ``weights`` are loaded strictly.

    Raises:
        ValueError, TypeError, OSError, ImportError: what was asked for cannot be had, in one line.
    """
    if null_class is not None and not -(1 << 63) <= null_class < 1 << 63:
        raise ValueError(f"null-class: got {described(null_class)}, expected a whole number of 64 bits")
    if name in BUILT_IN:
        given = {"weights": weights, "shape": shape, "schedule": schedule, "predicts": predicts}
        for option, value in {**given, "null-class": null_class}.items():
            if value is not None:
                raise ValueError(f"{option}: model {name!r} brings its own")
        return BUILT_IN[name]()
    if Path(name).is_dir():
        for option, value in {"weights": weights, "schedule": schedule, "predicts": predicts}.items():
            if value is not None:
                raise ValueError(f"{option}: the pipeline in {name} brings its own")
        from ..integrations.diffusers.saved import saved_model

        return saved_model(name, shape, null_class)
    if ":" not in name:
        there = "a folder of diffusers" if "/" not in name else "a folder that is there"
        raise ValueError(f"model: got {name!r}, expected {', '.join(BUILT_IN)}, {there} or module:factory")
    made = _call_factory(name)
    denoiser = made if isinstance(made, Denoiser) else None
    net = made if denoiser is None else denoiser.net
    if weights is not None:
        load_weights(net, weights)
    if denoiser is None:
        denoiser = Denoiser(net, parse_schedule(schedule or "vp_linear(1000)"), predicts or "eps")
    elif schedule is not None or predicts is not None:
        raise ValueError(f"schedule, predicts: {name} returns a Denoiser, which brings its own")
    if shape is None:
        raise ValueError("shape: needed with a model of your own, such as --shape 3,32,32")
    return Model(name, denoiser, shape, null_class=null_class)


def _call_factory(name: str) -> Any:
    module_name, _, factory_name = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: modules of the current folder
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError, SyntaxError) as error:
        raise ImportError(f"model: cannot import {module_name!r}: {error}") from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise ValueError(f"model: module {module_name!r} has no function {factory_name!r}")
    return factory()


def load_weights(net: object, path: Path) -> None:
    """Load safetensors weights into a network, strictly: same names, same shapes, real, whole or complex as there.

    Raises:
        OSError, ValueError, TypeError: no such file, not safetensors (a pickle is never opened), or not this network's.
    """
    if not isinstance(net, torch.nn.Module):
        raise TypeError(f"weights: the model is a {type(net).__name__}, expected a torch.nn.Module to load them into")
    if not path.is_file():
        raise FileNotFoundError(f"weights: no file {path}")
    try:
        tensors = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"weights: {path} is not a whole safetensors file ({one_line(error)}); pickles are not opened"
        ) from None
    for key, own in net.state_dict().items():
        if key in tensors and isinstance(own, torch.Tensor) and _kind(tensors[key]) != _kind(own):
            came, wanted = tensors[key].dtype, own.dtype
            raise ValueError(f"weights: {path}: {key} got {came}, expected {wanted} or another type of its kind")
    try:
        net.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise ValueError(f"weights: {path} is not for this network: {one_line(error)}") from None


def kinds_of_weights(path: Path) -> dict[str, str]:
    """By name, whether the tensors of a safetensors file are complex, float, bool or int. Its header alone is read."""
    with safetensors.safe_open(path, framework="pt") as file:
        types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    kinds = {"C": "complex", "F": "float", "B": "bool"}
    return {name: "float" if kind == "BF16" else kinds.get(kind[0], "int") for name, kind in types.items()}


def _kind(tensor: torch.Tensor) -> str:
    """Copies from one kind to another lose an imaginary part or a fraction, or take codes for numbers."""
    if tensor.is_complex() or tensor.is_floating_point():
        return "complex" if tensor.is_complex() else "float"
    return "bool" if tensor.dtype == torch.bool else "int"


def parse_schedule(text: str) -> Schedule:
    """A schedule from a call such as ``vp_linear(1000, beta_end=0.02)``: numbers only, nothing is evaluated.

    Raises:
        ValueError: not such a call, or its arguments are out of range.
    """
    call = re.fullmatch(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*", text)
    constructors = ("vp_linear", "vp_scaled_linear", "vp_cosine", "ve", "edm", "flow")
    if call is None or call[1] not in constructors:
        raise ValueError(f"schedule: got {text!r}, expected one of {', '.join(constructors)} with numbers in brackets")
    positional: list[float] = []
    named: dict[str, float] = {}
    for argument in filter(None, (part.strip() for part in (call[2] or "").split(","))):
        key, equals, value = argument.rpartition("=")
        try:
            number = int(value) if value.strip().lstrip("+-").isdigit() else float(value)
        except ValueError:
            raise ValueError(f"schedule: got {argument!r} in {text!r}, expected a number") from None
        if equals:
            if key.strip() in named:
                raise ValueError(f"schedule: got {key.strip()} twice in {text!r}, expected it once")
            named[key.strip()] = number
        else:
            positional.append(number)
    try:
        made: Schedule = getattr(schedules, call[1])(*positional, **named)
    except TypeError as error:
        raise ValueError(f"schedule: {text!r}: {error}") from None
    return made
