"""Which ways to run a network are tried, the most promising first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from ..engine.network import NetworkOptions
from ..engine.tuned import Candidate

EXACT, FP32 = "exact", "fp32"
COARSE = 1e-5  # an accuracy below which 16-bit types are not worth a trial


def candidates(
    given: NetworkOptions, slots: int, accuracy: str | float, device: torch.device, images: bool, guided: bool
) -> Iterator[Candidate]:
    """Those that may reach the accuracy, beside ``given`` itself: what it says already is kept.

    images: samples are [C, H, W], which has a channels-last format. guided: there are two branches.
    """
    gpu = device.type == "cuda"
    how = "frozen" if not given.gradients and not gpu else True
    tried = [given]
    coarse = not isinstance(accuracy, str) and accuracy >= COARSE
    if coarse and gpu:
        for dtype in (torch.bfloat16, torch.float16):
            for formats in (True, False) if images else (False,):
                tried.append(replace(given, weights=dtype, autocast=None, compile=how, channels_last=formats))
    elif coarse:  # frozen weights are cast once, too
        tried.append(replace(given, autocast=torch.bfloat16, compile=how))
    tried.append(replace(given, compile=how))
    if images:
        tried.append(replace(given, channels_last=True))
    if guided:
        tried += [replace(given, doubled=True), replace(given, doubled=True, compile=how)]
    if coarse:
        tried += [replace(given, weights=torch.bfloat16, autocast=None), replace(given, autocast=torch.bfloat16)]
        tried.append(replace(given, autocast=torch.bfloat16, compile=True))
    tried.append(replace(given, compile=True))
    if gpu:
        tried.append(replace(given, compile="max-autotune"))
    for options in list(dict.fromkeys(tried))[1:]:
        yield Candidate(options, slots)
    if gpu:
        yield Candidate(given, slots, graphs=False)
