"""ulam: a sampling engine for trained diffusion, score-based and energy-based models.

A sampler is a table of coefficients, a chain is a row pointer, and one fused kernel executes rows.
"""

from ulam_kernels import __version__, backends

from . import bounds, bulk, ebm, guidance, mcmc, noise, objectives, ops, samplers, schedules, sure, tweedie, vae
from .conditioning import shared
from .denoiser import Denoiser
from .engine.engine import Engine
from .engine.errors import NetworkError, QueueFull
from .engine.job import Job, Preview
from .engine.ladder import Ladder
from .engine.network import NetworkOptions
from .engine.report import Report
from .engine.results import Result
from .engine.sample import sample
from .engine.tuned import Tuned
from .mcmc import Energy
from .memory import keep_freed_memory
from .programs.program import Program
from .tuning.tune import tune

__all__ = [
    "Denoiser",
    "Energy",
    "Engine",
    "Job",
    "Ladder",
    "NetworkError",
    "NetworkOptions",
    "Preview",
    "Program",
    "QueueFull",
    "Report",
    "Result",
    "Tuned",
    "__version__",
    "backends",
    "bounds",
    "bulk",
    "ebm",
    "guidance",
    "keep_freed_memory",
    "mcmc",
    "noise",
    "objectives",
    "ops",
    "sample",
    "samplers",
    "schedules",
    "shared",
    "sure",
    "tune",
    "tweedie",
    "vae",
]
