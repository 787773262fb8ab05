"""Plans from plain values: the keys of a TOML file, as `ulam run` reads them and plan.json keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from ulam_kernels.arguments import choice, described

from ..arguments import check_shape
from ..engine.network import DTYPES, SHORT, NetworkOptions
from ..engine.tuned import Tuned
from ..files import full_path
from ..jobs.models import load_model
from ..jobs.tables import make_jobs, read_tables
from ..models.built_in import BUILT_IN
from .plan import Job, Plan

MODEL = ("model", "weights", "shape", "schedule", "predicts", "null_class", "time", "output")
PLAN = ("slots", "unit", "device", "backend", "format")
NETWORK = ("autocast", "channels_last", "compile", "gradients", "weights_dtype")
SETTINGS = (*MODEL, *PLAN, *NETWORK)  # keys that may stand before the [[job]] tables
ORDER = ("priority", "weight", "deadline")  # who enters first, which units do not ask


def read_plan(path: str | Path, settings: Mapping[str, Any] = MappingProxyType({})) -> Plan:
    """The plan of a TOML file: ``[[job]]`` tables, before them keys of :data:`SETTINGS`; ``settings`` come over those.

    Raises:
        OSError, ValueError, TypeError, ImportError: an invalid file, setting or job, named in the message.
    """
    if not isinstance(settings, Mapping):
        raise TypeError(f"settings: got {described(settings)}, expected a dict")
    told, tables = read_tables(full_path(path, "path"), SETTINGS)
    told |= settings
    if not isinstance(told.get("model"), str):
        raise ValueError(f"model: got {described(told.get('model'))}, expected one, as --model or in {path}")
    for name in ("weights", "model"):  # other processes may run in other folders
        value = told.get(name)
        if isinstance(value, str) and value not in BUILT_IN and Path(value).exists():
            told[name] = str(Path(value).resolve())
    for table in tables:
        for name in ("known", "mask"):
            if isinstance(value := table.get(name), str):
                table[name] = str(Path(value).resolve())
    return plan_of({"settings": told, "jobs": tables})


def plan_of(recipe: dict[str, Any]) -> Plan:
    """The plan of a recipe, which :attr:`Plan.recipe` and plan.json keep. Raises as :func:`read_plan`."""
    told, tables = recipe["settings"], recipe["jobs"]
    weights, shape = told.get("weights"), told.get("shape")
    model = load_model(
        told["model"],
        None if weights is None else Path(weights),
        None if shape is None else check_shape(shape),
        told.get("schedule"),
        told.get("predicts"),
        told.get("null_class"),
        told.get("time"),
        told.get("output"),
    )
    for number, table in enumerate(tables, 1):
        if given := [name for name in ORDER if table.get(name) is not None]:
            got = f"job {number}: {given[0]}: got {described(table[given[0]])}"
            raise ValueError(f"{got}, expected none: units are done in their order")
    options = NetworkOptions(
        autocast=_dtype(told, "autocast"),
        weights=_dtype(told, "weights_dtype"),
        **{name: told.get(name, False) for name in ("channels_last", "compile", "gradients")},
    )
    jobs = [
        Job(
            model.denoiser, spec.sampler, model.shape, spec.chains, **spec.submit,
            labels=None if spec.labels is None else torch.tensor(spec.labels), labelled=spec.labels is not None,
        )
        for spec in make_jobs(tables, model, torch.device("cpu"))
    ]  # fmt: skip
    plan = Plan(jobs, options=options, **{name: told[name] for name in PLAN if told.get(name) is not None})
    plan.recipe, plan.rebuilt_by = recipe, plan_of
    return plan


def _dtype(told: Mapping[str, Any], name: str) -> torch.dtype | None:
    value = told.get(name)
    return None if value is None else DTYPES[choice(value, name, DTYPES)]


def settings_of(tuned: Tuned) -> dict[str, Any]:
    """The settings of a recipe that run a network as tuned."""
    options = tuned.options
    dtypes = {"autocast": options.autocast, "weights_dtype": options.weights}
    flags = {"channels_last": options.channels_last, "compile": options.compile, "gradients": options.gradients}
    chosen: dict[str, Any] = {name: SHORT[dtype] for name, dtype in dtypes.items() if dtype is not None}
    return {**chosen, **{name: value for name, value in flags.items() if value}, "slots": tuned.slots}
