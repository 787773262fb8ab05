"""Where automatic differentiation begins and ends: results without gradient, networks that take gradients inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

# In torch's errors for gradients requested under no_grad or inference_mode.
WANTED = ("does not require grad", "nference tensor")


def wants_gradients(error: BaseException) -> bool:
    """Whether a network failed because it takes gradients inside but was called where none are recorded."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in WANTED)


def without_graph(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """function(x) outside every graph, with gradients inside if it takes some itself, as classifier guidance does."""
    with torch.inference_mode(False), torch.no_grad():
        x = plain(x)
        try:
            return function(x)
        except RuntimeError as error:
            if not wants_gradients(error):
                raise
        with torch.enable_grad():
            return function(x.clone()).detach()


def plain(x: torch.Tensor) -> torch.Tensor:
    """x detached from every graph but usable in one: an inference tensor is copied."""
    return x.clone() if x.is_inference() else x.detach()


def check_no_gradient(what: str, cond: Mapping[str, object] | None = None, **tensors: object) -> None:
    """Raises RuntimeError for an input that requires grad while gradients are recorded: ``what`` gives none."""
    if not torch.is_grad_enabled():
        return
    for name, value in (*tensors.items(), ("cond", cond)):
        if value is None:
            continue
        if isinstance(value, Mapping):
            parts = {f"{name}[{key!r}]": part for key, part in value.items()}
        else:  # conditioning that is none is refused for its type
            parts = {} if name in ("cond", "uncond") else {name: value}
        for named, part in parts.items():
            tensor = getattr(part, "tensor", part)  # the one that ulam.shared wraps
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                raise RuntimeError(
                    f"{named}: got a tensor that requires grad, but {what} gives no gradient, expected its .detach(), "
                    "or a call under torch.no_grad()"
                )
