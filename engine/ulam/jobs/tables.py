"""Sampling jobs from tables of plain values: the options of `ulam sample`, or a TOML file."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from ulam_kernels.arguments import described, likely

from ..denoiser import Sampler
from ..files import parse_toml
from ..guidance import rule_of
from ..models.built_in import Model
from ..programs.clip import DynamicThreshold
from ..samplers import GridSampler, catalogue
from ..samplers.names import COMFYUI, recipe
from .images import read_image

DEFAULT_CHAINS, DEFAULT_SAMPLER, DEFAULT_STEPS = 64, "ddim", 50
MOST_CHAINS, MOST_LABELS = 10**9, 100_000
# Keys of a job; all others are arguments of its sampler.
KEYS = (
    "sampler", "chains", "first", "labels", "guidance", "guidance_interval", "guidance_rescale", "guidance_rule",
    "seed", "priority", "weight", "deadline", "known", "mask",
)  # fmt: skip
SUBMITTED = ("guidance_interval", "guidance_rescale", "priority", "weight", "deadline")


@dataclass(frozen=True, eq=False)
class JobSpec:
    """One job, as far as it is known without an engine. ``submit``: the arguments of :meth:`ulam.Engine.submit`."""

    sampler: Sampler
    chains: range
    labels: list[int] | None
    submit: dict[str, Any] = field(repr=False)

    @property
    def cond(self) -> dict[str, torch.Tensor]:
        """The network's conditioning by name, ``[chains, ...]``."""
        found: dict[str, torch.Tensor] = self.submit.get("cond", {})
        return found


def read_jobs(path: Path, defaults: Mapping[str, Any], model: Model, device: torch.device) -> list[JobSpec]:
    """The ``[[job]]`` tables of a TOML file, each over the ``defaults``. Raises as :func:`read_tables`, and:

    Raises:
        ValueError, TypeError, OSError: an invalid job, named by its number.
    """
    _, tables = read_tables(path)
    return make_jobs([{**defaults, **table} for table in tables], model, device)


def read_tables(path: Path, settings: Collection[str] = ()) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The keys of a TOML file that stand before its tables, of ``settings``, and its ``[[job]]`` tables.

    Keys are spelled with _ in the result, and may be with - in the file.

    Raises:
        OSError, ValueError: no such file, not TOML, unknown keys, or no table.
    """
    if not path.is_file():
        raise FileNotFoundError(f"jobs: got {path}, expected a TOML file")
    try:
        data = parse_toml(f"jobs: {path}", path.read_bytes().decode())  # line ends as they are
    except UnicodeDecodeError as error:
        raise ValueError(f"jobs: {path}: got {error}, expected TOML") from None
    tables = data.pop("job", None)
    found = _spelled(data, "keys")
    if unknown := found.keys() - {*settings}:
        also = f" or {', '.join(settings)}" if settings else " only"
        meant = likely(sorted(unknown)[0], settings)
        also += f" (did you mean {meant}?)" if meant is not None else ""
        raise ValueError(f"jobs: got {path} with {sorted(unknown)[0]!r}, expected [[job]] tables{also}")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"jobs: got {path} without a [[job]] table, expected one at least")
    return found, [_spelled(table, f"job {number}: keys") for number, table in enumerate(tables, 1)]


def _spelled(table: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = {key.replace("-", "_"): value for key, value in table.items()}
    if len(found) < len(table):
        raise ValueError(f"{name}: got one spelled with - and with _, expected one of them")
    return found


def make_jobs(tables: Sequence[Mapping[str, Any]], model: Model, device: torch.device) -> list[JobSpec]:
    """A job from each table, see :func:`make_job`; errors name the job by its number."""
    specs = []
    for number, table in enumerate(tables, 1):
        try:
            specs.append(make_job(table, model, device))
        except (ValueError, TypeError) as error:
            raise type(error)(f"job {number}: {error}") from None
    return specs


def make_job(table: Mapping[str, Any], model: Model, device: torch.device) -> JobSpec:
    """A job from its keys: those of :data:`KEYS`, and the sampler's arguments.

    Raises:
        ValueError, TypeError, OSError: an invalid value, named by its key.
    """
    count, first = _integer(table, "chains", DEFAULT_CHAINS), _integer(table, "first", 0)
    if not 1 <= count <= MOST_CHAINS:
        raise ValueError(f"chains: got {count}, expected 1 to 10^9")
    if first < 0:
        raise ValueError(f"first: got {first}, expected a chain's number, at least 0")
    labels = _chain_labels(table.get("labels"), model, count)
    submit = {name: table[name] for name in SUBMITTED if table.get(name) is not None}
    if table.get("guidance_rule") is not None:
        submit["guidance_rule"] = rule_of(table["guidance_rule"])
    for name in ("weight", "deadline"):
        if name in submit:
            submit[name] = _number(name, submit[name])
    submit |= {"seed": _integer(table, "seed", 0), **_conditioning(table.get("guidance"), model, labels, count, device)}
    for name in ("known", "mask"):
        if table.get(name) is not None:
            submit[name] = read_image(name, table[name], model.shape)
    sampler = make_sampler(
        table.get("sampler", DEFAULT_SAMPLER), {key: value for key, value in table.items() if key not in KEYS}
    )
    return JobSpec(sampler, range(first, first + count), labels, submit)


def _integer(table: Mapping[str, Any], name: str, default: int) -> int:
    value = table.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {value!r}, expected a whole number")
    return value


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 2**1000:
        raise TypeError(f"{name}: got {value!r:.60}, expected a finite number")
    return value


# ------------------------------------------------------------------------------------------------ samplers


def samplers_by_name() -> dict[str, type[GridSampler]]:
    """The samplers by their names on the command line, in lower case."""
    return {name.lower(): cls for name, cls in catalogue().items()}


def make_sampler(name: object, arguments: Mapping[str, Any]) -> Sampler:
    """A sampler by name, with its arguments as plain values; 50 steps where nothing says how many.

    name: one of ComfyUI's, spelled as there, then of a class, in any case, then any other that
    :func:`ulam.samplers.named` knows. Lists become tuples.
    ``threshold`` (a quantile, or quantile and cap) is ``clip`` by :class:`ulam.samplers.DynamicThreshold`.

    Raises:
        ValueError, TypeError: no such sampler, an argument that it does not take, or an invalid value.
    """
    known = samplers_by_name()
    given = {key: _plain(value) for key, value in arguments.items() if value is not None}
    if isinstance(name, str) and name not in COMFYUI and name.lower() in known:
        make = known[name.lower()]
    else:
        free_levels = "timesteps" not in given and "spacing" not in given
        make, own = recipe(name, given.pop("sigmas", None), "sampler", free_levels, known)
        given = own | given
    if (threshold := given.pop("threshold", None)) is not None:
        if "clip" in given:
            raise ValueError("threshold: got one beside clip, expected one of them")
        numbers = threshold if isinstance(threshold, tuple) else (threshold,)
        if not 1 <= len(numbers) <= 2:
            raise ValueError(f"threshold: got {described(threshold)}, expected a quantile, or quantile and cap")
        given["clip"] = DynamicThreshold(*numbers)
    taken = {option.name: option for option in fields(make) if option.init}
    if strange := given.keys() - taken.keys():
        key = sorted(strange)[0]
        right = ", ".join(taken)
        meant = likely(key, taken)
        right += f" (did you mean {meant}?)" if meant is not None else ""
        raise ValueError(f"{key}: got {described(given[key])}, expected an argument of the sampler {name}: {right}")
    lists = any(isinstance(given.get(key), tuple) for key in ("timesteps", "sigmas", "levels"))
    says_how_many = lists or "steps" in given or "levels" in given
    if "steps" in taken and "levels" not in taken and not says_how_many and not getattr(make, "every_step", False):
        given["steps"] = DEFAULT_STEPS
    if missing := [n for n, o in taken.items() if o.default is o.default_factory is MISSING and n not in given]:
        raise ValueError(f"{missing[0]}: got none, expected one for the sampler {name}")
    made: Sampler = make(**given)
    return made


def parse_option(text: str) -> tuple[str, Any]:
    """``name=value`` with a number, true, false, none, numbers in a row (1,2,3) or a word. Raises ValueError."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"got {text!r}, expected name=value")
    return name, _value(value.strip())


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    if "," in text:
        return tuple(_value(part.strip()) for part in text.split(",") if part.strip())
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _plain(value: Any) -> Any:
    return tuple(_plain(part) for part in value) if isinstance(value, (list, tuple)) else value


