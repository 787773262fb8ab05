"""The plan as it lies in the folder of a bulk run, and which of its units are done there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..files import parse_json
from .store.store import Store
from .units import PARTS, PlannedUnit, units_of

FORMAT = "ulam-bulk-1"


@dataclass(frozen=True, eq=False)
class Record:
    """The plan as it is on disk, which is read without the network.

    jobs: for each its sampler and so on in words, ``chains`` (how many), ``shape``, the hashes of its ``parts``, the
    ``keys`` of its units. unit: chains in one.
    """

    jobs: list[dict[str, Any]]
    unit: int
    format: str
    recipe: dict[str, Any] | None
    environment: dict[str, Any]

    def units(self) -> Iterator[PlannedUnit]:
        """All units in the order of jobs and chains."""
        return units_of([(job["chains"], job["keys"]) for job in self.jobs], self.unit)

    @property
    def count(self) -> int:
        """The number of units."""
        return sum(len(job["keys"]) for job in self.jobs)

    @property
    def chains(self) -> int:
        """The number of samples."""
        return sum(job["chains"] for job in self.jobs)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the units' keys: the same for equal plans, whatever the environment."""
        found = hashlib.sha256(f"{self.format} {self.unit}".encode())
        for job in self.jobs:
            found.update(f"job {job['chains']}".encode())
            for key in job["keys"]:
                found.update(key.encode())
        return found.hexdigest()

    def as_json(self) -> bytes:
        """The bytes of plan.json."""
        told = {
            "format": FORMAT, "files": self.format, "unit": self.unit, "environment": self.environment,
            "recipe": self.recipe, "jobs": self.jobs,
        }  # fmt: skip
        return (json.dumps(told | {"sha256": _hash(told)}, indent=1) + "\n").encode()


def _hash(told: dict[str, Any]) -> str:
    found = hashlib.sha256()
    for part in json.JSONEncoder().iterencode(told):  # piece by piece: there may be a million keys
        found.update(part.encode())
    return found.hexdigest()


def read_record(folder: Path) -> Record:
    """The plan in a folder.

    Raises:
        FileNotFoundError, ValueError: no such folder, no plan in it, or one that is damaged.
    """
    path = folder / "plan.json"
    try:
        told = parse_json(str(path), path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"folder: got {folder}, expected the folder of a bulk run, with its plan.json"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"folder: got {path} ({error}), expected the plan of a bulk run") from None
    try:
        if told["format"] != FORMAT:
            raise ValueError(f"the format {told['format']}")
        if told.pop("sha256") != _hash(told):  # a changed environment would hide all units from the next run
            raise ValueError("damaged: not what was written")
        record = Record(told["jobs"], told["unit"], told["files"], told["recipe"], told["environment"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"folder: got {path} ({error}), expected the plan of a bulk run") from None
    return record


def write_record(store: Store, record: Record) -> Record:
    """Write a plan into a folder where there is none, and return the one that is there.

    Raises ValueError where it is another plan, naming what differs.
    """
    if not (store.folder / "plan.json").exists():
        store.put("plan.json", record.as_json(), replace=False)
    there = read_record(store.folder)
    if there.digest != record.digest:
        raise ValueError(f"{difference(record, there)} as the plan in {store.folder} has: take another folder for it")
    return there


def difference(got: Record, expected: Record) -> str:
    """The first thing in which two plans differ, as the beginning of an error message."""
    for name in ("unit", "format"):
        if getattr(got, name) != getattr(expected, name):
            return f"{name}: got {getattr(got, name)}, expected {getattr(expected, name)}"
    if len(got.jobs) != len(expected.jobs):
        return f"jobs: got {len(got.jobs)}, expected {len(expected.jobs)}"
    for number, (mine, other) in enumerate(zip(got.jobs, expected.jobs, strict=True), 1):
        for name in ("chains", "seed", "sampler", "shape"):
            if mine[name] != other[name]:
                return f"{name}: got {mine[name]} in job {number}, expected {other[name]}"
        for name in PARTS:
            if mine["parts"].get(name) != other["parts"].get(name):
                hashes = [job["parts"].get(name, "")[:12] for job in (mine, other)]
                return f"{name}: got those of SHA-256 {hashes[0]} in job {number}, expected {hashes[1]}"
    raise AssertionError("plans with the same parts have the same keys")


def digest(told: dict[str, Any]) -> str:
    """SHA-256 of an environment."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def differences(got: dict[str, Any], expected: dict[str, Any]) -> str:
    """What two environments differ in, such as ``threads 2 (not 1)``."""
    names = [name for name in {**expected, **got} if got.get(name) != expected.get(name)]
    return ", ".join(f"{name} {got.get(name)} (not {expected.get(name)})" for name in names)


def accept_environment(store: Store, record: Record, told: dict[str, Any], allow: bool) -> list[str]:
    """The digests of all environments whose units count as done in a folder, this one's first.

    Raises ValueError for an environment that is not among them, unless ``allow``, which makes it one of them.
    """
    accepted = environments(store, record)
    own = digest(told)
    if own not in accepted:
        if not allow:
            raise ValueError(
                f"environment: got {differences(told, record.environment)}, expected that of the units in "
                f"{store.folder}, or --allow-environment (allow_environment=True): the bits may differ"
            )
        store.put(f"environments/{own}.json", json.dumps(told, indent=1).encode())
    return [own, *(other for other in accepted if other != own)]


def environments(store: Store, record: Record) -> list[str]:
    """The digests of all environments whose units count as done."""
    found = [digest(record.environment)]
    for path in sorted((store.folder / "environments").glob("*.json")):
        if path.stem not in found:
            found.append(path.stem)
    return found


def file_key(work: str, environment: str) -> str:
    """The key of a unit's file: SHA-256 of its work's key and of the environment's digest."""
    return hashlib.sha256(f"{work} {environment}".encode()).hexdigest()


def finished_units(store: Store, record: Record) -> Iterator[tuple[PlannedUnit, str]]:
    """The finished units in order, each with the name of its file."""
    present, accepted = store.present(), environments(store, record)
    for unit in record.units():
        for environment in accepted:
            if (ending := present.get(key := file_key(unit.key, environment))) is not None:
                yield unit, key + ending
                break
