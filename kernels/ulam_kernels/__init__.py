"""Fused operations for sampling chains: one contract, several backends with the same bits.

`ops`, `tick`, `mcmc` and `likelihood` are the public operations, and each backend has a folder of its own.
"""

from ulam_kernels import likelihood as likelihood
from ulam_kernels import mcmc as mcmc
from ulam_kernels import ops as ops
from ulam_kernels.dispatch import backends
from ulam_kernels.network_calls import evaluate_network
from ulam_kernels.ops.elementwise import *  # noqa: F403
from ulam_kernels.ops.rows import *  # noqa: F403
from ulam_kernels.ops.sums import *  # noqa: F403
from ulam_kernels.table import Table
from ulam_kernels.tick import advance, look_up
from ulam_kernels.torch_normal import torch_normal
from ulam_kernels.version import __version__
from ulam_kernels.walks import walk

__all__ = ["Table", "__version__", "advance", "backends", "evaluate_network", "look_up", "torch_normal", "walk"]
__all__ += [*ops.rows.__all__, *ops.elementwise.__all__, *ops.sums.__all__]
