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
    if (cond is None and not tensors) or not torch.is_grad_enabled():
        return
    given: dict[str, object] = {}
    for name, value in {**tensors, "cond": cond}.items():
        if isinstance(value, Mapping):
            given |= {f"{name}[{key!r}]": part for key, part in value.items()}
        elif name not in ("cond", "uncond"):  # which are refused for their type
            given[name] = value
    for name, value in given.items():
        tensor = getattr(value, "tensor", value)  # the one that ulam.shared wraps
        if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
            raise RuntimeError(
                f"{name}: got a tensor that requires grad, but {what} gives no gradient, expected its .detach(), or "
                "a call under torch.no_grad()"
            )
