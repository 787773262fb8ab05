"""Where automatic differentiation begins and ends: results without a gradient, networks that take gradients inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

# What torch says where a gradient is asked for under no_grad or inference_mode.
WANTED = ("does not require grad", "nference tensor")


def wants_gradients(error: BaseException) -> bool:
    """Whether a network failed because it takes gradients inside and there are none where it was called."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in WANTED)


def without_graph(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """function(x) outside every graph; one that takes gradients of its own inside, as guidance does, has them there."""
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
    """x outside every graph, as a tensor that may enter one: what was made under inference_mode is copied."""
    return x.clone() if x.is_inference() else x.detach()


def check_no_gradient(what: str, cond: Mapping[str, object] | None = None, **tensors: object) -> None:
    """Raises RuntimeError where a caller may expect a gradient of ``what``, which has none."""
    if not torch.is_grad_enabled():
        return
    given: dict[str, object] = {}
    for name, value in {**tensors, "cond": cond}.items():
        named = (
            {f"{name}[{key!r}]": part for key, part in value.items()} if isinstance(value, Mapping) else {name: value}
        )
        given.update(named)
    for name, value in given.items():
        tensor = getattr(value, "tensor", value)  # of what ulam.shared wraps
        if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
            raise RuntimeError(
                f"{name}: got a tensor that requires grad, but {what} gives no gradient, expected its .detach(), or "
                "a call under torch.no_grad()"
            )
