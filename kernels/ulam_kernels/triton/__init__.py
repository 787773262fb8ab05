"""The Triton backend, for NVIDIA and AMD GPUs: kernels compiled when first used, with the bits of the other backends.

Its submodules, the kernels and what launches them, import on a machine without a GPU too.
"""

from __future__ import annotations

import torch

from ulam_kernels.triton import likelihood, mcmc
from ulam_kernels.triton.affine import affine
from ulam_kernels.triton.blend import blend
from ulam_kernels.triton.fill import fill_normal
from ulam_kernels.triton.moments import moments
from ulam_kernels.triton.reduce import reduce
from ulam_kernels.triton.step import step
from ulam_kernels.triton.tick import advance, look_up
from ulam_kernels.triton.walk import bound_walk, call_network, packed

__all__ = ["advance", "affine", "blend", "bound_walk", "call_network", "fill_normal", "likelihood", "look_up",
           "mcmc", "moments", "packed", "reduce", "require_device", "step"]  # fmt: skip


def require_device() -> None:
    """Raise ImportError with the reason, unless torch sees a device that Triton can launch on."""
    if not torch.cuda.is_available():
        raise ImportError("no CUDA or ROCm device is visible to torch")
    if torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0):
        major, minor = torch.cuda.get_device_capability()
        raise ImportError(f"compute capability 8.0 or newer is needed, the current device has {major}.{minor}")
