"""The CUDA C++ backend: NVIDIA GPUs of compute capability 8.0 and newer.

The operations take tensors that :mod:`ulam_kernels.ops` has validated and launch on their device, on torch's current
stream. Importing this module raises ImportError with the reason where nothing can be launched.
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


def _call(operation: native.Operation, arguments: tuple[Any, ...], given: tuple[Any, ...]) -> None:
    device = next(value.device for value in given if isinstance(value, torch.Tensor))
    if torch.cuda.current_device() != device.index:
        with torch.cuda.device(device):
            return _call(operation, arguments, given)
    operation(*arguments, torch.cuda.current_stream(device).cuda_stream)


globals().update(vars(native.operations(_rows, _cuda, _call)))
mcmc = native.operations(_mcmc, _cuda, _call)
likelihood = native.operations(_likelihood, _cuda, _call)
