"""From the options of the command line to a model: built in, saved by diffusers, or made by a function of yours."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ulam_kernels.arguments import described, likely, one_of

from .. import schedules
from ..denoiser import Denoiser
from ..models.built_in import BUILT_IN, Model
from ..models.weights import load_weights
from ..schedules import Schedule
from .folders import brings_schedule, saved_model

CONSTRUCTORS = ("vp_linear", "vp_scaled_linear", "vp_cosine", "ve", "edm", "flow")
NAMED = 8  # arguments in an error


def load_model(
    name: str,
    weights: Path | None = None,
    shape: tuple[int, ...] | None = None,
    schedule: str | None = None,
    predicts: str | None = None,
    null_class: int | None = None,
    time: str | None = None,
    output: str | int | None = None,
) -> Model:
    """A built-in model, one that diffusers saved in a folder, or the one that ``module:factory`` or ``file.py:factory``
    makes.

    The folder is a pipeline's, or a model's. It brings its shape where the configuration has one, and its schedule and
    prediction, but for a model without a scheduler: see :func:`ulam.jobs.folders.saved_model`.
    The factory takes no arguments and returns a network ``net(x, t, **cond)``, or a :class:`ulam.Denoiser`, which
    brings its schedule, prediction, time and output. A network gets them from ``schedule`` (a call such as
    ``"vp_linear(1000)"``, the default), ``predicts`` (default eps), ``time`` and ``output``, as :class:`ulam.Denoiser`
    has them. In place of the factory a module may hold the network or the Denoiser itself. ``weights`` are loaded
    strictly.

    Raises:
        ValueError, TypeError, OSError, ImportError: an invalid option, named in the message.
    """
    if null_class is not None and not -(1 << 63) <= null_class < 1 << 63:
        raise ValueError(f"null-class: got {described(null_class)}, expected a whole number of 64 bits")
    told = {"schedule": schedule, "predicts": predicts, "time": time, "output": output}
    brought = {"weights": weights, **told}
    if name in BUILT_IN:
        _check_absent({**brought, "shape": shape, "null-class": null_class}, f"the model {name}")
        return BUILT_IN[name]()
    if Path(name).is_dir():
        _check_absent({"weights": weights, "time": time, "output": output}, f"the pipeline in {name}")
        return _in_folder(name, shape, schedule, predicts, null_class)
    if ":" not in name:
        raise _no_model(name)
    made = call_factory("model", name)
    denoiser = made if isinstance(made, Denoiser) else None
    net = made if denoiser is None else denoiser.net
    if weights is not None:
        load_weights(net, weights)
    if denoiser is None:
        known = parse_schedule("vp_linear(1000)" if schedule is None else schedule)
        denoiser = Denoiser(net, known, predicts or "eps", time or "auto", output=output)
    else:
        _check_absent(told, f"the Denoiser of {name}")
    if shape is None:
        raise ValueError("shape: got none, expected that of a sample of your model, such as --shape 3,32,32")
    return Model(name, denoiser, shape, null_class=null_class)


def _no_model(name: str) -> ValueError:
    """The error for a name that is neither a model's nor a folder: what there is, and what each has to be."""
    meant = likely(name, BUILT_IN)
    known = ", ".join(BUILT_IN) + ("" if meant is None else f" (did you mean {meant}?)")
    own = "module:factory or file.py:factory, a function that makes the network"
    if (file := Path(f"{name.removesuffix('.py')}.py")).is_file():
        own = f"{file}:FUNCTION, the function in that file which makes the network"
    here = "is no folder" if Path(name).exists() else "is not there"
    folder = "a folder that diffusers saved (model_index.json or config.json is in it)"
    return ValueError(f"model: got {name!r}, which {here}, expected {known}, {folder}, or {own}")


def _in_folder(
    folder: str,
    shape: tuple[int, ...] | None,
    schedule: str | None,
    predicts: str | None,
    null_class: int | None,
) -> Model:
    if brings_schedule(folder):
        _check_absent({"schedule": schedule, "predicts": predicts}, f"the pipeline in {folder}")
        return saved_model(folder, shape, null_class=null_class)
    if schedule is None:
        raise ValueError(
            f"schedule: got none for the model in {folder}, which has no scheduler, expected the one that it was "
            "trained on, such as --schedule 'vp_linear(1000)', and what it predicts, such as --predicts eps"
        )
    return saved_model(folder, shape, parse_schedule(schedule), predicts, null_class)


def _check_absent(options: dict[str, Any], owner: str) -> None:
    """Raise ValueError for an option that was given though the model has its own value."""
    for option, value in options.items():
        if value is not None:
            came = value if isinstance(value, Path) else described(value)
            raise ValueError(f"{option}: got {came}, expected none: {owner} brings its own")


def call_factory(option: str, name: str) -> Any:
    """What the function of ``module:factory`` or ``file.py:factory`` returns; a module may lie in the current folder.

    A network or a Denoiser in place of the function is returned as it is.

    Raises:
        ImportError, ValueError: no such module or function, or one that takes arguments; the message begins with
            ``option``.
    """
    module_name, _, factory_name = name.rpartition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: modules of the current folder
    if module_name.endswith(".py"):
        module = _module_of_file(option, name, Path(module_name))
    else:
        try:
            module = importlib.import_module(module_name)
        except (ImportError, ValueError, SyntaxError, TypeError) as error:
            raise ImportError(
                f"{option}: got {name!r}, expected module:factory of a module that can be imported: {error}"
            ) from error
    factory = getattr(module, factory_name, None)
    if not callable(factory) and not isinstance(factory, Denoiser):
        raise ValueError(f"{option}: got {name!r}, expected a function of the module {module_name}")
    if isinstance(factory, (torch.nn.Module, Denoiser)):
        return factory
    with suppress(ValueError):  # of functions in C, which do not say what they take
        needs = [
            argument.name
            for argument in inspect.signature(factory).parameters.values()
            if argument.default is argument.empty
            and argument.kind not in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD)
        ]
        if needs:
            takes = f"which takes {', '.join(needs[:NAMED])}, expected a function without arguments"
            raise TypeError(f"{option}: got {name!r}, {takes}: def make(): return {factory_name}(...)")
    return factory()


def _module_of_file(option: str, name: str, file: Path) -> ModuleType:
    """The module that a file is, under its own name, its folder being where it finds its neighbours."""
    if not file.is_file():
        raise FileNotFoundError(f"{option}: got {name!r}, where {file} is no file, expected file.py:factory")
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(file.stem)
    except (ImportError, ValueError, SyntaxError, TypeError) as error:
        raise ImportError(f"{option}: got {name!r}, expected a file that can be imported: {error}") from error
    found = getattr(module, "__file__", None)
    if found is None or Path(found).resolve() != file.resolve():
        raise ImportError(f"{option}: got {name!r}, but {file.stem} is the module of {found}, expected another name")
    return module


def parse_schedule(text: str) -> Schedule:
    """A schedule from a call such as ``vp_linear(1000, beta_end=0.02)``: numbers only, nothing is evaluated.

    Raises:
        ValueError: not such a call, or an argument out of range.
    """
    call = re.fullmatch(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*", text)
    if call is None or call[1] not in CONSTRUCTORS:
        right = one_of(call and call[1], CONSTRUCTORS)
        raise ValueError(f"schedule: got {text!r}, expected {right} with numbers in brackets")
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
        raise ValueError(f"schedule: got {text!r}, expected the arguments of {call[1]}: {error}") from None
    return made
