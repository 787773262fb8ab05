"""How far a bulk run is, from the files of its folder alone."""

from __future__ import annotations

from dataclasses import dataclass

from .record import Record, finished_units
from .store.leases import running
from .store.store import Store, failed_chains


@dataclass(frozen=True)
class Status:
    """How far a run is. units, chains: of the plan; ``done_`` what is finished of them; running: units in the hands of
    workers that live; failed: chains that turned NaN or Inf; errors: what workers stopped at, by unit, in words.
    rate: chains a second of the workers that run; seconds_left: at that rate, None without any.
    """

    units: int
    done_units: int
    chains: int
    done_chains: int
    running: int
    workers: int
    failed: int
    errors: dict[str, str]
    rate: float

    @property
    def seconds_left(self) -> float | None:
        """Until the expected end."""
        return (self.chains - self.done_chains) / self.rate if self.rate else None


def status_of(store: Store, record: Record) -> Status:
    """How far the run of a folder is."""
    leases, rates = running(store)
    errors = store.errors()
    units = chains = failed = 0
    for unit, name in finished_units(store, record):
        units, chains, failed = units + 1, chains + unit.end - unit.begin, failed + failed_chains(name)
        leases.discard(unit.key)
        errors.pop(unit.key, None)
    return Status(
        record.count,
        units,
        record.chains,
        chains,
        len(leases),
        len(rates),
        failed,
        errors,
        sum(rates),
    )
