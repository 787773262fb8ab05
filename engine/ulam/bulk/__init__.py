"""Bulk sampling that cannot be lost: units of chains, stored under a hash of all that their bytes depend on.

`Plan` says what to sample, `run` has workers sample it into a folder, `open` reads what is there."""

from typing import TYPE_CHECKING

from ..lazily import attribute

if TYPE_CHECKING:
    from .folder import Folder, Verdict
    from .folder import Folder as open
    from .plan import Job, Plan
    from .recipes import read_plan
    from .running import recompute, run
    from .status import Status
    from .workers.local_workers import WorkerError

_MODULES = {
    "Folder": ".folder",
    "Job": ".plan",
    "Plan": ".plan",
    "Status": ".status",
    "Verdict": ".folder",
    "WorkerError": ".workers.local_workers",
    "open": ".folder:Folder",
    "read_plan": ".recipes",
    "recompute": ".running",
    "run": ".running",
}

__all__ = [
    "Folder",
    "Job",
    "Plan",
    "Status",
    "Verdict",
    "WorkerError",
    "open",
    "read_plan",
    "recompute",
    "run",
]


def __getattr__(name: str) -> object:
    return attribute(__name__, name, _MODULES)


def __dir__() -> list[str]:
    return __all__
