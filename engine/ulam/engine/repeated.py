"""Jobs that are asked for again and again, as in control loops: all but the first are made without its checks."""

from __future__ import annotations

import operator
from typing import Any

from ..denoiser import Denoiser
from ..programs.program import Program
from .job import Job
from .submission import job_of

FIXED = {type(None), bool, int, float, Program}  # arguments that are what they were where they are the same objects


class Repeated:
    """Makes the jobs of one denoiser and sample shape."""

    def __init__(self, denoiser: Denoiser, shape: tuple[int, ...]) -> None:
        self._about = denoiser, shape
        self._last: tuple[tuple[object, ...], Job] | None = None  # a job of its own: the caller's may be written to

    def job_of(self, *given: Any, **named: Any) -> Job:
        """As :func:`.submission.job_of`, of the arguments behind the shape."""
        arguments = *given, *named.values()
        last = self._last
        if last is not None and len(arguments) == len(last[0]) and all(map(operator.is_, arguments, last[0])):
            return last[1].again()
        job = job_of(*self._about, *given, **named)
        silent = not job.program.needs_reductions  # else its norms may be worth a warning, each time
        self._last = (arguments, job.again()) if silent and FIXED.issuperset(map(type, arguments)) else None
        return job
