"""k-diffusion's sampling module by itself: its package imports clip and torchvision.

Its place comes from ULAM_K_DIFFUSION: a wheel of k-diffusion, or the file sampling.py. Without it tests skip.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import types
import zipfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch


def sampling_module(folder: Path) -> Any:
    """The module, copied to `folder`; what it imports and these samplers do not need is left out."""
    place = os.environ.get("ULAM_K_DIFFUSION")
    if place is None:
        pytest.skip("ULAM_K_DIFFUSION does not name a wheel of k-diffusion, or its sampling.py")
    source = Path(place).read_bytes()
    if place.endswith(".whl"):
        source = zipfile.ZipFile(place).read("k_diffusion/sampling.py")
    (folder / "sampling.py").write_bytes(source)
    utils = types.ModuleType("k_diffusion.utils")
    utils.append_dims = lambda x, dims: x.reshape(*x.shape, *[1] * (dims - x.ndim))  # type: ignore[attr-defined]
    package = types.ModuleType("k_diffusion")
    package.utils = utils  # type: ignore[attr-defined]
    unused = {name: mock.MagicMock(name=name) for name in ("torchdiffeq", "torchsde")}
    spec = importlib.util.spec_from_file_location("k_diffusion.sampling", folder / "sampling.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, {"k_diffusion": package, "k_diffusion.utils": utils, **unused}):
        spec.loader.exec_module(module)
    return module


class Given:
    """A model in their terms, D(y, sigma) for y = x / alpha, whose outputs are D themselves, given in advance."""

    def __init__(self, outputs: Any) -> None:
        self.outputs = iter(torch.from_numpy(outputs))

    def __call__(self, y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return next(self.outputs)
