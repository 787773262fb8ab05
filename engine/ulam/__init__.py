"""ulam: a sampling engine for trained diffusion, score-based and energy-based models.

A sampler is a table of coefficients, a chain is a row pointer, and one fused kernel executes rows.
"""

from ulam_kernels import __version__, backends

from . import bounds, ebm, mcmc, noise, objectives, ops, samplers, schedules, sure, tweedie, vae
from .conditioning import shared
from .denoiser import Denoiser
from .engine import Engine
from .errors import NetworkError, QueueFull
from .job import Job
from .mcmc import Energy
from .network import NetworkOptions
from .preview import Preview
from .program import Program
from .report import Report
from .results import Result
from .sampling import sample

__all__ = [
    "Denoiser",
    "Energy",
    "Engine",
    "Job",
    "NetworkError",
    "NetworkOptions",
    "Preview",
    "Program",
    "QueueFull",
    "Report",
    "Result",
    "__version__",
    "backends",
    "bounds",
    "ebm",
    "mcmc",
    "noise",
    "objectives",
    "ops",
    "sample",
    "samplers",
    "schedules",
    "shared",
    "sure",
    "tweedie",
    "vae",
]