# ------------------------------------------------------------------------------------- labels, guidance, images


def parse_labels(text: str) -> list[int]:
    """`0-9`, `3,1,4` and mixtures of both. Raises ValueError."""
    labels: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip())
        if match is None or (match[2] and not 0 <= int(match[2]) - int(match[1]) < MOST_LABELS):
            raise ValueError(f"labels: got {text!r}, expected labels such as 0-9 or 3,1,4")
        labels += range(int(match[1]), int(match[2] or match[1]) + 1)
    return labels


def _chain_labels(given: object, model: Model, chains: int) -> list[int] | None:
    """One label a chain: the given ones, cyclically; None without any."""
    if given is None:
        return None
    labels: list[Any] = parse_labels(given) if isinstance(given, str) else given if isinstance(given, list) else [given]
    if not labels or not all(type(label) is int and -(1 << 63) <= label < 1 << 63 for label in labels):
        raise TypeError(f"labels: got {given!r:.60}, expected whole numbers of 64 bits, or text such as 0-9")
    if model.classes is not None and (unknown := [y for y in labels if not 0 <= y < model.classes]):
        raise ValueError(f"labels: got {unknown[0]}, expected 0 to {model.classes - 1}, the classes of {model.name}")
    return [labels[i % len(labels)] for i in range(chains)]


def check_unlabelled(option: str, model: Model) -> None:
    """Raises ValueError, naming the option where labels come from, for a model that cannot do without them."""
    if model.labelled:
        known = "" if model.classes is None else f" of 0 to {model.classes - 1}"
        raise ValueError(f"{option}: got no label, expected labels{known} for {model.name}")


def _conditioning(
    guidance: Any, model: Model, labels: list[int] | None, chains: int, device: torch.device
) -> dict[str, Any]:
    """The arguments of `submit` for labels and guidance."""
    null, guided = model.null_class, {} if guidance is None else {"guidance": guidance}
    if labels is None:
        if guided and model.denoiser.guide is None:
            raise ValueError(f"guidance: got {guidance} without labels, expected labels with it")
        if null is None:
            check_unlabelled("labels", model)
            return guided
        labels = [null] * chains
    cond = {model.label: torch.tensor(labels, device=device)}
    if guidance is None or model.denoiser.guide is not None:  # a guide has the same labels
        return {"cond": cond, **guided}
    if null is None:
        raise ValueError(f"guidance: got {guidance}, expected null-class with it, the label that means no class")
    return {"cond": cond, **guided, "uncond": {name: torch.full_like(y, null) for name, y in cond.items()}}
