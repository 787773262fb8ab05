"""ComfyUI's sampling module by itself, from a checkout of ComfyUI that ULAM_COMFYUI names. Without it tests skip."""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
import torch

Array = npt.NDArray[np.float64]
Estimate = Callable[[Array, float], tuple[Array, Array]]  # (guided, unguided) D at (y, u)


class Const:
    """Its class for flow schedules."""


def with_post(options: dict[str, Any], function: Callable[[Any], Any], **_: Any) -> dict[str, Any]:
    return {**options, "post": function}


@contextmanager
def sampling_module() -> Iterator[Any]:
    """The module; what it imports and these samplers do not need is left out."""
    place = os.environ.get("ULAM_COMFYUI")
    if place is None:
        pytest.skip("ULAM_COMFYUI does not name a checkout of ComfyUI")
    folder = Path(place) / "comfy" / "k_diffusion"
    package = types.ModuleType("comfy_k_diffusion")
    package.__path__ = [str(folder)]
    utils = types.ModuleType("comfy_k_diffusion.utils")
    utils.append_dims = lambda x, dims: x.reshape(*x.shape, *[1] * (dims - x.ndim))  # type: ignore[attr-defined]
    comfy = mock.MagicMock()
    comfy.model_sampling.CONST = Const
    comfy.model_patcher.set_model_options_post_cfg_function = with_post
    comfy.utils.model_trange = lambda n, **_: range(n)
    names = ("model_patcher", "model_sampling", "memory_management", "utils")
    stubs = {"comfy": comfy, **{f"comfy.{name}": getattr(comfy, name) for name in names}}
    ours = {"comfy_k_diffusion": package, "comfy_k_diffusion.utils": utils, "torchsde": mock.MagicMock()}
    with mock.patch.dict(sys.modules, {**stubs, **ours}):
        yield importlib.import_module("comfy_k_diffusion.sampling")


class Network:
    """A model as their samplers see it: D(x, sigma), the unguided one being given to a function of the options."""

    def __init__(self, estimate: Estimate, flow: bool) -> None:
        self.estimate = estimate
        sampling = Const() if flow else types.SimpleNamespace()
        sampling.noise_scale = 1.0  # type: ignore[attr-defined]
        patcher = types.SimpleNamespace(get_model_object=lambda _: sampling)
        inner = types.SimpleNamespace(model_sampling=sampling)
        self.inner_model = types.SimpleNamespace(inner_model=inner, model_patcher=patcher)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, model_options: Any = None, **_: Any) -> torch.Tensor:
        guided, unguided = map(torch.from_numpy, self.estimate(x.numpy(), float(sigma[0])))
        if model_options and "post" in model_options:
            model_options["post"]({"denoised": guided, "uncond_denoised": unguided})
        return guided


def brownian(normals: Iterator[Array]) -> Callable[[Any, Any], torch.Tensor]:
    """Increments of a path over the square root of their time; pieces from one start go on where the last one ended.

    Over no time, which an end at the middle of a step leaves, they are 0: they are multiplied by 0.
    """
    start, end, value = 0.0, 0.0, np.zeros(())

    def increment(above: Any, below: Any) -> torch.Tensor:
        nonlocal start, end, value
        if float(above) != start:
            start, end, value = float(above), float(above), np.zeros(())
        value = value + np.sqrt(max(end - float(below), 0.0)) * next(normals)
        end = min(end, float(below))
        return torch.from_numpy(value / np.sqrt(start - end) if start > end else value)

    return increment
