"""ulam: a sampling engine for trained diffusion, score-based and energy-based models.

A sampler is a table of coefficients, a chain is a row pointer, and one fused kernel executes rows.
"""

from ulam_kernels import __version__, backends

from . import noise, ops, samplers, schedules
from .conditioning import shared
from .denoiser import Denoiser
from .engine import Engine, Report, Result
from .job import Job
from .program import Program
from .sampling import sample

__all__ = [
    "Denoiser",
    "Engine",
    "Job",
    "Program",
    "Report",
    "Result",
    "__version__",
    "backends",
    "noise",
    "ops",
    "sample",
    "samplers",
    "schedules",
    "shared",
]
