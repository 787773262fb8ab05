"""`ulam.bulk.open`: what lies in the folder of a bulk run: its state, its samples, and whether they are as written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from ulam_kernels.arguments import described, switch

from ..files import full_path, parse_json
from . import exports
from .record import (
    Record,
    accept_environment,
    difference,
    environments,
    file_key,
    finished_units,
    read_record,
)
from .status import Status, status_of
from .store.store import Store, failed_chains, format_of
from .store.unit import Damaged, Unit, from_bytes
from .units import PlannedUnit


@dataclass(frozen=True)
class Verdict:
    """What verification found. units: whole. missing: of the plan, not there. damaged: names of files whose bytes are
    not those that were written, now in the folder ``damaged``. foreign: names of units of no job of this plan.
    """

    units: int
    missing: list[PlannedUnit]
    damaged: list[str]
    foreign: list[str]

    @property
    def passed(self) -> bool:
        """Whether every unit of the plan is there, as it was written."""
        return not self.missing and not self.damaged


class Batches(IterableDataset[dict[str, Any]]):
    """Finished samples in the order of jobs and chains, a unit a batch; see :meth:`Folder.batches`."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._begun: Iterator[dict[str, Any]] | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        every, first = (info.num_workers, info.id) if info is not None else (1, 0)
        for number, (job, unit) in enumerate(self._folder.finished()):
            if number % every == first:
                yield {"job": job, **vars(unit)}

    def __next__(self) -> dict[str, Any]:
        self._begun = self._begun or iter(self)
        return next(self._begun)


class Folder:
    """The folder of a bulk run. It is read anew at every call, while workers go on. Raises as :func:`read_record`."""

    def __init__(self, folder: str | Path) -> None:
        self.path = full_path(folder)
        self.store = Store(self.path)
        self.record: Record = read_record(self.path)

    def status(self) -> Status:
        """How far the run is."""
        return status_of(self.store, self.record)

    def finished(self) -> Iterator[tuple[int, Unit]]:
        """The finished units in order, with their jobs' numbers from 0.

        Raises ValueError for a damaged one.
        """
        for unit, name in finished_units(self.store, self.record):
            yield unit.job, self.read(name)

    def read(self, name: str) -> Unit:
        """A unit by the name of its file. Raises ValueError if it is damaged."""
        try:
            return from_bytes(self.store.path(name).read_bytes(), name[:64], format_of(name))
        except Damaged as error:
            raise ValueError(
                f"unit: got {self.store.path(name)}, damaged ({error}), expected what was written: ulam verify sets it "
                "aside, ulam run does it again"
            ) from None

    def batches(self) -> Batches:
        """Finished samples, a unit a batch: an iterator, and an ``IterableDataset`` for ``torch.utils.data.DataLoader``
        (with ``batch_size=None``), whose workers share the units.

        Each batch is a dict: ``x`` ``[n, *shape]``, ``chains`` int64 ``[n]``, ``labels`` int64 ``[n]`` or None,
        ``seed``, ``job`` (from 0), ``failed`` (place in x: row).
        """
        return Batches(self)

    def verify(self) -> Verdict:
        """Hash every unit again, and set damaged ones aside, so that the next run does them again.

        Raises OSError where a damaged unit cannot be moved.
        """
        whole, damaged = 0, []
        present = self.store.present()
        wanted = {
            file_key(unit.key, environment): unit
            for environment in environments(self.store, self.record)
            for unit in self.record.units()
        }
        for key, ending in sorted(present.items()):
            if key in wanted:
                name = key + ending
                try:
                    from_bytes(self.store.path(name).read_bytes(), key, format_of(name))
                    whole += 1
                except Damaged:
                    self.store.set_aside(name)
                    damaged.append(name)
        finished = {unit for unit, _ in finished_units(self.store, self.record)}
        missing = [unit for unit in self.record.units() if unit not in finished]
        foreign = sorted(key + ending for key, ending in present.items() if key not in wanted)
        return Verdict(whole, missing, damaged, foreign)

    def merge(self, other: Folder, allow_environment: bool = False) -> int:
        """Copy the finished units of another folder that this one lacks; how many.

        Raises:
            ValueError: another plan, another environment (unless it is allowed), or a damaged unit.
            OSError: this folder cannot be written to.
        """
        if not isinstance(other, Folder):
            raise TypeError(f"other: got {described(other)}, expected what ulam.bulk.open gives")
        switch(allow_environment, "allow_environment")
        if other.record.digest != self.record.digest:
            raise ValueError(f"{difference(other.record, self.record)} as the plan in {self.path} has")
        accept_environment(self.store, self.record, other.record.environment, allow_environment)
        for path in (other.path / "environments").glob("*.json"):
            told = parse_json(str(path), path.read_text())
            accept_environment(self.store, self.record, told, allow_environment)
        mine, copied = {unit for unit, _ in finished_units(self.store, self.record)}, 0
        for unit, name in finished_units(other.store, other.record):
            if unit not in mine:
                other.read(name)
                data = other.store.path(name).read_bytes()
                self.store.put_unit(name[:64], data, failed_chains(name), format_of(name))
                copied += 1
        return copied

    def export(self, to: str, out: str | Path) -> exports.Summary:
        """Write all samples in one of the formats of :mod:`ulam.bulk.exports.formats`; see there.

        Raises ValueError unless all units are done.
        """
        units, finished = self.record.count, sum(1 for _ in finished_units(self.store, self.record))
        if finished < units:
            raise ValueError(
                f"folder: got {self.path} with {finished} of {units} units, expected all: ulam run ends it"
            )
        return exports.write(self.finished(), to, full_path(out, "out"), self.record.chains)
