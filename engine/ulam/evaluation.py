"""One call of a network: in eval mode, under the caller's autocast."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def in_eval_mode(modules: list[torch.nn.Module]) -> Iterator[None]:
    """A network samples in eval mode; of its modules those in training go back to it."""
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def autocast_state(device: torch.device) -> tuple[bool, torch.dtype]:
    """Whether the caller runs under autocast, and to which dtype."""
    return torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
