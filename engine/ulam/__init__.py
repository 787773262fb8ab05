"""ulam: a sampling engine for trained diffusion, score-based and energy-based models.

A sampler is a table of coefficients, a chain is a row pointer, and one fused kernel executes rows.
"""

from typing import TYPE_CHECKING

from .lazily import attribute

if TYPE_CHECKING:
    from ulam_kernels import __version__, backends

    from . import (
        bounds,
        bulk,
        chain_kernel,
        ebm,
        guidance,
        mcmc,
        models,
        noise,
        objectives,
        ops,
        rollouts,
        samplers,
        schedules,
        sure,
        throughput,
        tweedie,
        vae,
    )
    from .conditioning import shared
    from .denoiser import Denoiser
    from .engine.engine import Engine
    from .engine.errors import NetworkError, QueueFull
    from .engine.job import Job, Preview
    from .engine.ladder import Ladder
    from .engine.network import NetworkOptions
    from .engine.policy import Policy
    from .engine.report import Report
    from .engine.results import Result
    from .engine.sample import sample
    from .engine.tuned import Tuned
    from .mcmc import Energy
    from .memory import keep_freed_memory
    from .programs.program import Program
    from .tuning.tune import tune

_MODULES = {  # of the names that are no modules themselves
    "Denoiser": ".denoiser",
    "Energy": ".mcmc",
    "Engine": ".engine.engine",
    "Job": ".engine.job",
    "Ladder": ".engine.ladder",
    "NetworkError": ".engine.errors",
    "NetworkOptions": ".engine.network",
    "Policy": ".engine.policy",
    "Preview": ".engine.job",
    "Program": ".programs.program",
    "QueueFull": ".engine.errors",
    "Report": ".engine.report",
    "Result": ".engine.results",
    "Tuned": ".engine.tuned",
    "__version__": "ulam_kernels",
    "backends": "ulam_kernels",
    "keep_freed_memory": ".memory",
    "sample": ".engine.sample",
    "shared": ".conditioning",
    "tune": ".tuning.tune",
}

__all__ = [
    "Denoiser",
    "Energy",
    "Engine",
    "Job",
    "Ladder",
    "NetworkError",
    "NetworkOptions",
    "Policy",
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
    "chain_kernel",
    "ebm",
    "guidance",
    "keep_freed_memory",
    "mcmc",
    "models",
    "noise",
    "objectives",
    "ops",
    "rollouts",
    "sample",
    "samplers",
    "schedules",
    "shared",
    "sure",
    "throughput",
    "tune",
    "tweedie",
    "vae",
]


def __getattr__(name: str) -> object:
    return attribute(__name__, name, _MODULES)


def __dir__() -> list[str]:
    return __all__
