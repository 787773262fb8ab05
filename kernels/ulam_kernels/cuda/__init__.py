"""The CUDA C++ backend, for NVIDIA GPUs of compute capability 8.0 and newer: launches on torch's current stream.

Importing it raises ImportError, with the reason, where nothing can be launched.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

if find_spec("ulam_kernels._cuda") is None:
    raise ImportError("ulam was built without nvcc: its CUDA extension is missing")

from ulam_kernels import _cuda, native
from ulam_kernels.native import likelihood as _likelihood
from ulam_kernels.native import mcmc as _mcmc
from ulam_kernels.native import rows as _rows

if (_reason := _cuda.unavailable_reason()) is not None:
    raise ImportError(_reason)
if not torch.cuda.is_available():
    raise ImportError("torch sees no CUDA device (is it a build for the CPU?)")


def _bind(operation: native.Operation, make: native.Make) -> native.Operation:
    def run(*given: Any, **named: Any) -> None:
        device = next(value.device for value in given if isinstance(value, torch.Tensor))
        if torch.cuda.current_device() != device.index:
            with torch.cuda.device(device):
                return run(*given, **named)
        operation(*make(*given, **named), torch.cuda.current_stream(device).cuda_stream)

    return run


globals().update(vars(native.operations(_rows, _cuda, _bind)))
mcmc = native.operations(_mcmc, _cuda, _bind)
likelihood = native.operations(_likelihood, _cuda, _bind)
