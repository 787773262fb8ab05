"""Bulk sampling that cannot be lost: units of chains, stored under a hash of all that their bytes depend on.

`Plan` says what to sample, `run` has workers sample it into a folder, `open` reads what is there."""

from .folder import Folder, Status, Verdict
from .folder import Folder as open
from .plan import Job, Plan
from .recipes import read_plan
from .running import recompute, run
from .workers.local_workers import WorkerError

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
